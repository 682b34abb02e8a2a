"""The sum of a word's, its position's and its segment's row: a warp for each token, which counts what comes before."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.cuda.build import WARP, blocks, ceil_div, i32, kernel, quotient, registers, remainder, store
from intq.kernels.cuda.dialect import CudaDialect, everywhere
from intq.kernels.cuda.elements import Constants, Elements, width_of
from intq.kernels.cuda.reduce import warp_sum
from intq.kernels.rescale import EMBEDDING_TABLES

TOKENS = 4  # of a block
MOST = 8  # channels that a lane takes at a time

Tensor = tuple[tuple, str]


def embedding(
    name: str, body: Callable, attrs: Mapping, constants: Constants, tables: list[Tensor], source: Tensor, out: Tensor
) -> tirx.PrimFunc:
    """The kernel (ids, word, word_multiplier, position, segment, constants, out)."""
    channels, names = out[0][-1], tuple(dict.fromkeys(d for d in source[0] if isinstance(d, str)))
    width = width_of(channels, *(dtype for shape, dtype in (*tables, out) if len(shape) > 1), most=MOST)
    pieces = channels // width
    rows = {table: shape[0] for table, (shape, _) in zip(EMBEDDING_TABLES, tables, strict=True)}

    def write(*given):
        sizes, (ids, *arrays, packed, target) = dict(zip(names, given, strict=False)), given[len(names) :]
        n, s = (sizes.get(d, d) for d in source[0])
        buffers = dict(zip(EMBEDDING_TABLES, arrays, strict=True))
        with blocks(TOKENS * WARP, ceil_div(s, TOKENS), n) as (bx, sentence, _, thread):
            warp, lane = T.Bind(quotient(thread, WARP)), T.Bind(remainder(thread, WARP))
            index = T.Bind(bx * TOKENS + warp)
            with T.If(index < s), T.Then():
                first = T.Bind(sentence * s)
                token = T.Bind(ids[first + index])
                places = {"word": token, **_rows(attrs, rows["segment"], ids, first, index, token, lane)}
                multiplier = T.Bind(buffers["word_multiplier"][token])
                values = {
                    key: everywhere(value.parts[0], width) for key, value in constants.load(packed, [i32(0)]).items()
                }
                with T.serial(i32(0), i32(ceil_div(pieces, WARP))) as turn:
                    piece = T.Bind(turn * WARP + lane)
                    with T.If(piece < pieces), T.Then():
                        channel = T.Bind(piece * width)
                        word, position, segment = (
                            Elements(buffers[table], rows[table] * channels, width).load(
                                T.Bind(places[table] * channels + channel)
                            )
                            for table in ("word", "position", "segment")
                        )
                        operands = word, everywhere(multiplier, width), position, segment
                        result = body(CudaDialect, operands, values, attrs)
                        at = T.Bind((first + index) * channels + channel)
                        Elements(target, n * s * channels, width).store(at, result)

    return kernel(name, [source, *tables, ((constants.size,), "int32"), out], write, names)


def _rows(attrs: Mapping, segments: int, ids, first, index, token, lane) -> dict:
    """The rows of the position's and the segment's table, see :mod:`intq.ops.embedding`, of a sentence's token."""
    counted, separated = attrs["positions"] == "counted", segments > 1
    position, segment = index, i32(0)
    if counted or separated:
        tokens, separators = registers(1, "int32"), registers(1, "int32")
        for memory in (tokens, separators):
            store(memory, i32(0), 0)
        with T.serial(i32(0), ceil_div(index + 1, WARP)) as turn:
            before = T.Bind(turn * WARP + lane)
            with T.If(before <= index), T.Then():
                found = T.Bind(ids[first + before])
                store(tokens, tokens[0] + (found != attrs["padding"]).astype("int32"), 0)
                apart = tirx.all(found.equal(attrs["separator"]), before < index)
                store(separators, separators[0] + apart.astype("int32"), 0)
        if counted:
            padding = attrs["padding"]
            number = warp_sum(tokens[0])
            position = T.Bind(tirx.Select(token != padding, number + padding, i32(padding)))
        if separated:
            segment = T.Bind(tirx.min(warp_sum(separators[0]), i32(segments - 1)))
    return {"position": position, "segment": segment}
