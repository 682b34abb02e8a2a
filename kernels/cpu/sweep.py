"""Loops over tensors cut into runs of channels."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

from tvm.tirx.script.builder import ir as T

from intq.kernels.build import i64
from intq.kernels.cpu.build import parallel, serial
from intq.kernels.cpu.constants import Channelwise
from intq.kernels.cpu.isa import Isa
from intq.kernels.cpu.runs import Run, runs

SEGMENT = 8192  # elements of a long row that one thread takes at a time


def over_runs(row: list[Run], body: Callable) -> None:
    """``body(start, run)`` for each run of a row; runs of one width are a loop."""
    for width, alike in groupby(row, lambda run: run.width):
        alike = list(alike)
        if len(alike) > 1:
            with serial(len(alike)) as i:
                body(i * width + alike[0].start, alike[0])
        else:
            body(i64(alike[0].start), alike[0])


def words_before(layout: Channelwise, row: tuple[Run, ...], start, run: Run):
    """Where the constants of the run at ``start`` begin, see :func:`over_runs`: those of a whole row lie in order."""
    number = (start - run.start) // run.width
    first = layout.words(tuple(r for r in row if r.start < run.start))
    return T.Bind(layout.words((run,)) * number + first)


def flat_runs(batch, length: int, isa: Isa, body: Callable) -> None:
    """``body(index, run)`` over ``batch`` x ``length`` elements in parallel."""
    row_runs(batch, length, isa, SEGMENT, lambda row, start, run: body(row * length + start, run))


def row_runs(batch, length: int, isa: Isa, segment: int, body: Callable) -> None:
    """``body(row, start, run)`` over ``batch`` rows in parallel, ``segment`` elements at a time."""
    count = -(-length // segment)
    rest = length - (count - 1) * segment
    with parallel(batch * count) as unit:
        row, first = unit // count, unit % count * segment

        def piece(size: int) -> None:
            over_runs(runs(size, isa.quads, isa.natural), lambda start, run: body(row, first + start, run))

        if count == 1:
            piece(rest)
            return
        with T.If(unit % count < count - 1):
            with T.Then():
                piece(segment)
            with T.Else():
                piece(rest)
