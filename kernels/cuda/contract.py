"""Convolutions and linear layers on tensor cores: implicit GEMM, and the operation's body on its sums.

A step brings STEP bytes of k of both operands into one of two halves of shared memory while the products of the step
before are taken from the other. Then each warp lays eight rows of its sums into shared memory at a time, so that a
thread has neighbouring channels of one row: it rescales them and stores them together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import Vector
from intq.kernels.cuda import tensorcore
from intq.kernels.cuda.build import (
    WARP,
    barrier,
    blocks,
    ceil_div,
    i32,
    kernel,
    quotient,
    ramp,
    registers,
    remainder,
    rolled,
    shared,
    store,
    unrolled,
    view,
    warp_barrier,
    when,
)
from intq.kernels.cuda.dialect import CudaDialect, tables
from intq.kernels.cuda.elements import Constants, Elements, width_of
from intq.kernels.cuda.pack import swizzled
from intq.kernels.cuda.plan import CHUNK, STEP, Plan

CHUNKS = STEP // CHUNK  # of a row in a step
WORDS = CHUNK // 4
SLICE = 8  # rows of sums that a warp finishes at a time
SPREAD = 8  # words by which rows of sums lie further apart, so that they meet different banks
FINISHED = 4  # channels of a row that a thread finishes at a time


@dataclass(frozen=True)
class Epilogue:
    """An operation's ``body`` and attributes, its constants, and its curve's table size (0: none)."""

    body: Callable
    attrs: Mapping
    constants: Constants
    curve: int

    def apply(self, operands: tuple[Vector, ...], constants: dict, coefficients) -> Vector:
        if self.curve:
            constants = constants | {"curve": tables(coefficients, self.curve, 3)}
        residual = tuple(x.lifted(self.constants.rescale.lift) for x in operands[1:])
        return self.body(CudaDialect, (operands[0], *residual), constants, self.attrs)


def contraction(name: str, plan: Plan, finish: Epilogue, tensors: Mapping[str, tuple]) -> tirx.PrimFunc:
    """The kernel (x, [residual], [mask], weight, constants, [curve], [pad_value], out).

    ``tensors``: (shape, dtype) of each argument there is, by name, in this order.
    """
    x, out = tensors["x"][0], tensors["out"][0]
    known = plan.source[0] or plan.in_place
    names = tuple(dict.fromkeys(d for d in (*x, *out) if isinstance(d, str)))

    def write(*given):
        sizes, buffers = dict(zip(names, given, strict=False)), dict(zip(tensors, given[len(names) :], strict=True))
        samples = math.prod((sizes.get(d, d) for d in out[:-1]), start=i32(1)) if plan.in_place else sizes[out[0]]
        heights = (plan.source[0], plan.output[0]) if known else (sizes[x[1]], sizes[out[1]])
        _Contraction(plan, finish, buffers, samples, *heights).write()

    return kernel(name, list(tensors.values()), write, names)


@dataclass(frozen=True)
class _Contraction:
    """``samples``: images, or rows of A where they are read in place; ``height``, ``places``: rows of an image of the
    input and of the output, expressions where they are not known."""

    plan: Plan
    finish: Epilogue
    buffers: Mapping
    samples: object
    height: object
    places: object

    @property
    def together(self) -> bool:
        """Whether the rows of A of all samples are numbered through."""
        return self.plan.in_place or isinstance(self.places, int)

    @property
    def rows(self):
        """Of A: all, or those of a sample."""
        if self.plan.in_place:
            return self.samples
        return self.samples * self.pixels if self.together else self.pixels

    @property
    def pixels(self):
        """Of a sample of the output."""
        return self.places * self.plan.output[1]

    def write(self) -> None:
        plan, tile = self.plan, self.plan.tile
        across = ceil_div(self.rows, tile.rows)
        deep = 1 if self.together else self.samples
        with blocks(tile.threads, across, plan.groups * plan.column_tiles, deep) as (bx, by, bz, thread):
            stage = (tile.rows + tile.columns) * STEP // 4
            sums = math.prod(tile.warps) * SLICE * (tile.warp[1] + SPREAD)
            memory = shared(max(2 * stage, sums))
            first = T.Bind(bx * tile.rows)
            group = quotient(by, plan.column_tiles)
            operands = _Operands(self, memory, stage, first, by, bz, thread)
            accumulators = tensorcore.accumulators(plan)
            operands.fetch(i32(0))
            operands.keep(i32(0))
            barrier()
            with rolled(plan.steps) as step:
                half = T.Bind(remainder(step, 2) * stage)
                more = step + 1 < plan.steps
                if plan.steps > 1:
                    with T.If(more), T.Then():
                        operands.fetch(step + 1)
                tensorcore.products(plan, accumulators, memory, half, thread)
                if plan.steps > 1:
                    with T.If(more), T.Then():
                        operands.keep(stage - half)
                barrier()
            column = T.Bind(remainder(by, plan.column_tiles) * tile.columns)
            self._finish(memory, accumulators, first, bz, group, column, thread)

    def _finish(self, memory, accumulators, first, sample, group, column, thread) -> None:
        plan, tile = self.plan, self.plan.tile
        rows, columns = tile.warp
        dtypes = [str(self.buffers[name].dtype) for name in ("residual", "out") if name in self.buffers]
        width = width_of(math.gcd(plan.columns, plan.co), *dtypes, most=FINISHED)
        lanes = columns // FINISHED
        warp, lane = T.Bind(quotient(thread, WARP)), T.Bind(remainder(thread, WARP))
        down, across = quotient(warp, tile.warps[1]), remainder(warp, tile.warps[1])
        pitch = columns + SPREAD
        base = T.Bind(warp * (SLICE * pitch))
        in_group = T.Bind(column + across * columns + remainder(lane, lanes) * FINISHED)
        channel = T.Bind(group * plan.columns + in_group)
        constants = self.finish.constants.load(self.buffers["constants"], [channel + i for i in range(FINISHED)])
        total = self.rows if self.together else self.rows * self.samples
        ends = {
            name: Elements(self.buffers[name], total * plan.co, width)
            for name in ("residual", "out")
            if name in self.buffers
        }
        start = 0 if self.together else sample * self.rows
        signed = view(memory, "int32", memory.shape[0])
        with unrolled(rows // SLICE) as number:
            tensorcore.lay(plan, accumulators, number, memory, base, pitch, lane)
            warp_barrier()
            with unrolled(SLICE * lanes // WARP) as turn:
                in_slice = turn * (WARP // lanes) + quotient(lane, lanes)
                four = (warp * SLICE + in_slice) * (pitch // FINISHED) + remainder(lane, lanes)
                row = T.Bind(first + down * rows + number * SLICE + in_slice)
                with T.If(row < self.rows), T.Then():
                    sums = T.Bind(signed[ramp(four * FINISHED, FINISHED)])
                    sums = [T.Bind(tirx.Shuffle([sums], [i32(i)])) for i in range(FINISHED)]
                    place = T.Bind((start + row) * plan.co + channel)
                    for i in range(0, FINISHED, width):
                        with T.If(in_group + i < plan.columns), T.Then():
                            operands = [Vector(tuple(sums[i : i + width]), "int32")]
                            if "residual" in ends:
                                operands.append(ends["residual"].load(place + i))
                            here = {k: Vector(v.parts[i : i + width], v.dtype) for k, v in constants.items()}
                            result = self.finish.apply(tuple(operands), here, self.buffers.get("curve"))
                            ends["out"].store(place + i, result)
            warp_barrier()


class _Operands:
    """How a block's threads bring a step of both operands into shared memory: what each does is bound when it is made.

    Thread t takes chunk t % CHUNKS of the rows t / CHUNKS, t / CHUNKS + threads / CHUNKS, ...
    """

    def __init__(self, contraction: _Contraction, memory, stage: int, first, tile_number, sample, thread):
        self.of, self.plan, self.memory = contraction, contraction.plan, memory
        plan, tile = self.plan, self.plan.tile
        self.chunk = T.Bind(remainder(thread, CHUNKS))
        self.row = T.Bind(quotient(thread, CHUNKS))
        self.apart = tile.threads // CHUNKS
        self.turns, self.weight_turns = tile.rows // self.apart, -(-tile.columns // self.apart)
        self.fetched = [registers(WORDS) for _ in range(self.turns)]
        self.weights = [registers(WORDS) for _ in range(self.weight_turns)]
        self.group = quotient(tile_number, plan.column_tiles)
        self.weight_at = T.Bind(tile_number * (plan.steps * tile.columns * CHUNKS) + thread)
        weight = contraction.buffers["weight"]
        self.thread, self.words = thread, view(weight, "uint32", weight.shape[0] // 4)
        self.origins = [self._origin(first + self.row + turn * self.apart, sample) for turn in range(self.turns)]

    def _origin(self, row, sample) -> tuple:
        """What a chunk's place follows from: the row's first element, or the sample and the window's first pixel."""
        plan, of = self.plan, self.of
        row = T.Bind(tirx.min(row, of.rows - 1))  # rows beyond the last are computed and dropped
        if plan.in_place:
            return (T.Bind(row * plan.source[2]),)
        if of.together:
            sample, row = T.Bind(quotient(row, of.pixels)), T.Bind(remainder(row, of.pixels))
        y = T.Bind(quotient(row, plan.output[1]) * plan.stride[0] - plan.padding[0])
        x = T.Bind(remainder(row, plan.output[1]) * plan.stride[1] - plan.padding[1])
        return sample, y, x

    def fetch(self, step) -> None:
        """Load a step's chunks into registers."""
        first = T.Bind(step * (STEP * self.plan.per_byte) + self.chunk * (CHUNK * self.plan.per_byte))
        for turn, memory in enumerate(self.fetched):
            for part in range(self.plan.per_byte):
                self._gather(memory, first + part * CHUNK, self.origins[turn], part)
        at = T.Bind(self.weight_at + step * (self.plan.tile.columns * CHUNKS))
        for turn, memory in enumerate(self.weights):
            with self._weight_guard(turn):
                place = (at + turn * self.plan.tile.threads) * WORDS
                store(memory, self.words[ramp(place, WORDS)], ramp(0, WORDS))

    def _weight_guard(self, turn: int):
        left = self.plan.tile.columns * CHUNKS - turn * self.plan.tile.threads
        return when(self.thread < left if left < self.plan.tile.threads else None)

    def keep(self, half) -> None:
        """Store what was fetched into a half of shared memory: A, then W."""
        tile = self.plan.tile
        for turn, memory in enumerate(self.fetched):
            row = self.row + turn * self.apart
            place = (row * CHUNKS + swizzled(row, self.chunk)) * WORDS
            store(self.memory, memory[ramp(0, WORDS)], ramp(half + place, WORDS))
        for turn, memory in enumerate(self.weights):
            with self._weight_guard(turn):
                place = tile.rows * (STEP // 4) + (self.thread + turn * tile.threads) * WORDS
                store(self.memory, memory[ramp(0, WORDS)], ramp(half + place, WORDS))

    def _gather(self, memory, k, origin, part: int) -> None:
        """CHUNK products of a row from ``k`` on, as words in ``memory``; of nibbles the ``part``-th half of them."""
        piece = self.plan.piece
        loaded = [self._piece(T.Bind(k + i), origin, piece) for i in range(0, CHUNK, piece)]
        words = registers(WORDS) if self.plan.nibbles else memory
        if piece == CHUNK:
            store(words, loaded[0], ramp(0, WORDS))
        elif piece >= 4:
            for i, words_ in enumerate(loaded):
                store(words, words_, ramp(i * piece // 4, piece // 4))
        else:
            each = 4 // piece
            for i in range(WORDS):
                word = None
                for j, few in enumerate(loaded[i * each : (i + 1) * each]):
                    few = few.astype("uint32") << tirx.const(8 * piece * j, "uint32")
                    word = few if word is None else word | few
                store(words, word, i)
        if self.plan.nibbles:  # two words of bytes become one
            for i in range(WORDS // 2):
                low, high = (words[2 * i + j] | (words[2 * i + j] >> tirx.const(4, "uint32")) for j in range(2))
                store(memory, tensorcore.byte_permute(low, high, 0x6420), part * (WORDS // 2) + i)

    def _piece(self, k, origin, piece: int):
        """``piece`` bytes of a row from ``k`` on: one word or vector of words, or an element of one or two bytes.

        A place outside of the image, or that the mask leaves out, has the padding's value; behind the last product
        there are zeros, whose weights are zero too.
        """
        plan, buffers = self.plan, self.of.buffers
        dtype, count = {1: ("uint8", 1), 2: ("uint16", 1)}.get(piece, ("uint32", piece // 4))
        zero = tirx.const(0, dtype) if count == 1 else tirx.Broadcast(tirx.const(0, dtype), count)
        load = lambda name, at: view(buffers[name], dtype, 1)[ramp(quotient(at, piece) * count, count)]  # noqa: E731
        if plan.in_place:
            whole = load("x", origin[0] + k)
        else:
            sample, top, left = origin
            tap, channel = quotient(k, plan.ci), remainder(k, plan.ci)
            y = T.Bind(top + quotient(tap, plan.kernel[1]) * plan.dilation[0])
            x = T.Bind(left + remainder(tap, plan.kernel[1]) * plan.dilation[1])
            channel = T.Bind(self.group * plan.ci + channel)
            height, (_, w, c) = self.of.height, plan.source
            inside = tirx.all(y >= 0, y < height, x >= 0, x < w)
            if "mask" in buffers:
                kept = tirx.if_then_else(inside, buffers["mask"][sample * height + y], tirx.const(0, "uint8"))
                inside = T.Bind(kept.astype("int32")) > 0
            place = ((sample * height + y) * w + x) * c + channel
            whole = tirx.if_then_else(inside, load("x", place), load("pad_value", channel))
        if plan.k % (STEP * plan.per_byte) == 0:
            return T.Bind(whole)
        return T.Bind(tirx.if_then_else(k < plan.k, whole, zero))
