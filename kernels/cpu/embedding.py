"""The sum of a word's, its position's and its segment's row for every token, whose positions are counted on the way."""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import TvmDialect
from intq.kernels.build import i64, kernel
from intq.kernels.cpu.build import local, parallel, parallel_region, serial
from intq.kernels.cpu.constants import everywhere, scalars, uniform
from intq.kernels.cpu.isa import Isa
from intq.kernels.cpu.lanes import load, store
from intq.kernels.cpu.runs import Run, runs
from intq.kernels.cpu.sweep import over_runs
from intq.kernels.rescale import EMBEDDING_TABLES, Rescale

TOKENS = 8  # of a sentence that one thread takes at a time


def embedding(name: str, isa: Isa, body, attrs, rescale: Rescale, tables, source, output) -> tirx.PrimFunc:
    """The kernel (ids, word, word_multiplier, position, segment, constants, out); ``tables``: their (shape, dtype)."""
    channels = output[0][-1]
    last_segment = tables[EMBEDDING_TABLES.index("segment")][0][0] - 1
    counts_tokens, counts_separators = attrs["positions"] == "counted", last_segment > 0

    def write(n, s, ids, word, word_multiplier, position, segment, packed, out):
        with parallel_region():
            constants = scalars(packed, rescale)
            pieces = T.Bind((s + (TOKENS - 1)) // TOKENS)
            with parallel(n * pieces) as piece:
                sentence, first = T.Bind(piece // pieces * s), T.Bind(piece % pieces * TOKENS)
                seen = local(2, "int64")  # tokens and separators before this one
                for i in range(2):
                    T.buffer_store(seen, i64(0), [i64(i)])

                def count(token) -> None:
                    for i, counts, found in [
                        (0, counts_tokens, token != attrs["padding"]),
                        (1, counts_separators, token.equal(attrs["separator"])),
                    ]:
                        if counts:
                            T.buffer_store(seen, seen[i64(i)] + found.astype("int64"), [i64(i)])

                with serial(first) as i:
                    count(ids[sentence + i])
                with serial(tirx.min(s - first, i64(TOKENS))) as i:
                    at, token = T.Bind(sentence + first + i), T.Bind(ids[sentence + first + i])
                    before = T.Bind(tirx.min(seen[i64(1)], i64(last_segment)))
                    count(token)
                    place = T.Bind(_position(attrs, token, first + i, seen[i64(0)]))
                    row = T.Bind(token.astype("int64"))
                    multiplier = T.Bind(word_multiplier[row])

                    def add(start, run: Run):
                        operands = (
                            load(word, T.Bind(row * channels + start), run),
                            everywhere(multiplier, run),
                            load(position, T.Bind(place * channels + start), run),
                            load(segment, T.Bind(before * channels + start), run),
                        )
                        values = uniform(constants, run, rescale.base)
                        store(out, T.Bind(at * channels + start), body(TvmDialect, operands, values, attrs), run)

                    over_runs(runs(channels, isa.quads, isa.natural), add)

    arguments = [source, *tables, ((len(rescale.fields) + 1,), "int64"), output]
    return kernel(name, arguments, write, source[0])


def _position(attrs, token, index, counted):
    """See :mod:`intq.ops.embedding`; ``counted``: tokens that are not padding up to this one."""
    if attrs["positions"] == "index":
        return index
    padding = i64(attrs["padding"])
    return tirx.Select(token != attrs["padding"], padding + counted, padding)
