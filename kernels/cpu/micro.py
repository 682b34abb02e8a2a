"""Microkernels: one register tile of a matrix product, acc[row * columns + column] = sum over k of a * w, in int32.

The only code written per instruction set. Each is called inside a kernel as
``microkernel(plan, a, at, weights, acc, runs)``: rows start at ``a[at + row * plan.pitch]`` (uint8); ``weights`` is
their :class:`~intq.kernels.cpu.weights.Block`. All sums are exact: products of uint8 and int8 are added in int32 only.
"""

from __future__ import annotations

from contextlib import ExitStack

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import reinterpret, splat
from intq.kernels.build import i64, ramp
from intq.kernels.cpu.build import local, serial, workspace
from intq.kernels.cpu.plan import Plan, padded_width
from intq.kernels.cpu.weights import AHEAD, FAR, LINE, Block, prefetch


def _steps(plan: Plan, body) -> None:
    """Call ``body(offset, index)`` for each step of K: the offset in a row of A and the running number."""
    with ExitStack() as loops:
        offset, index = i64(0), i64(0)
        for count, stride in plan.taps:
            t = loops.enter_context(serial(count))
            offset, index = offset + t * stride, index * count + t
        index = index * len(plan.starts)
        whole = len(plan.starts) if plan.starts[-1] == (len(plan.starts) - 1) * plan.step else len(plan.starts) - 1
        if whole > 1:
            with serial(whole) as s:
                body(offset + s * plan.step, index + s)
        elif whole:
            body(offset, index)
        if whole < len(plan.starts):
            body(offset + plan.starts[-1], index + whole)


# ---- AMX: 2 x 2 tiles of 16 x 16; tiles 0..3 accumulate, 4, 5 hold A, 6, 7 hold W ------------------------------


def amx_configure(height, step: int) -> None:
    """Load the tile shapes, ``height`` rows of A by ``step`` bytes of K; once a thread, before the first product."""
    row_bytes = [64] * 4 + [step] * 2 + [64] * 2
    rows = [height] * 6 + [step // 4] * 2
    content = [1] + [0] * 15
    content += [byte for b in row_bytes for byte in (b, 0)] + [0] * 16 + rows + [0] * 8
    with workspace(64, "uint8") as palette:
        for i, byte in enumerate(content):
            value = tirx.const(byte, "uint8") if isinstance(byte, int) else byte.astype("uint8")
            T.buffer_store(palette, value, [i64(i)])
        amx_instruction("ldtilecfg", T.address_of(palette[i64(0)]))


def amx_release() -> None:
    """Give the tiles back, or the next context switches save 8 KB each."""
    amx_instruction("tilerelease")


def amx_instruction(name: str, *arguments) -> None:
    T.evaluate(tirx.call_llvm_intrin("void", f"llvm.x86.{name}", *arguments))


def tile(number: int):
    return tirx.const(number, "int8")


def amx(plan: Plan, a, at, weights: Block, acc, runs, ahead=None) -> None:
    """``ahead``: (bytes, lines): in each step, that many cache lines so far ahead in memory are asked for."""
    width, (height, tall) = padded_width(runs), plan.tile
    for row in range(0, height * tall, 2 * height):
        for first in range(0, width // 16, 2):
            count = min(2, width // 16 - first)
            right = weights.right_of(first * 16 * plan.step * plan.steps)
            _amx_pair(plan, a, at + row * plan.pitch, right, count, ahead)
            for i in range(2):
                for j in range(count):
                    where = T.address_of(acc[i64((row + i * height) * width + (first + j) * 16)])
                    amx_instruction("tilestored64", tile(2 * i + j), where, i64(4 * width))


def _amx_pair(plan: Plan, a, at, weights: Block, count: int, ahead) -> None:
    """Tiles 0..3 = two tiles of rows by ``count`` tiles of columns, over all of K."""
    size = count * 16 * plan.step
    for i in range(2):
        for j in range(count):
            amx_instruction("tilezero", tile(2 * i + j))
    for i in range(AHEAD):
        weights.fetch(i64(i), size, plan.steps)

    def step(offset, index):
        if ahead:
            memory, place = weights.memory(index * size)
            prefetch(memory, place + ahead[0], ahead[1] * LINE)
        weights.fetch(T.Bind(index + AHEAD), size, plan.steps)
        place = weights.place(index, size)
        for j in range(count):
            where = T.address_of(weights.buffer[place + j * (16 * plan.step)])
            amx_instruction("tileloadd64", tile(6 + j), where, i64(64))
        for i in range(2):
            where = at + i * plan.tile[0] * plan.pitch + offset
            amx_instruction("tileloadd64", tile(4 + i), T.address_of(a[where]), i64(plan.pitch))
            for j in range(count):
                amx_instruction("tdpbusd", tile(2 * i + j), tile(4 + i), tile(6 + j))

    _steps(plan, step)


# ---- vectors: rows x registers of accumulators ------------------------------------------------------------------


class _Registers:
    """rows x columns int32 accumulators, held in registers over all of K."""

    def __init__(self, rows: int, columns: int, lanes: int) -> None:
        self.lanes, self.vectors = lanes, columns // lanes
        self.rows = [local(columns, "int32") for _ in range(rows)]
        for i, j in self.places():
            self.set(i, j, splat(0, "int32", lanes))

    def places(self):
        return [(i, j) for i in range(len(self.rows)) for j in range(self.vectors)]

    def get(self, i: int, j: int):
        return self.rows[i][ramp(j * self.lanes, self.lanes)]

    def set(self, i: int, j: int, value) -> None:
        T.buffer_store(self.rows[i], value, [ramp(j * self.lanes, self.lanes)])

    def spill(self, acc, width: int, first: int) -> None:
        """Store the sums to columns ``first`` on of acc, whose rows lie ``width`` apart."""
        for i, j in self.places():
            T.buffer_store(acc, self.get(i, j), [ramp(i * width + first + j * self.lanes, self.lanes)])


def _fetched(weights: Block, turn, size: int):
    """Where the ``size`` weights are that a turn of the loop over K reads."""
    turn = T.Bind(turn)
    weights.fetch(turn, size)
    return weights.place(turn, size)


def vnni(plan: Plan, a, at, weights: Block, acc, runs) -> None:
    """vpdpbusd: four products of bytes added to each of 16 int32 lanes."""
    width, name = padded_width(runs), "llvm.x86.avx512.vpdpbusd.512"
    sums = _Registers(plan.isa.rows, width, 16)

    def step(offset, index):
        with serial(plan.step // 4) as k:
            row = _fetched(weights, index * (plan.step // 4) + k, 4 * width)
            for i in range(plan.isa.rows):
                four = reinterpret(a[ramp(at + i * plan.pitch + offset + 4 * k, 4)], "int32")
                four = reinterpret(splat(four, "int32", 16), "uint8x64")
                for j in range(width // 16):
                    w = weights.buffer[ramp(row + 64 * j, 64)]
                    sums.set(i, j, tirx.call_llvm_pure_intrin("int32x16", name, sums.get(i, j), four, w))

    _steps(plan, step)
    sums.spill(acc, width, 0)


def avx2(plan: Plan, a, at, weights: Block, acc, runs) -> None:
    """vpmaddwd on bytes extended to words: exact (vpmaddubsw would saturate). Eight k of a row at a time."""
    width, rows = padded_width(runs), plan.isa.rows
    for first in range(0, width, 16):
        sums, right = _Registers(rows, 16, 8), weights.right_of(first * len(plan.k_order))

        def step(offset, index, sums=sums, right=right):
            with serial(plan.step // 8) as k:
                turn = T.Bind(index * (plan.step // 8) + k)
                if plan.weight_bits == 8:
                    prefetch(right.buffer, right.place(turn, 8 * 16) + FAR, 8 * 16)
                row = _fetched(right, turn, 8 * 16)
                words = []
                for i in range(rows):
                    eight = reinterpret(a[ramp(at + i * plan.pitch + offset + 8 * k, 8)], "int64")
                    eight = reinterpret(splat(eight, "int64", 2), "uint8x16").astype("int16x16")
                    words.append(T.Bind(reinterpret(eight, "int32x8")))  # both halves: k 0..7 as four pairs
                for pair in range(4):
                    indices = [tirx.const(q, "int32") for q in [pair] * 4 + [4 + pair] * 4]
                    for i in range(rows):
                        two = reinterpret(tirx.Shuffle([words[i]], indices), "int16x16")
                        for j in range(2):
                            w = right.buffer[ramp(row + 32 * pair + 16 * j, 16)].astype("int16x16")
                            product = tirx.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.pmadd.wd", two, w)
                            sums.set(i, j, sums.get(i, j) + product)

        _steps(plan, step)
        sums.spill(acc, width, first)


def plain(plan: Plan, a, at, weights: Block, acc, runs) -> None:
    """Any processor: LLVM picks the instructions of a 16-lane int32 product."""
    width = padded_width(runs)
    sums = _Registers(plan.isa.rows, width, width)

    def step(offset, index):
        with serial(plan.step) as k:
            row = _fetched(weights, index * plan.step + k, width)
            w = weights.buffer[ramp(row, width)].astype(f"int32x{width}")
            for i in range(plan.isa.rows):
                x = splat(a[at + i * plan.pitch + offset + k].astype("int32"), "int32", width)
                sums.set(i, 0, sums.get(i, 0) + x * w)

    _steps(plan, step)
    sums.spill(acc, width, 0)


MICROKERNELS = {"amx": amx, "vnni": vnni, "avx2": avx2, "plain": plain}
