"""Linear layers on AMX: the rescale of one tile of sums runs while the next tile is multiplied.

A unit of work is 32 columns by two hardware tiles of rows. The tile unit multiplies on its own once it is told to; the
vector units meanwhile rescale the sums of the unit before, a few rows after each step of K, so that neither waits.
Half of the sums' memory is being filled while the other is read.

Threads take units column by column: the weights of 32 columns stay in a core's first cache while a group of rows
passes by, and those of the next columns are on their way into its second. Few rows are one group, of which threads take
columns of their own. Many are an even number of groups: two threads then take rows of their own, and what one layer has
left in a core's caches the next one finds there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.cpu import micro
from intq.kernels.cpu.build import (
    State,
    i64,
    keep_last,
    local,
    parallel,
    parallel_region,
    ramp,
    serial,
    state,
    workspace,
)
from intq.kernels.cpu.epilogue import Buffers, Epilogue
from intq.kernels.cpu.lanes import accumulated, narrow, store
from intq.kernels.cpu.plan import Plan
from intq.kernels.cpu.runs import DOUBLE

TILE, WIDTH = 16, DOUBLE.width  # most rows of a hardware tile; columns of a unit
SUMS = 2 * TILE * WIDTH  # of a unit
RESIDENT = 2**20  # bytes of A that stay in a core's second cache
FEW = 8  # pairs of tiles: fewer are one group
LINE = 64  # bytes of a cache line
STREAMS, SHARERS = 8, 4  # parts of a block of weights asked for at once; pairs of tiles that ask at most


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
    "lines",  # of the next weights that each unit asks for in a step
    "pair",  # number in the group
    "column",  # number of the block of columns
)


def dense(plan: Plan, epilogue: Epilogue, buffers: Buffers) -> None:
    """out (rows, co) of x (rows, k), any number of rows: the hardware tiles share them evenly, the last overlapping."""
    k, columns = plan.k, len(plan.blocks)
    rows = T.Bind(buffers.x.shape[0] // k)
    pairs = T.Bind((rows + (2 * TILE - 1)) // (2 * TILE))
    height = T.Bind((rows + 2 * pairs - 1) // (2 * pairs))
    most = max(1, RESIDENT // (2 * TILE * k))  # pairs of tiles that share weights
    groups = T.Bind(tirx.Select(pairs < FEW, i64(1), (pairs + (2 * most - 1)) // (2 * most) * 2))
    with parallel_region():
        micro.amx_configure(height, plan.step)
        with workspace(2 * SUMS, "int32") as sums, state(*STATE) as numbers:
            for name in WAITING:
                numbers[name] = 0
            units = T.Bind(pairs * columns)
            keep_last(units, numbers)
            numbers["size"] = (pairs + groups - 1) // groups
            writer = _Writer(plan, epilogue, buffers, rows, pairs, height, sums, numbers)
            with parallel(units) as unit:
                writer.go_to(unit)
                writer.unit()
                with T.If(unit == numbers["last"]), T.Then():
                    writer.finish()
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
    state: State

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
        state["lines"] = (SHARERS - 1) // state["pairs"] + 1

    def unit(self) -> None:
        """Multiply the rows of a pair of tiles by a block of columns; rescale the unit before."""
        plan, block, pair = self.plan, self.state["column"], self.state["pair"]
        before = self._waiting()
        constants = self._constants(before)
        place = T.Bind(self.state["group"] + pair)
        k, step_bytes = plan.k, 2 * 16 * plan.step
        starts = [T.Bind(tirx.min((2 * place + i) * self.height, self.rows - self.height)) for i in range(2)]
        weights = T.Bind(block * (step_bytes * plan.steps))
        # the first pairs together ask for the next block, each for its part of eight streams: memory answers many
        # orderly streams faster than one
        stream = plan.steps * step_bytes // STREAMS
        each = T.Bind(tirx.Select(pair < SHARERS, self.state["lines"], i64(0)))  # lines of a stream in a step
        ahead = T.Bind(weights + plan.steps * step_bytes + pair * plan.steps * each * LINE)
        a, w = self.buffers.x, self.buffers.weight
        for i in range(4):
            micro.amx_instruction("tilezero", micro.tile(i))

        def step(number) -> None:
            offset = number * plan.step
            if plan.starts[-1] != (plan.steps - 1) * plan.step:
                offset = tirx.min(offset, i64(plan.starts[-1]))
            at = T.Bind(weights + number * step_bytes)
            with serial(each) as line:
                first = T.Bind(ahead + (number * each + line) * LINE)
                for i in range(STREAMS):
                    micro.prefetch(w, first + i * stream)
            for j in range(2):
                micro.amx_instruction(
                    "tileloadd64", micro.tile(6 + j), T.address_of(w[at + j * (16 * plan.step)]), i64(64)
                )
            for i in range(2):
                micro.amx_instruction("tileloadd64", micro.tile(4 + i), T.address_of(a[starts[i] * k + offset]), i64(k))
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
        for name, value in zip(WAITING, (self.height, *starts, block, half), strict=True):
            self.state[name] = value

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
        for i in range(each):
            step(turn * each + i)
            for j in range(i * more // each, (i + 1) * more // each):
                row(turn * more + j)
    if turns * each < steps:
        with serial(steps - turns * each) as i:
            step(turns * each + i)
