"""LayerNorm: a warp for each row's sums, a lane for each row's inverse deviation, then all threads by channel.

Square root and reciprocal are some two hundred instructions one after another: the rows of a block take them together,
in the lanes of one warp. The constants of a channel are loaded once for all rows of a block.
"""

from __future__ import annotations

from collections.abc import Mapping

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import Vector
from intq.kernels.build import sample_size
from intq.kernels.cuda.build import (
    WARP,
    barrier,
    blocks,
    ceil_div,
    i32,
    kernel,
    quotient,
    registers,
    remainder,
    shared,
    store,
)
from intq.kernels.cuda.dialect import CudaDialect, HeldDialect, everywhere
from intq.kernels.cuda.elements import Constants, Elements, width_of
from intq.kernels.cuda.reduce import warp_sum
from intq.ops.rows import inverse_deviation, normalised

ROWS = range(4, 9)  # of a block

Tensor = tuple[tuple, str]


def layernorm(name: str, attrs: Mapping, constants: Constants, source: Tensor, out: Tensor) -> tirx.PrimFunc:
    """The kernel (x, constants, epsilon (1,), out)."""
    channels = out[0][-1]
    width = width_of(channels, source[1], out[1])
    pieces = channels // width
    rows_ = rows_of_block(pieces)
    threads = rows_ * WARP

    def write(n, x, packed, epsilon, target):
        rows = n * (sample_size(out[0]) // channels)
        with blocks(threads, ceil_div(rows, rows_)) as (bx, _, _, thread):
            totals, squares, inverses = (shared(rows_, dtype) for dtype in ("int32", "int64", "int32"))
            first = T.Bind(bx * rows_)
            given, ends = Elements(x, rows * channels, width), Elements(target, rows * channels, width)

            warp, lane = T.Bind(quotient(thread, WARP)), T.Bind(remainder(thread, WARP))
            row = T.Bind(tirx.min(first + warp, rows - 1))  # beyond the last row there is nothing to sum up
            found = sums_of_row(given, row, channels, lane)
            with T.If(lane.equal(0)), T.Then():
                for memory, value in zip((totals, squares), found, strict=True):
                    store(memory, value, warp)
            barrier()
            with T.If(thread < rows_), T.Then():
                sums = (
                    Vector((T.Bind(memory[thread]),), dtype)
                    for memory, dtype in ((totals, "int32"), (squares, "int64"))
                )
                margin = {"epsilon": Vector((T.Bind(epsilon[i32(0)]),), "int64")}
                store(inverses, inverse_deviation(HeldDialect, *sums, margin, attrs).parts[0], thread)
            barrier()
            with T.serial(i32(0), i32(ceil_div(pieces, threads))) as turn:
                piece = T.Bind(turn * threads + thread)
                with T.If(piece < pieces), T.Then():
                    channel = T.Bind(piece * width)
                    values = constants.load(packed, [channel + i for i in range(width)])
                    with T.serial(i32(0), tirx.min(i32(rows_), rows - first)) as r:
                        at = T.Bind((first + r) * channels + channel)
                        total, inverse = (everywhere(T.Bind(memory[r]), width) for memory in (totals, inverses))
                        result = normalised(CudaDialect, given.load(at), total, inverse, values, attrs)
                        ends.store(at, result)

    return kernel(name, [source, ((constants.size,), "int32"), ((1,), "int64"), out], write)


def rows_of_block(pieces: int) -> int:
    """As many as leave the fewest threads, a warp for each row, without a piece of the channels."""
    return min(ROWS, key=lambda rows: ceil_div(pieces, rows * WARP) * rows)


def sums_of_row(given: Elements, row, channels: int, lane) -> tuple:
    """(sum of x, int32; sum of x**2, int64) of a row, by a warp."""
    total, squares = registers(1, "int32"), registers(1, "int64")
    for memory in (total, squares):
        store(memory, tirx.const(0, str(memory.dtype)), 0)
    width, pieces = given.width, channels // given.width
    with T.serial(i32(0), i32(ceil_div(pieces, WARP))) as turn:
        piece = T.Bind(turn * WARP + lane)
        with T.If(piece < pieces), T.Then():
            for part in given.load(T.Bind(row * channels + piece * width)).parts:
                part = T.Bind(part)
                store(total, total[0] + part, 0)
                store(squares, squares[0] + part.astype("int64") * part.astype("int64"), 0)
    return warp_sum(total[0]), warp_sum(squares[0])
