"""What attention's scores gain by how far key and query are apart: products of queries with the vectors of distances.

The products of 16 queries with all distances that they meet are one matrix product; the distances of query r's keys
are a row of it, from the place on that the query's number says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import TvmDialect
from intq.kernels.build import i64, kernel, symbolic
from intq.kernels.cpu.build import parallel, parallel_region, serial, workspace
from intq.kernels.cpu.constants import scalars, uniform
from intq.kernels.cpu.heads import GROUP, ROWS, TILE, Distances
from intq.kernels.cpu.lanes import accumulated, store
from intq.kernels.cpu.micro import amx_configure, amx_release
from intq.kernels.cpu.packer import copy_rows
from intq.kernels.cpu.product import Matrix, product
from intq.kernels.cpu.runs import Run
from intq.kernels.rescale import Rescale


def relative(name: str, distances: Distances, body, attrs, rescale: Rescale, source, output) -> tirx.PrimFunc:
    """The kernel (q, table, first, constants, out). ``source``, ``output``: (shape, dtype)."""
    heads, (batch, _, tokens, _) = distances.heads, output[0]
    names = tuple(dict.fromkeys(symbolic(output[0])))
    columns = heads.count * distances.columns
    packed = [((columns * heads.depth,), heads.layout.right), ((columns,), "int32")]

    def write(*given):
        sizes = dict(zip(names, given, strict=False))
        q, table, first, constants, out = given[len(names) :]
        with parallel_region():
            scalar = scalars(constants, rescale)
            writer = _Writer(distances, body, attrs, rescale.base, scalar, q, table, first, out)
            writer.write(i64(sizes.get(batch, batch)), i64(sizes.get(tokens, tokens)))

    return kernel(name, [source, *packed, ((len(rescale.fields) + 1,), "int64"), output], write, names)


@dataclass(frozen=True)
class _Writer:
    """The buffers and constants of one kernel, and the code over them."""

    distances: Distances
    body: Callable
    attrs: Mapping
    base: int
    scalar: dict
    q: object
    table: object
    first: object
    out: object

    def write(self, samples, tokens) -> None:
        """Units of 16 queries of a head."""
        heads, amx = self.distances.heads, self.distances.heads.isa.name == "amx"
        if amx:
            amx_configure(ROWS, heads.layout.depth)
        with (
            workspace(ROWS * heads.depth, heads.layout.left) as queries,
            workspace(ROWS * self.distances.pitch, "int32") as sums,
        ):
            with serial(ROWS * heads.depth) as i:  # zeros stay behind the head's channels
                T.buffer_store(queries, tirx.const(0, heads.layout.left), [i])
            blocks = T.Bind((tokens + (ROWS - 1)) // ROWS)
            with parallel(samples * heads.count * blocks) as unit:
                pair, row = T.Bind(unit // blocks), T.Bind(unit % blocks * ROWS)  # sample and head, its first query
                sample, head = T.Bind(pair // heads.count), T.Bind(pair % heads.count)
                origin = T.Bind(sample * tokens * heads.channels + head * heads.size)
                copy_rows(heads, tokens, queries, self.q, origin, row)
                self._products(queries, sums, tokens, head, row)
                with serial(tirx.min(i64(ROWS), tokens - row)) as r:
                    self._store(sums, r, T.Bind((pair * tokens + row + r) * tokens), tokens)
        if amx:
            amx_release()

    def _products(self, queries, sums, tokens, head, row) -> None:
        """Of 16 queries with every distance that one of them meets, from that of the last query to key 0 on."""
        heads, width = self.distances.heads, GROUP * TILE
        column = T.Bind(head * self.distances.columns + (self.distances.zero - (ROWS - 1)) - row)
        with serial((tokens + (ROWS - 1) + (width - 1)) // width) as group:
            here = T.Bind(column + group * width)
            product(
                heads.isa.name,
                Matrix(queries, i64(0), heads.depth),
                Matrix(self.table, here * heads.depth, heads.depth),
                GROUP,
                Matrix(sums, group * width, self.distances.pitch),
                Matrix(self.first, here, 0),
            )

    def _store(self, sums, r, target, tokens) -> None:
        """The keys of query ``r``, rescaled: its row of sums from the place of its own distance to key 0 on."""
        begin = T.Bind(r * self.distances.pitch + (ROWS - 1) - r)
        for run, count in ((Run(0, TILE, False), tokens // TILE), (Run(0, 1, False), tokens % TILE)):
            with serial(count) as i:
                key = T.Bind(i * TILE if run.width > 1 else tokens // TILE * TILE + i)
                values = uniform(self.scalar, run, self.base)
                result = self.body(TvmDialect, (accumulated(sums, begin + key, run),), values, self.attrs)
                store(self.out, T.Bind(target + key), result, run)
