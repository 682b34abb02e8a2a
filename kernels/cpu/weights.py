"""Weights as products read them: bytes, or on their way to bytes from 4 or 2 bits.

Memory holds narrow weights two or four to a byte; shifts and masks unpack a vector of them at a time. A thread does so
for a block of columns while it multiplies the first tile of rows by it, step by step of K, from registers. It also
writes the bytes to a *panel* of its own, where the tiles behind the first find them, and AMX its own, which it can only
load from memory. Few weights are unpacked all at once, before the product.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import reinterpret, splat
from intq.kernels.build import i64, ramp
from intq.kernels.cpu.build import State, serial, state, workspace
from intq.kernels.cpu.plan import FEW_WEIGHTS, Plan

AHEAD = 2  # steps of K, a power of two: what is written is not at once there for AMX to load
FEW_TILES = 8  # of rows: for so few AMX rather unpacks a block again and again than reads it from the second cache
FAR = 2048  # bytes ahead of a product, from where a core asks memory for weights
LINE = 64  # bytes of a cache line
PREFETCH_L2 = tuple(tirx.const(n, "int32") for n in (0, 2, 1))  # to read; into the second cache; data
STATE = (
    "unpacked",  # number of the block that is in the panel
    *("size", "first", "tiles"),  # of a group of tiles, see contract.py
)
UNROLLED = 4  # chunks whose code is written one after another; more are a loop


@dataclass(frozen=True)
class Block:
    """The weights of a block of columns, step of K after step: bytes in ``buffer`` from ``start`` on.

    Narrow ones begin at byte ``origin`` of ``packed``; they are unpacked if ``fresh``. A step's place in the buffer is
    its number and ``kept``: all ones where other tiles of rows will read it, else a mask that makes a small ring.
    """

    plan: Plan
    buffer: object
    start: object
    packed: object = None
    origin: object = None
    fresh: object = None
    kept: object = None

    def right_of(self, count: int) -> Block:
        """The same without the first ``count`` weights."""
        if self.packed is None:
            return replace(self, start=self.start + count)
        return replace(self, start=self.start + count, origin=self.origin + count // self.plan.per_byte)

    def memory(self, at) -> tuple:
        """(buffer, place) of weight number ``at`` as the library keeps it."""
        if self.packed is None:
            return self.buffer, self.start + at
        return self.packed, self.origin + at // self.plan.per_byte

    def place(self, step, size: int):
        """Where in ``buffer`` the ``size`` weights of a step are, once :meth:`fetch` has put them there."""
        return self.start + (step if self.packed is None else step & self.kept) * size

    def fetch(self, step, size: int, steps: int | None = None) -> None:
        """Unpack a step if it is one of ``steps`` and not unpacked yet."""
        if self.packed is None:
            return
        with T.If(self.fresh if steps is None else tirx.all(self.fresh, step < steps)), T.Then():
            to, at = T.Bind(self.place(step, size)), T.Bind(self.memory(step * size)[1])
            if self.plan.isa_name != "amx":  # where a tile of rows asks for the next block
                prefetch(self.packed, at + FAR, size // self.plan.per_byte)
            unpack(self.plan, self.buffer, to, self.packed, at, size)


@dataclass(frozen=True)
class Whole:
    """All weights as bytes; in place of a :class:`Panel`."""

    plan: Plan
    buffer: object

    def block(self, start, number, tiles) -> Block:
        return Block(self.plan, self.buffer, start)


@dataclass(frozen=True)
class Panel:
    """A thread's memory for one block of narrow weights."""

    plan: Plan
    packed: object
    buffer: object
    state: State

    def block(self, start, number, tiles) -> Block:
        """Block ``number``, whose weights are those from ``start`` on, for so many ``tiles`` of rows one by one."""
        plan, ring, most = self.plan, 1, 1
        if plan.isa_name == "amx":
            ring = 2 * AHEAD
            most = 1 if plan.block_size(plan.blocks[0][1]) <= FEW_WEIGHTS else FEW_TILES
        kept = T.Bind(tirx.Select(i64(tiles) > most, i64(-1), i64(ring - 1)))
        fresh = T.Bind(tirx.any(kept >= 0, self.state["unpacked"] != number))
        self.state["unpacked"] = number
        return Block(plan, self.buffer, i64(0), self.packed, T.Bind(start // plan.per_byte), fresh, kept)


def prefetch(buffer, at, size: int = LINE) -> None:
    """Ask for the cache lines of ``size`` bytes; the address may be anything."""
    for line in range(0, size, LINE):
        T.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", T.address_of(buffer[at + line]), *PREFETCH_L2))


def unpack(plan: Plan, target, to, packed, at, count: int) -> None:
    """``count`` weights, whole chunks, from byte ``at`` of ``packed`` to ``target[to]`` and on."""
    chunks, size = count // plan.chunk, plan.chunk // plan.per_byte

    def one(i) -> None:
        fields = T.Bind(reinterpret(packed[ramp(at + i * size, size)], f"uint8x{size}"))
        for j in range(plan.per_byte):
            field = fields >> splat(j * plan.weight_bits, "uint8", size)
            field = field & splat((1 << plan.weight_bits) - 1, "uint8", size)
            number = reinterpret(field - splat(1 << (plan.weight_bits - 1), "uint8", size), f"int8x{size}")
            T.buffer_store(target, number, [ramp(to + i * plan.chunk + j * size, size)])

    if chunks <= UNROLLED:
        for i in range(chunks):
            one(i)
        return
    with serial(chunks) as i:
        one(i)


@contextmanager
def unpacked(plan: Plan, weight):
    """All weights as bytes, at the top of the parallel region: ``weight`` itself, or each thread's own."""
    if plan.weight_bits == 8:
        yield weight
        return
    count = int(weight.shape[0]) * plan.per_byte
    with workspace(count, "int8") as target:
        unpack(plan, target, i64(0), weight, i64(0), count)
        yield target


@contextmanager
def blocks_of(plan: Plan, weight):
    """What has the ``block`` of each number, at the top of the parallel region: Whole or a Panel."""
    if not plan.unpacks_blocks:
        with unpacked(plan, weight) as buffer:
            yield Whole(plan, buffer)
        return
    with workspace(plan.block_size(plan.blocks[0][1]), "int8") as buffer, state(*STATE) as numbers:
        numbers["unpacked"] = -1
        yield Panel(plan, weight, buffer, numbers)
