"""Linear layers and convolutions over frames on AMX: a tile's sums are rescaled while the next tile is multiplied.

A unit of work is 32 columns by two hardware tiles of rows. The tile unit multiplies on its own once it is told to; the
vector units meanwhile rescale the sums of the unit before, a few rows after each step of K, so that neither waits.
Half of the sums' memory is being filled while the other is read.

Threads take units column by column: the weights of 32 columns stay in a core's first cache (in its second, where they
are many) while a group of rows passes by, and those of the next columns are on their way into its second. Few rows are
one group, of which threads take columns of their own. Many are an even number of groups: two threads then take rows of
their own, and what one layer has left in a core's caches the next one finds there.

A convolution is a linear layer whose rows overlap: each begins a frame or more behind the one before it. All of them
together take little beside the weights, which are then read from memory once: many rows are still one group.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, fields

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.build import i64, ramp
from intq.kernels.cpu import micro
from intq.kernels.cpu.build import State, keep_last, local, parallel, parallel_region, serial, state, workspace
from intq.kernels.cpu.epilogue import Buffers, Epilogue
from intq.kernels.cpu.lanes import accumulated, narrow, store
from intq.kernels.cpu.plan import Plan
from intq.kernels.cpu.runs import DOUBLE
from intq.kernels.cpu.weights import AHEAD, LINE, Panel, Whole, blocks_of, prefetch

TILE, WIDTH = 16, DOUBLE.width  # most rows of a hardware tile; columns of a unit
SUMS = 2 * TILE * WIDTH  # of a unit
RESIDENT = 2**20  # bytes of A that stay in a core's second cache
FEW = 8  # pairs of tiles: fewer are one group; of rows that overlap as many times more as there are on one another
UNROLLED = 8  # steps between two rows that are rescaled, at most
LINES = 2 * TILE  # of the weights, as bytes, in a step of K, about
SHARERS = (2, 4, 8, 16)  # pairs of tiles that ask for the next weights together


@dataclass(frozen=True)
class _Waiting:
    """The unit whose sums wait: rows of each tile, where they begin, the block of columns, the half of the sums."""

    count: object
    first: object
    second: object
    block: object
    half: object


WAITING = tuple(field.name for field in fields(_Waiting))
STATE = (
    *WAITING,
    "last",  # unit of the thread
    "size",  # pairs of tiles in a group
    "group",  # its first pair of tiles
    "pairs",  # in this group
    "streams",  # of the next weights, of which each unit asks for a line in a step
    "pair",  # number in the group
    "column",  # number of the block of columns
)


def dense(plan: Plan, epilogue: Epilogue, buffers: Buffers) -> None:
    """out (rows, co) of x (rows, k), any number of rows."""
    with products(plan, epilogue, buffers, T.Bind(buffers.x.shape[0] // plan.k)) as product:
        product(buffers.x, i64(0))


@contextmanager
def products(plan: Plan, epilogue: Epilogue, buffers: Buffers, rows):
    """A parallel region with ``product(a, first)``: the ``rows`` output rows from ``first`` on, of the rows in ``a``.

    Hardware tiles share the rows evenly, the last overlapping the one before it.
    """
    pairs = T.Bind((rows + (2 * TILE - 1)) // (2 * TILE))
    tiles = tirx.max(2 * pairs, i64(1))  # of no rows at all one, which nobody multiplies
    height = T.Bind(tirx.max((rows + tiles - 1) // tiles, i64(1)))
    most = max(1, RESIDENT // (2 * TILE * plan.pitch))  # pairs of tiles that share weights
    few = FEW * max(1, plan.k // plan.pitch)
    groups = T.Bind(tirx.Select(pairs < few, i64(1), (pairs + (2 * most - 1)) // (2 * most) * 2))
    with parallel_region():
        micro.amx_configure(height, plan.step)
        with (
            workspace(2 * SUMS, "int32") as sums,
            blocks_of(plan, buffers.weight) as weights,
            state(*STATE) as numbers,
        ):
            keep_last(pairs * len(plan.blocks), numbers)
            numbers["size"] = (pairs + groups - 1) // groups
            yield _Writer(plan, epilogue, buffers, rows, pairs, height, sums, weights, numbers).product
        micro.amx_release()


@dataclass(frozen=True)
class _Writer:
    plan: Plan
    epilogue: Epilogue
    buffers: Buffers
    rows: object
    pairs: object
    height: object
    sums: object  # two units'
    weights: Whole | Panel
    state: State

    def product(self, a, first, barrier: bool = False) -> None:
        """The output rows from ``first`` on, of the rows in ``a``; ``barrier`` as in :func:`parallel`."""
        for name in WAITING:
            self.state[name] = 0
        with parallel(T.Bind(self.pairs * len(self.plan.blocks)), barrier) as unit:
            self.go_to(unit)
            self.unit(a, first)
            with T.If(unit == self.state["last"]), T.Then():
                self.finish()

    def go_to(self, unit) -> None:
        """Set the group, the pair of tiles and the column: a thread's first by division, the others by counting."""
        state, columns = self.state, len(self.plan.blocks)
        with T.If(state["count"] == 0):
            with T.Then():
                group = T.Bind(unit // (state["size"] * columns) * state["size"])
                self._go_to_group(group)
                rest, pairs = T.Bind(unit - group * columns), state["pairs"]
                state["column"], state["pair"] = rest // pairs, rest % pairs
            with T.Else():
                state["pair"] = state["pair"] + 1
                with T.If(state["pair"] == state["pairs"]), T.Then():
                    state["pair"], state["column"] = 0, state["column"] + 1
                    with T.If(state["column"] == columns), T.Then():
                        state["column"] = 0
                        self._go_to_group(state["group"] + state["size"])

    def _go_to_group(self, first) -> None:
        state = self.state
        state["group"], state["pairs"] = first, tirx.min(state["size"], self.pairs - first)
        state["streams"] = self.lines
        for sharers in SHARERS:
            if sharers <= self.lines:
                with T.If(state["pairs"] >= sharers), T.Then():
                    state["streams"] = self.lines // sharers

    @property
    def lines(self) -> int:
        """Of the weights in a step of K, as memory holds them."""
        return LINES // self.plan.per_byte

    def unit(self, a, first) -> None:
        """Multiply the rows of a pair of tiles by a block of columns; rescale the unit before."""
        plan, block, pair = self.plan, self.state["column"], self.state["pair"]
        before = self._waiting()
        constants = self._constants(before)
        place = T.Bind(self.state["group"] + pair)
        pitch, step_bytes = plan.pitch, 2 * 16 * plan.step
        starts = [T.Bind(tirx.min((2 * place + i) * self.height, self.rows - self.height)) for i in range(2)]
        weights = self.weights.block(T.Bind(block * (step_bytes * plan.steps)), block, self.state["pairs"])
        # The pairs together ask for the next block, each in every step for a line of every stream that it is cut into.
        # As many pairs as there are: a core waits for few lines at a time, and those of this block are among them.
        streams = T.Bind(self.state["streams"])
        stream = T.Bind(self.lines * plan.steps // streams * LINE)
        asks = T.Bind(tirx.Select(pair * streams < self.lines, streams, i64(0)))
        memory, next_block = weights.memory(i64(plan.steps * step_bytes))
        ahead = T.Bind(next_block + pair * plan.steps * LINE)
        for i in range(4):
            micro.amx_instruction("tilezero", micro.tile(i))
        for i in range(AHEAD):
            weights.fetch(i64(i), step_bytes, plan.steps)

        def step(number) -> None:
            offset = T.Bind(self._offset(number))
            with serial(asks) as i:
                prefetch(memory, ahead + number * LINE + i * stream)
            weights.fetch(T.Bind(number + AHEAD), step_bytes, plan.steps)
            at = T.Bind(weights.place(number, step_bytes))
            for j in range(2):
                where = T.address_of(weights.buffer[at + j * (16 * plan.step)])
                micro.amx_instruction("tileloadd64", micro.tile(6 + j), where, i64(64))
            for i in range(2):
                where = T.address_of(a[starts[i] * pitch + offset])
                micro.amx_instruction("tileloadd64", micro.tile(4 + i), where, i64(pitch))
                for j in range(2):
                    micro.amx_instruction("tdpbusd", micro.tile(2 * i + j), micro.tile(4 + i), micro.tile(6 + j))

        def row(number) -> None:
            with T.If(number < before.count), T.Then():
                self._row(before, number, constants)

        _interleave(plan.steps, TILE, step, row)
        half = T.Bind(SUMS - before.half)
        for i in range(2):
            for j in range(2):
                where = T.address_of(self.sums[half + (i * TILE * WIDTH + j * 16)])
                micro.amx_instruction("tilestored64", micro.tile(2 * i + j), where, i64(4 * WIDTH))
        for name, value in zip(WAITING, (self.height, *(first + start for start in starts), block, half), strict=True):
            self.state[name] = value

    def _offset(self, step):
        """Where in a row of A a step of K begins."""
        plan = self.plan
        ((count, stride),) = plan.taps or ((1, 0),)
        each = len(plan.starts)
        tap, part = (step % count, step // count) if plan.by_channels else (step // each, step % each)
        start = part * plan.step
        whole = plan.starts[-1] == (each - 1) * plan.step
        return tap * stride + (start if whole else tirx.min(start, i64(plan.starts[-1])))

    def _waiting(self) -> _Waiting:
        return _Waiting(*(self.state[name] for name in WAITING))

    def finish(self) -> None:
        """Rescale the last unit."""
        before = self._waiting()
        constants = self._constants(before)
        with serial(before.count) as number:
            self._row(before, number, constants)

    def _constants(self, unit: _Waiting) -> dict:
        words = self.epilogue.constants.words((DOUBLE,))
        return self.epilogue.load(self.buffers, T.Bind(unit.block * words), DOUBLE, self.plan.isa)

    def _row(self, unit: _Waiting, number, constants: dict) -> None:
        """Row ``number`` of both tiles."""
        at = T.Bind(unit.half + number * WIDTH)
        operands = (accumulated(self.sums, (at, at + TILE * WIDTH), DOUBLE),)
        column = unit.block * WIDTH
        places = tuple(T.Bind((first + number) * self.plan.co + column) for first in (unit.first, unit.second))
        if self.plan.co % WIDTH == 0:
            if self.epilogue.residual:
                operands += (self.epilogue.residual_of(self.buffers.residual, places, DOUBLE),)
            store(self.buffers.out, places, self.epilogue.apply(operands, constants), DOUBLE)
            return
        count = T.Bind(tirx.min(i64(WIDTH), self.plan.co - column))
        if self.epilogue.residual:
            operands += (self._partial_residual(places, count),)
        rows = narrow(self.epilogue.apply(operands, constants), self.epilogue.dtype, DOUBLE)
        for place, value in zip(places, rows, strict=True):
            whole = local(WIDTH, self.epilogue.dtype)
            T.buffer_store(whole, value, [ramp(0, WIDTH)])
            with serial(count) as i:
                T.buffer_store(self.buffers.out, whole[i], [place + i])

    def _partial_residual(self, places, count):
        both = local(2 * WIDTH, self.epilogue.residual)
        for i, place in enumerate(places):
            T.buffer_store(both, tirx.Broadcast(tirx.const(0, self.epilogue.residual), WIDTH), [ramp(i * WIDTH, WIDTH)])
            with serial(count) as j:
                T.buffer_store(both, self.buffers.residual[place + j], [i * WIDTH + j])
        return self.epilogue.residual_of(both, (0, WIDTH), DOUBLE)


def _interleave(steps: int, rows: int, step, row) -> None:
    """``step(i)`` for all steps and ``row(i)`` for at least all rows, evenly mixed."""
    turns = math.gcd(steps, rows)
    if steps // turns > 4:
        turns = min(steps, rows)
    each, more = steps // turns, -(-rows // turns)
    with serial(turns) as turn:
        if each > UNROLLED:  # a row a turn
            with serial(each) as i:
                step(turn * each + i)
            row(turn)
        else:
            for i in range(each):
                step(turn * each + i)
                for j in range(i * more // each, (i + 1) * more // each):
                    row(turn * more + j)
    if turns * each < steps:
        with serial(steps - turns * each) as i:
            step(turns * each + i)
