"""Attention on tensor cores: a block takes some queries of a head through both products and the softmax between them.

Twice over the keys: once for the rows' maxima, once more for the weights and their products with the values. What a
score costs is its weight; to take it again is cheaper than to keep it. Zero points are taken off on the way into
shared memory, so that both products are of int8. Their sums begin at the penalties of masked keys, or the bias.

Weights never leave their thread: of a product's sums, lane l has those of row l / 4 with the keys 2 (l % 4) and
2 (l % 4) + 1 of eight, of the next product's left operand four that lie together. The order of the terms of a sum is
free, and the four are keys 2t, 2t + 1, 2t + 8 and 2t + 9 of sixteen. That is how a transposing load of pairs of bytes
brings the values, too: one byte of each pair makes the right operand of the even channels, the other that of the odd
ones, so that a thread ends with four neighbouring channels. Sums of weights are a product with ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.curves import SEGMENTS
from intq.fixedpoint import reciprocal
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
    when,
)
from intq.kernels.cuda.dialect import CudaDialect, tables
from intq.kernels.cuda.elements import Elements, width_of
from intq.kernels.cuda.heads import WARP_ROWS, Heads, pitch
from intq.kernels.cuda.panel import WORDS, Panel, Place
from intq.kernels.cuda.plan import CHUNK
from intq.kernels.cuda.tensorcore import MATRIX, byte_permute, saturated_bytes
from intq.kernels.reach import SCALARS
from intq.ops.attention import LARGEST, mean_of, share_of, split, weight_of

TOGETHER = 32  # keys whose scores registers hold
ALL = tirx.const(0xFFFFFFFF, "uint32")  # lanes of a warp


class ScoreDialect(CudaDialect):
    """A curve uses its argument again and again: it is computed once."""

    @staticmethod
    def narrow(x: Vector) -> Vector:
        return Vector(tuple(T.Bind(part.astype("int32")) for part in x.clamped().parts), "int32")


class NarrowDialect(ScoreDialect):
    """For sums that are known to be in [0, 2**31) when shifted: they are of 32 bits before they are clamped, and have
    no sign, so that this costs a minimum alone."""

    @staticmethod
    def shift_right(x: Vector, shift) -> Vector:
        shifted = CudaDialect.shift_right(x, shift)
        if shifted.dtype != "int64":
            return shifted
        return Vector(tuple(part.astype("uint32") for part in shifted.parts), "uint32")


class SumDialect(CudaDialect):
    """For sums of weights, at least 255: the quotient and all rests of their reciprocal are int32."""

    @staticmethod
    def reciprocal(d: Vector, bits: int) -> Vector:
        return CudaDialect.wide(reciprocal(CudaDialect, CudaDialect.narrow(d), bits))


def attention(
    name: str, heads: Heads, attrs: Mapping, narrow: bool, base: int, inputs: list, output: tuple
) -> tirx.PrimFunc:
    """The kernel (q, k, v, [bias], [mask], scalars, curve, out). ``inputs``, ``output``: (shape, dtype).

    ``narrow``: see :class:`intq.kernels.reach.Reach`; ``base``: see :class:`intq.kernels.rescale.Rescale`.
    Raises IntqError where heads are too large.
    """
    batch, tokens, _ = output[0]
    names = tuple(dict.fromkeys(d for d in (batch, tokens) if isinstance(d, str)))
    packed = [((len(SCALARS),), "int64"), ((3 * SEGMENTS,), "int32")]

    def write(*given):
        sizes = dict(zip(names, given, strict=False))
        *tensors, scalars, curve, out = given[len(names) :]
        samples, count = (i32(sizes.get(d, d)) for d in (batch, tokens))
        across = ceil_div(count, heads.rows)
        grid = (across, heads.count * heads.parts, samples)
        with blocks(heads.threads, *grid, resident=heads.resident) as (bx, by, sample, thread):
            head, part = T.Bind(quotient(by, heads.parts)), T.Bind(remainder(by, heads.parts))
            place = Place(heads, samples, count, sample, head, part, thread)
            scalar = {key: T.Bind(scalars[i]) for i, key in enumerate(SCALARS)}
            _Writer(place, attrs, narrow, base, tensors, scalar, curve, out).write(T.Bind(bx * heads.rows))

    return kernel(name, [*inputs, *packed, output], write, names)


@dataclass(frozen=True)
class _Writer:
    """The buffers and constants of one kernel, and the code over them."""

    place: Place
    attrs: Mapping
    narrow: bool
    base: int
    tensors: list
    scalar: Mapping
    curve: object
    out: object

    def write(self, first) -> None:
        """For the queries from ``first`` on."""
        place, heads, thread = self.place, self.place.heads, self.place.thread
        (q, k, v), bias, mask = split(self.tensors, self.attrs)
        memory = shared(heads.rows * pitch(heads.chunks) * WORDS)
        queries, keys = (Panel(place, x, heads.chunks, i32(0), memory) for x in (q, k))
        memory = shared(heads.rows * pitch(heads.values) * WORDS)
        values = Panel(place, v, heads.values, T.Bind(place.part * heads.values), memory)
        starts = _Starts(place, _one(mask), self.scalar)
        curve, lane = self._table(), T.Bind(remainder(thread, WARP))
        queries.fetch(first)
        queries.keep()
        barrier()
        row = T.Bind(quotient(thread, WARP) * WARP_ROWS)
        warp = _Warp(self, T.Bind(first + row), lane, keys, values, starts, curve, _one(bias))
        for chunk in range(heads.chunks):
            queries.load(warp.queries, chunk * 2, row + remainder(lane, WARP_ROWS), chunk, 2)
        barrier()
        self._sweep([keys, starts], warp, warp.compare)
        warp.agree()
        self._sweep([keys, values, starts], warp, warp.weigh)
        with T.If(warp.first < place.tokens), T.Then():
            warp.finish(Elements(self.out, place.elements, width_of(heads.size, str(self.out.dtype))))

    def _table(self) -> tuple:
        """The curve, in shared memory: its 32 segments lie in different banks."""
        memory, threads, size = shared(3 * SEGMENTS, "int32"), self.place.heads.threads, 3 * SEGMENTS
        for start in range(0, size, threads):
            at = self.place.thread + start
            with when(at < size if start + threads > size else None):
                store(memory, self.curve[at], at)
        return tables(memory, SEGMENTS, 3)

    def _sweep(self, operands: list, warp: _Warp, body: Callable) -> None:
        """``body(first, key)`` for the keys, TOGETHER at a time: token ``first + key``, at ``key`` in shared memory.

        Those of the next turn are on their way to registers in the meantime.
        """
        tokens, rows = self.place.tokens, self.place.heads.rows
        for operand in operands:
            operand.fetch(i32(0))
        with T.serial(i32(0), ceil_div(tokens, rows)) as number:
            first = T.Bind(number * rows)
            for operand in operands:
                operand.keep()
            barrier()
            with T.If(first + rows < tokens), T.Then():
                for operand in operands:
                    operand.fetch(first + rows)
            with T.If(warp.first < tokens), T.Then():
                here = tirx.min(tokens - first, i32(rows))
                with T.serial(i32(0), ceil_div(here, TOGETHER)) as turn:
                    body(first, T.Bind(turn * TOGETHER))
            barrier()


def _one(found: tuple):
    """The buffer of an input that there may be, or None."""
    return found[0] if found else None


class _Starts:
    """What scores begin at for the keys that are in shared memory, and ones for those there are, in weights' order."""

    def __init__(self, place: Place, mask, scalar: Mapping):
        rows = place.heads.rows
        self.place, self.mask, self.penalties, self.ones = place, mask, shared(rows, "int32"), shared(rows, "uint8")
        self.masked, self.beyond = (T.Bind(0 - scalar[name].astype("int32")) for name in ("masked", "beyond"))
        key = remainder(place.thread, CHUNK)
        order = ((key & 6) << 1) + ((key >> 3) << 1) + (key & 1)  # 2t, 2t + 1, 2t + 8, 2t + 9 lie together
        self.order = T.Bind(quotient(place.thread, CHUNK) * CHUNK + order)
        self.fetched = registers(1, "int32")

    def fetch(self, token) -> None:
        place = self.place
        token = T.Bind(token + place.thread)
        inside = token < place.tokens
        penalty = i32(0)
        if self.mask is not None:
            kept = tirx.if_then_else(
                inside, self.mask[place.sample * place.tokens + token], tirx.const(1, str(self.mask.dtype))
            )
            penalty = tirx.Select(kept == tirx.const(0, str(self.mask.dtype)), self.masked, i32(0))
        store(self.fetched, tirx.Select(inside, penalty, self.beyond), 0)

    def keep(self) -> None:
        with T.If(self.place.thread < self.place.heads.rows), T.Then():
            store(self.penalties, self.fetched[0], self.place.thread)
            store(self.ones, (self.fetched[0] != self.beyond).astype("uint8"), self.order)


class _Warp:
    """16 queries: their sums, eight rows after eight, of each a lane's two neighbours."""

    def __init__(self, writer: _Writer, first, lane, keys: Panel, values: Panel, starts: _Starts, curve, bias):
        self.writer, self.heads, self.first, self.lane = writer, writer.place.heads, first, lane
        self.keys, self.values, self.starts, self.curve, self.bias = keys, values, starts, curve, bias
        self.row, self.pair = T.Bind(first + quotient(lane, 4)), T.Bind(remainder(lane, 4) * 2)
        self.queries = registers(self.heads.chunks * 2)  # chunk by chunk, eight rows after eight
        self.scores = registers(2 * TOGETHER // MATRIX * 2)
        self.maxima = registers(2, "int32")
        self.multiplier = shared(1, "int32")
        with T.If(writer.place.thread == 0), T.Then():
            store(self.multiplier, writer.scalar["score_multiplier"].astype("int32"), 0)
        self.sums = registers(2 * self.heads.values * 2 * 2)  # of even channels, then of odd ones
        self.totals = registers(2 * 2)  # of weights, in each of a lane's columns
        for row in range(2):
            store(self.maxima, i32(-(2**31)), row)
        for memory in (self.sums, self.totals):
            with unrolled(memory.shape[0]) as i:
                store(memory, tirx.const(0, "uint32"), i)

    def compare(self, first, key) -> None:
        """The rows' maxima so far."""
        self._score(first, key)
        count = TOGETHER // MATRIX * 2
        with unrolled(2) as row, unrolled(count) as i:
            store(self.maxima, tirx.max(self.maxima[row], _signed(self.scores[row * count + i])), row)

    def agree(self) -> None:
        """The rows' maxima, of the four lanes that share a row."""
        for row in range(2):
            for flip in (1, 2):
                other = T.Bind(tirx.call_pure_extern("int32", "__shfl_xor_sync", ALL, self.maxima[row], i32(flip)))
                store(self.maxima, tirx.max(self.maxima[row], other), row)

    def weigh(self, first, key) -> None:
        """Weights, their sums and their products with the values."""
        self._score(first, key)
        halves = TOGETHER // CHUNK
        multiplier = T.Bind(self.multiplier[0])  # here: of a loop's own int32 nvcc knows that 32 bits are enough
        weights = registers(halves * 2)  # a word's four keys are the order of starts.ones
        with unrolled(2) as row, unrolled(halves) as half:
            place = (row * halves + half) * 4
            scores = [_signed(self.scores[place + i]) for i in range(4)]
            saturated_bytes(weights, half * 2 + row, self._weights(row, scores, multiplier).parts)
        ones = view(self.starts.ones, "uint32", self.heads.rows // 4)
        alive, loaded, right = registers(halves), registers(halves * 2), registers(halves * 2)
        with unrolled(halves) as half:
            store(alive, ones[quotient(key, 4) + half * 4 + remainder(self.lane, 4)], half)
        self._multiply(self.totals, 1, 0, weights, halves, alive)
        with unrolled(self.heads.values) as chunk:
            self.values.load(loaded, 0, key + self.lane, chunk, 4, transposed=True)
            for odd, selector in enumerate((0x6420, 0x7531)):
                for half in range(halves):
                    low, high = loaded[half * 2], loaded[half * 2 + 1]
                    store(right, byte_permute(low, high, selector), odd * halves + half)
            for odd in range(2):
                self._multiply(self.sums, self.heads.values * 2, chunk * 2 + odd, weights, halves, right, odd * halves)

    def finish(self, out: Elements) -> None:
        """Divide by the sums of weights, and store."""
        heads, writer, place = self.heads, self.writer, self.writer.place
        dtype = "int32" if writer.base else "int64"
        width, shares = out.width, self._shares()
        channel = T.Bind(remainder(self.lane, 4) * 4 + place.part * (heads.values * CHUNK))
        with unrolled(2) as half:
            row = T.Bind(self.row + half * MATRIX)
            with T.If(row < place.tokens), T.Then(), unrolled(heads.values) as chunk:
                pairs = (half * heads.values + chunk) * 4
                sums = [_signed(self.sums[pairs + i]) for i in (0, 2, 1, 3)]
                at = T.Bind(channel + chunk * CHUNK)
                for i in range(0, 4, width):
                    constants = self._constants(width, {"offset": "int64", "shift": dtype})
                    products, share = Vector(tuple(sums[i : i + width]), "int32"), _all(shares[half], width, "int32")
                    mean = mean_of(CudaDialect, products, share, constants, writer.attrs)
                    with when(at + i < heads.size if heads.size % (heads.values * CHUNK) else None):
                        out.store(place.element(row, at + i), mean)

    def _score(self, first, key) -> None:
        """Scores of the warp's queries with the keys from ``key`` on in shared memory."""
        heads, eights = self.heads, TOGETHER // MATRIX
        with unrolled(eights) as eight:
            column = T.Bind(key + eight * MATRIX + self.pair)
            start = T.Bind(self.starts.penalties[ramp(quotient(column, 2) * 2, 2)])
            for i in range(2):
                for row in range(2):
                    more = tirx.Shuffle([start], [i32(i)])
                    if self.bias is not None:
                        more = more + self._bias(self.row + row * MATRIX, first + column + i)
                    store(self.scores, more.astype("uint32"), (row * eights + eight) * 2 + i)
        right = registers(heads.deep * eights)
        with unrolled(heads.chunks // heads.deep) as step:
            for part in range(heads.deep):
                self.keys.load(right, part * eights, key + self.lane, step * heads.deep + part, eights)
            left = [
                self.queries[(step * heads.deep + part) * 2 + row] for part in range(heads.deep) for row in range(2)
            ]
            for eight in range(eights):
                b = [right[part * eights + eight] for part in range(heads.deep)]
                self._instruction(self.scores, eights, eight, left, b)

    def _bias(self, query, key):
        """Of what is not there, that of the last."""
        place, last = self.writer.place, self.writer.place.tokens - 1
        head = place.sample * self.heads.count + place.head
        return self.bias[(head * place.tokens + tirx.min(query, last)) * place.tokens + tirx.min(key, last)]

    def _multiply(self, sums, tiles: int, tile, left, chunks: int, right, at: int = 0) -> None:
        """``sums[tile]`` += chunks of ``left`` times those of ``right`` from ``at`` on."""
        deep = self.heads.deep
        for step in range(0, chunks, deep):
            a = [left[(step + part) * 2 + row] for part in range(deep) for row in range(2)]
            self._instruction(sums, tiles, tile, a, [right[at + step + part] for part in range(deep)], "u8")

    def _instruction(self, sums, tiles: int, tile, a: list, b: list, left: str = "s8") -> None:
        (m, n, k), high = self.heads.arch.int8, self.heads.high
        product = getattr(getattr(T.ptx.mma.sync.aligned, f"m{m}n{n}k{k}").row.col.s32, left).s8.s32
        for first in range(0, 2, high):
            rows = range(first, first + high)
            d = [sums[(row * tiles + tile) * 2 + i] for row in rows for i in range(2)]
            T.evaluate(product(*d, *(word for i, word in enumerate(a) if i % 2 in rows), *b, *d))

    def _weights(self, row, scores: list, multiplier) -> Vector:
        """Of four scores, not yet clamped to bytes."""
        dialect = NarrowDialect if self.writer.narrow else ScoreDialect
        constants = self._constants(4, {"score_offset": "int64", "score_shift": "int64"})
        constants |= {"score_multiplier": _all(multiplier, 4, "int32"), "curve": self.curve}
        below = _all(self.maxima[row], 4, "int32") - Vector(tuple(scores), "int32")
        weights = weight_of(dialect, below, constants, self.writer.attrs)
        assert weights.bounds == (0, LARGEST)  # which is what bytes saturate to
        return weights

    def _shares(self):
        """Of both rows, the multiplier of their products: even lanes compute the first, odd ones the second."""
        odd = T.Bind(self.lane & 1)
        total = T.Bind(_signed(tirx.Select(odd == 0, self.totals[0], self.totals[2])))
        constants = self._constants(1, {"multiplier": "int32"})
        share = T.Bind(share_of(SumDialect, Vector((total,), "int32"), constants, self.writer.attrs).parts[0])
        shares = registers(2, "int32")
        for row in range(2):
            source = (self.lane & 28) + row
            store(shares, tirx.call_pure_extern("int32", "__shfl_sync", ALL, share, source), row)
        return shares

    def _constants(self, count: int, types: Mapping[str, str]) -> dict[str, Vector]:
        return {name: _all(self.writer.scalar[name].astype(dtype), count, dtype) for name, dtype in types.items()}


def _signed(word):
    """A register of a product's sums."""
    return word.astype("int32")


def _all(value, count: int, dtype: str) -> Vector:
    """A number for each of so many elements."""
    return Vector((value,) * count, dtype)
