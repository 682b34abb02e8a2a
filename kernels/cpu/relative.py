"""What attention's scores gain by how far key and query are apart: products of queries with the vectors of distances.

The products of 16 queries with all distances that they meet are one matrix product; the distances of query r's keys
are a row of it, from the place on that the query's number says.
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import TvmDialect
from intq.kernels.cpu.build import i64, kernel, parallel, parallel_region, ramp, serial, workspace
from intq.kernels.cpu.constants import scalars, uniform
from intq.kernels.cpu.heads import ROWS, TILE, Distances
from intq.kernels.cpu.lanes import accumulated, store
from intq.kernels.cpu.micro import amx_configure, amx_release
from intq.kernels.cpu.packer import operand
from intq.kernels.cpu.product import Matrix, product
from intq.kernels.cpu.runs import Run, runs
from intq.kernels.pack import Rescale

GROUP = 4  # tiles of distances whose products are taken together


def relative(name: str, distances: Distances, body, attrs, rescale: Rescale, source, output) -> tirx.PrimFunc:
    """The kernel (q, table, first, constants, out)."""
    batch, _, tokens, _ = output[0]
    names = tuple(dict.fromkeys(d for d in (batch, tokens) if isinstance(d, str)))
    arguments = [
        source,
        ((distances.count * distances.columns * distances.depth,), distances.layout.right),
        ((distances.count * distances.columns,), "int32"),
        ((len(rescale.fields) + 1,), "int64"),
        output,
    ]

    def write(*given):
        sizes = dict(zip(names, given, strict=False))
        q, table, first, packed, out = given[len(names) :]
        samples, s = (i64(sizes.get(d, d)) for d in (batch, tokens))
        with parallel_region():
            constants = scalars(packed, rescale)
            _write(distances, body, attrs, rescale, constants, (q, table, first, out), samples, s)

    return kernel(name, arguments, write, names)


def _write(distances: Distances, body, attrs, rescale: Rescale, constants, buffers, samples, s) -> None:
    heads, amx = distances, distances.isa.name == "amx"
    q, table, first, out = buffers
    width = GROUP * TILE
    if amx:
        amx_configure(ROWS, heads.layout.depth)
    with (
        workspace(ROWS * heads.depth, heads.layout.left) as queries,
        workspace(ROWS * heads.pitch, "int32") as sums,
    ):
        with serial(ROWS * heads.depth) as i:  # zeros stay behind the head's channels
            T.buffer_store(queries, tirx.const(0, heads.layout.left), [i])
        blocks = T.Bind((s + (ROWS - 1)) // ROWS)
        with parallel(samples * heads.count * blocks) as unit:
            pair, row = T.Bind(unit // blocks), T.Bind(unit % blocks * ROWS)
            sample, head = T.Bind(pair // heads.count), T.Bind(pair % heads.count)
            with serial(ROWS) as r:
                at = T.Bind((sample * s + tirx.min(row + r, s - 1)) * heads.channels + head * heads.size)
                for run in runs(heads.size, (), 64):
                    x = operand(q[ramp(at + run.start, run.width)], heads.layout.left)
                    T.buffer_store(queries, x, [ramp(r * heads.depth + run.start, run.width)])
            # the column of the last query's distance to key 0: a multiple of a tile, for the table has room before
            column = T.Bind(head * heads.columns + (heads.zero - (ROWS - 1)) - row)
            with serial((s + (ROWS - 1) + (width - 1)) // width) as group:
                here = T.Bind(column + group * width)
                product(
                    heads.isa.name,
                    Matrix(queries, i64(0), heads.depth),
                    Matrix(table, here * heads.depth, heads.depth),
                    GROUP,
                    Matrix(sums, group * width, heads.pitch),
                    Matrix(first, here, 0),
                )
            with serial(tirx.min(i64(ROWS), s - row)) as r:
                target = T.Bind((pair * s + row + r) * s)
                begin = T.Bind(r * heads.pitch + (ROWS - 1) - r)
                for run, count in ((Run(0, TILE, False), s // TILE), (Run(0, 1, False), s % TILE)):
                    with serial(count) as i:
                        key = T.Bind(i * TILE if run.width > 1 else s // TILE * TILE + i)
                        values = uniform(constants, run, rescale.base)
                        result = body(TvmDialect, (accumulated(sums, begin + key, run),), values, attrs)
                        store(out, T.Bind(target + key), result, run)
    if amx:
        amx_release()
