"""What attention's scores gain by how far key and query are apart: products of queries with the vectors of distances.

A block takes QUERIES x KEYS of a head. The distances that these meet are QUERIES + KEYS - 1 neighbouring rows of the
table. They and the queries pass through shared memory, at most STEP channels at a time; a thread multiplies words of
four channels (dp4a) of several queries and keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import Vector
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
    shared,
    store,
    unrolled,
    view,
)
from intq.kernels.cuda.dialect import CudaDialect
from intq.kernels.cuda.elements import Constants, Elements
from intq.kernels.cuda.plan import CHUNK, STEP
from intq.ops.attention import ZERO_POINT

QUERIES, KEYS = 32, 64  # of a block
WARPS = 8
EACH = QUERIES // WARPS  # queries of a warp, one after another; a lane has keys WARP apart
WORDS = CHUNK // 4

Tensor = tuple[tuple, str]


def relative(
    name: str, body: Callable, attrs: Mapping, constants: Constants, table: Tensor, source: Tensor, out: Tensor
) -> tirx.PrimFunc:
    """The kernel (q, table, constants, out). ``table``: (heads, distances, channels with zeros behind them)."""
    heads, distances, depth = table[0]
    channels = source[0][-1]
    size, step = channels // heads, min(STEP, depth)
    pitch = (step // CHUNK) | 1  # chunks from row to row in shared memory: odd, so that eight rows are in all banks
    names = tuple(dict.fromkeys(d for d in out[0] if isinstance(d, str)))

    def write(*given):
        sizes, (q, rows, packed, target) = dict(zip(names, given, strict=False)), given[len(names) :]
        n, _, tokens, _ = (sizes.get(d, d) for d in out[0])
        with blocks(WARPS * WARP, ceil_div(tokens, KEYS), ceil_div(tokens, QUERIES), n * heads) as (bx, by, bz, thread):
            warp, lane = T.Bind(quotient(thread, WARP)), T.Bind(remainder(thread, WARP))
            sample, head = T.Bind(quotient(bz, heads)), T.Bind(remainder(bz, heads))
            key, query = T.Bind(bx * KEYS), T.Bind(by * QUERIES)
            left, right = shared(QUERIES * pitch * WORDS), shared((QUERIES + KEYS) * pitch * WORDS)
            sums = registers(EACH * (KEYS // WARP), "int32")
            with unrolled(EACH * (KEYS // WARP)) as i:
                store(sums, i32(0), i)
            nearest = T.Bind(key - query + (distances // 2 - (QUERIES - 1)))  # the last query's with the first key
            with T.serial(i32(0), i32(depth // step)) as part:
                barrier()
                _queries(part, sample, head, query, tokens, q, left, thread)
                _distances(part, head, nearest, rows, right, thread)
                barrier()
                with T.serial(i32(0), i32(step // CHUNK)) as chunk:
                    _products(sums, left, right, chunk, warp * EACH, lane)
            values = constants.load(packed, [i32(0)])
            with unrolled(EACH) as i, unrolled(KEYS // WARP) as j:
                row, column = T.Bind(query + warp * EACH + i), T.Bind(key + j * WARP + lane)
                with T.If(tirx.all(row < tokens, column < tokens)), T.Then():
                    total = Vector((T.Bind(sums[i * (KEYS // WARP) + j]),), "int32")
                    result = body(CudaDialect, (total,), values, attrs)
                    place = T.Bind((bz * tokens + row) * tokens + column)
                    Elements(target, n * heads * tokens * tokens, 1).store(place, result)

    def _queries(part, sample, head, query, tokens, q, left, thread) -> None:
        """A step of the block's queries, without their zero point; the last query again where there are no more."""
        together = size % 4 == 0
        with T.serial(i32(0), i32(ceil_div(QUERIES * step // 4, WARPS * WARP))) as turn:
            number = T.Bind(turn * (WARPS * WARP) + thread)
            row, place = T.Bind(quotient(number, step // 4)), T.Bind(remainder(number, step // 4))
            with T.If(row < QUERIES), T.Then():
                channel = T.Bind(part * step + place * 4)
                origin = T.Bind((sample * tokens + tirx.min(query + row, tokens - 1)) * channels + head * size)
                if together:
                    words, zero = view(q, "uint32", quotient(q.shape[0], 4)), tirx.const(0, "uint32")
                    word = T.Bind(tirx.if_then_else(channel < size, words[quotient(origin + channel, 4)], zero))
                else:
                    word = tirx.const(0, "uint32")
                    for i in range(4):
                        there = tirx.if_then_else(channel + i < size, q[origin + channel + i], tirx.const(0, "uint8"))
                        word = word | (T.Bind(there).astype("uint32") << tirx.const(8 * i, "uint32"))
                store(left, word ^ tirx.const(ZERO_POINT * 0x01010101, "uint32"), row * (pitch * WORDS) + place)

    def _distances(part, head, nearest, rows, right, thread) -> None:
        """The same of the distances; those that nobody meets are others."""
        chunks = step // CHUNK
        words = view(rows, "uint32", heads * distances * depth // 4)
        with T.serial(i32(0), i32(ceil_div((QUERIES + KEYS - 1) * chunks, WARPS * WARP))) as turn:
            number = T.Bind(turn * (WARPS * WARP) + thread)
            row, chunk = T.Bind(quotient(number, chunks)), T.Bind(remainder(number, chunks))
            with T.If(row < QUERIES + KEYS - 1), T.Then():
                distance = T.Bind(tirx.max(tirx.min(nearest + row, i32(distances - 1)), i32(0)))
                first = T.Bind((head * distances + distance) * (depth // CHUNK) + part * chunks + chunk)
                store(right, words[ramp(first * WORDS, WORDS)], ramp((row * pitch + chunk) * WORDS, WORDS))

    def _products(sums, left, right, chunk, first, lane) -> None:
        """sums += a chunk of the warp's queries times those of the distances to the lane's keys."""

        def words(memory, row):
            return T.Bind(memory[ramp((row * pitch + chunk) * WORDS, WORDS)])

        for i in range(EACH):
            a = words(left, first + i)
            for j in range(KEYS // WARP):
                b = words(right, lane + (j * WARP + QUERIES - 1 - i) - first)
                at = i * (KEYS // WARP) + j
                for word in range(WORDS):
                    pair = (tirx.op.reinterpret("int32", tirx.Shuffle([v], [i32(word)])) for v in (a, b))
                    store(sums, tirx.call_pure_extern("int32", "__dp4a", *pair, sums[at]), at)

    return kernel(name, [source, table, ((constants.size,), "int32"), out], write, names)
