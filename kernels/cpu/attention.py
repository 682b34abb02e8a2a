"""Attention in one pass: a thread takes 16 queries of a head through both products and the softmax between them.

Keys and values are packed once for each head and thread. Scores begin at the mask's penalties, so that padding costs
nothing; the row's maximum goes into the rescale's offset:
    (max - a) * multiplier + offset  =  a * -multiplier + (max * multiplier + offset)
A row's weights are bytes that the second product takes as they are; it is divided by their sum when it is stored.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import reduce

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.fixedpoint import reciprocal
from intq.kernels.bodies import TvmDialect, Vector, reinterpret, splat, vector_type
from intq.kernels.bodies import lanes as lanes_of
from intq.kernels.cpu.build import i64, kernel, local, parallel, parallel_region, ramp, serial, workspace
from intq.kernels.cpu.constants import uniform
from intq.kernels.cpu.heads import ROWS, SCALARS, SLOTS, TILE, Heads, Layout
from intq.kernels.cpu.lanes import CURVE, TABLE, narrow, store, tables
from intq.kernels.cpu.micro import amx_configure, amx_instruction, amx_release, tile
from intq.kernels.cpu.product import Matrix, multiply_add, product
from intq.kernels.cpu.runs import Run, runs
from intq.kernels.cpu.shuffle import fold, shuffle, transpose
from intq.kernels.cpu.words import WIDTH, NarrowDialect, WordDialect, Words, word_tables
from intq.ops.attention import ZERO_POINT, mean_of, share_of, weight_of


class SumDialect(TvmDialect):
    """For sums of weights, at least 255: the quotient and all rests of their reciprocal are int32."""

    @staticmethod
    def reciprocal(d: Vector, bits: int) -> Vector:
        return TvmDialect.wide(reciprocal(TvmDialect, TvmDialect.narrow(d), bits))


def attention(name: str, heads: Heads, attrs, arithmetic: str, base: int, inputs, output) -> tirx.PrimFunc:
    """The kernel (q, k, v, [mask], scalars, curve, out). ``inputs``, ``output``: (shape, dtype).

    ``arithmetic``: of :func:`intq.kernels.cpu.heads.arithmetic`; ``base``: see :class:`intq.kernels.pack.Rescale`.
    """
    if arithmetic == "words" and heads.block.width != WIDTH:
        arithmetic = "narrow"
    batch, tokens, _ = output[0]
    names = tuple(dict.fromkeys(d for d in (batch, tokens) if isinstance(d, str)))

    def body(*arguments):
        sizes = dict(zip(names, arguments, strict=False))
        q, k, v, *mask, scalars, curve, out = arguments[len(names) :]
        with parallel_region():
            _Writer(
                heads,
                attrs,
                _DIALECTS[arithmetic],
                base,
                i64(sizes.get(batch, batch)),
                i64(sizes.get(tokens, tokens)),
                {"q": q, "k": k, "v": v, "mask": mask[0] if mask else None, "out": out},
                {key: T.Bind(scalars[i64(i)]) for i, key in enumerate(SCALARS)},
                word_tables(curve) if arithmetic == "words" else tables(curve, heads.isa),
            ).write()

    packed = [((len(SCALARS),), "int64"), ((CURVE * TABLE,), "int32")]
    return kernel(name, [*inputs, *packed, output], body, names)


_DIALECTS = {"words": WordDialect, "narrow": NarrowDialect, "wide": TvmDialect}


@dataclass(frozen=True)
class _Scratch:
    """A thread's memory. What is packed of a head stays until the thread comes to the next one."""

    state: object  # (3,) the head that is packed; where it begins and the first query of the unit that waits
    keys: object  # tile by tile of 16 keys, all of depth
    values: object  # tile by tile of 16 channels, all keys
    penalties: object  # (keys,) what scores begin at, for the sample
    first: object  # (keys,) the same for the head, corrected for the zero point of q where it is not taken off
    alive: object  # (keys,) all ones where there is a key, in the order of weights
    queries: object  # (16, depth)
    panel: object  # (16, depth) of keys
    scores: object  # (16, pitch)
    weights: object  # (16, keys)
    sums: object  # (16, columns) of the second product
    maxima: object  # (16, lanes)
    totals: object  # (16, lanes) of weights
    rows: object  # (16,) the offset of the scores' rescale, then the share


@dataclass(frozen=True)
class _Writer:
    """The sizes, buffers and constants of one kernel, and the code over them."""

    heads: Heads
    attrs: dict
    score_dialect: type
    base: int
    batch: object
    tokens: object
    buffers: dict
    scalar: dict
    curve: tuple

    @property
    def layout(self) -> Layout:
        return self.heads.layout

    @property
    def keys(self):
        """Keys in whole blocks."""
        block = self.layout.block
        return (self.tokens + (block - 1)) // block * block

    def write(self) -> None:
        """Units of 16 queries. A unit is finished under the first product of the next, on which vectors wait."""
        heads, s, keys = self.heads, self.tokens, T.Bind(self.keys)
        with self._scratch() as memory:
            for i in range(3):
                T.buffer_store(memory.state, i64(-1), [i64(i)])
            for panel in (memory.queries, memory.panel):  # zeros stay behind the head's channels
                with serial(ROWS * heads.depth) as i:
                    T.buffer_store(panel, tirx.const(0, str(panel.dtype)), [i])
            blocks = T.Bind((s + (ROWS - 1)) // ROWS)
            with parallel(self.batch * heads.count * blocks) as unit:
                head, row = T.Bind(unit // blocks), T.Bind(unit % blocks * ROWS)
                sample = T.Bind(head // heads.count)
                origin = T.Bind(sample * s * heads.channels + head % heads.count * heads.size)
                with T.If(memory.state[i64(0)] != head), T.Then():
                    with T.If(memory.state[i64(0)] // heads.count != sample), T.Then():
                        self._penalties(memory, sample, keys)
                    self._pack_keys(memory, origin, keys)
                    self._pack_values(memory, origin, keys)
                self._copy_rows(memory.queries, "q", origin, row)
                self._scores_to_weights(memory, keys)
                weights, values = Matrix(memory.weights, i64(0), keys), Matrix(memory.values, i64(0), keys)
                sums = Matrix(memory.sums, i64(0), heads.columns)
                product(heads.isa.name, weights, values, heads.columns // TILE, sums)
                for i, value in enumerate((head, origin, row)):
                    T.buffer_store(memory.state, value, [i64(i)])
            self._finish(memory)

    @contextmanager
    def _scratch(self):
        heads, layout, keys = self.heads, self.layout, self.heads.keys
        sizes = {
            "state": (3, "int64"),
            "keys": (keys * heads.depth, layout.right),
            "values": (keys * heads.columns, layout.right),
            "penalties": (keys, "int32"),
            "alive": (keys, layout.left),
            "queries": (ROWS * heads.depth, layout.left),
            "panel": (ROWS * heads.depth, layout.right),
            "scores": (
                ROWS * heads.pitch + 1,
                "int32",
            ),  # odd lanes are read as even ones, one place on; so are those of sums
            "weights": (ROWS * keys, layout.left),
            "sums": (ROWS * heads.columns + 1, "int32"),
            "maxima": (ROWS * layout.lanes, "int32"),
            "totals": (ROWS * layout.lanes, "int32"),
            "rows": (ROWS, "int64"),
        }
        if layout.corrected:
            sizes["first"] = (keys, "int32")
        with ExitStack() as stack:
            if heads.isa.name == "amx":
                amx_configure(ROWS, layout.depth)
            taken = {key: stack.enter_context(workspace(*size)) for key, size in sizes.items()}
            yield _Scratch(**{"first": taken["penalties"]} | taken)
            if heads.isa.name == "amx":
                amx_release()

    # ---- once a head -------------------------------------------------------------------------------------------

    def _penalties(self, memory, sample, keys) -> None:
        """Where the scores of a sample begin: 0, a masked key's penalty, or that of a key which there is not."""
        s, mask, layout, run = self.tokens, self.buffers["mask"], self.layout, self.heads.block
        with serial(keys) as key:
            own = tirx.const(0, "int64")
            if mask is not None:
                own = (mask[sample * s + tirx.min(key, s - 1)].astype("int64") - 1) * self.scalar["masked"]
            penalty = tirx.Select(key < s, own, 0 - self.scalar["beyond"])
            T.buffer_store(memory.penalties, penalty.astype("int32"), [key])
        with serial(keys // run.width) as block:
            parts = []
            for i in range(run.parts):
                key = ramp(T.Bind(block * run.width + i * run.part_lanes), run.part_lanes)
                all_ones = {"uint8": 255, "int16": -1}[layout.left]
                there = key < splat(s, "int64", run.part_lanes)
                parts.append(tirx.Select(there, *(splat(x, "int32", run.part_lanes) for x in (all_ones, 0))))
            store(memory.alive, block * run.width, Vector(tuple(parts), "int32", run.quad), run)

    def _copy_rows(self, panel, name: str, origin, first) -> None:
        """16 tokens of a head as a product's operand; beyond the last token it is taken again."""
        heads, source = self.heads, self.buffers[name]
        with serial(ROWS) as r:
            at = T.Bind(origin + tirx.min(first + r, self.tokens - 1) * heads.channels)
            for run in runs(heads.size, (), 64):
                x = _operand(source[ramp(at + run.start, run.width)], str(panel.dtype))
                T.buffer_store(panel, x, [ramp(r * heads.depth + run.start, run.width)])

    def _pack_keys(self, memory, origin, keys) -> None:
        layout, depth = self.layout, self.heads.depth
        lanes, pair, words = layout.lanes, layout.pair, depth // layout.pair
        with serial(keys // TILE) as t:
            self._copy_rows(memory.panel, "k", origin, t * TILE)
            tile = T.Bind(t * (TILE * depth))
            if pair == 1:
                with serial(depth) as k, serial(TILE) as key:
                    T.buffer_store(memory.keys, memory.panel[key * depth + k], [tile + k * TILE + key])
                return
            with serial(words // lanes) as block:
                for key in range(0, TILE, lanes):
                    places = [(key + i) * depth + block * (lanes * pair) for i in range(lanes)]
                    rows = [reinterpret(memory.panel[ramp(at, lanes * pair)], f"int32x{lanes}") for at in places]
                    for i, word in enumerate(transpose(rows)):
                        place = tile + ((block * lanes + i) * TILE + key) * pair
                        packed = reinterpret(word, vector_type(layout.right, lanes * pair))
                        T.buffer_store(memory.keys, packed, [ramp(place, lanes * pair)])
            if layout.corrected:  # sum (q - 128) k = sum q k - 128 sum k
                total, all_lanes = local(lanes, "int32"), ramp(0, lanes)
                T.buffer_store(total, splat(0, "int32", lanes), [all_lanes])
                with serial(words) as k:
                    zero_points = splat(ZERO_POINT, layout.left, lanes * pair)
                    terms = memory.keys[ramp(tile + k * (TILE * pair), lanes * pair)]
                    T.buffer_store(total, multiply_add(layout, total[all_lanes], zero_points, terms), [all_lanes])
                here = ramp(t * TILE, lanes)
                T.buffer_store(memory.first, memory.penalties[here] - total[all_lanes], [here])

    def _pack_values(self, memory, origin, keys) -> None:
        """Keys in the order of weights. Those that there are not have no weight: any value will do."""
        heads, block, pair = self.heads, self.heads.block, self.layout.pair
        with serial(keys // block.width) as b, serial(block.width // pair) as x:
            key = T.Bind(b * block.width + x * pair)
            at = [T.Bind(origin + tirx.min(key + i, self.tokens - 1) * heads.channels) for i in range(pair)]
            group = T.Bind((b * block.width + _position(block, x * pair)) // pair)
            for run in heads.runs:
                self._pack_columns(memory, at, run, group, keys)

    def _pack_columns(self, memory, rows, run: Run, group, keys) -> None:
        """A run of channels of the tokens at ``rows``: their elements side by side, channel after channel."""
        layout, source = self.layout, self.buffers["v"]

        def place(column):
            tile, lane = (run.start + column) // TILE, (run.start + column) % TILE
            return tile * TILE * keys + (group * TILE + lane) * layout.pair

        if run.quad or layout.pair == 1:
            loaded = [T.Bind(_operand(source[ramp(at + run.start, run.width)], layout.right)) for at in rows]
            for column, packed in _interleaved(loaded, run):
                T.buffer_store(memory.values, packed, [ramp(place(column), lanes_of(packed))])
            return
        with serial(run.width) as column:
            for i, at in enumerate(rows):
                element = _operand(source[at + (run.start + column)], layout.right)
                T.buffer_store(memory.values, element, [place(column) + i])

    # ---- 16 queries --------------------------------------------------------------------------------------------

    def _scores_to_weights(self, memory, keys) -> None:
        """Once over the keys for the rows' maxima, from the last block to the first, and once more for the weights.

        The scores of as many blocks stay as the first cache has room for beside keys and values; where the product is
        cheap, those of the others are taken again, each in the place of one that has become weights.
        """
        slots, blocks = self.heads.slots, T.Bind(keys // self.layout.block)
        self._fill(memory.maxima, np.iinfo(np.int32).min)
        with serial(blocks) as i:
            self._scores(memory, blocks - 1 - i)
            with T.If(i > 0), T.Then():  # of the block before: the one just written is still on its way to memory
                self._maxima(memory, blocks - i)
        self._finish(memory)
        self._maxima(memory, i64(0))
        self._offsets(memory)
        self._fill(memory.totals, 0)
        with serial(blocks) as block:
            self._weights(memory, block, keys)
            if self.heads.isa.name != "amx":
                return
            with T.If(block + slots < blocks):
                with T.Then():
                    self._scores(memory, block + slots)
                with T.Else():  # the tile unit sleeps after 400 ns without a product, and takes 300 to wake
                    amx_instruction("tdpbusd", tile(5), tile(4), tile(6))

    def _fill(self, lines, value: int) -> None:
        width = self.layout.lanes
        with serial(ROWS) as r:
            T.buffer_store(lines, splat(value, "int32", width), [ramp(r * width, width)])

    def _slot(self, block):
        """Where the scores of a block begin in each of their rows."""
        held = block & (SLOTS - 1) if self.heads.slots == SLOTS else block  # (TVM gets % of a sum wrong)
        return held * self.layout.block

    def _scores(self, memory, block) -> None:
        heads, width = self.heads, self.layout.block
        a = Matrix(memory.queries, i64(0), heads.depth)
        b = Matrix(memory.keys, block * (width * heads.depth), heads.depth)
        first, out = Matrix(memory.first, block * width, 0), Matrix(memory.scores, self._slot(block), heads.pitch)
        product(heads.isa.name, a, b, width // TILE, out, first)

    def _maxima(self, memory, block) -> None:
        """Of each row, a maximum in every lane."""
        lanes = self.layout.lanes
        at = T.Bind(self._slot(block))
        with serial(ROWS) as r:
            line = ramp(r * lanes, lanes)
            scores = [
                memory.scores[ramp(at + r * self.heads.pitch + i, lanes)] for i in range(0, self.layout.block, lanes)
            ]
            T.buffer_store(memory.maxima, reduce(tirx.max, scores, memory.maxima[line]), [line])

    def _offsets(self, memory) -> None:
        """The offset of each row's rescale, from its maximum."""
        lanes = self.layout.lanes
        for r in range(0, ROWS, lanes):
            top = fold([memory.maxima[ramp((r + i) * lanes, lanes)] for i in range(lanes)], tirx.max)
            multiplier, offset = (splat(self.scalar[f"score_{x}"], "int64", lanes) for x in ("multiplier", "offset"))
            T.buffer_store(memory.rows, top.astype(vector_type("int64", lanes)) * multiplier + offset, [ramp(r, lanes)])

    def _weights(self, memory, block, keys) -> None:
        """The weights of a block, and their sums in every lane."""
        layout, run = self.layout, self.heads.block
        width = layout.lanes * layout.pair
        slot, minus = T.Bind(self._slot(block)), T.Bind(0 - self.scalar["score_multiplier"])
        alive = T.Bind(memory.alive[ramp(block * run.width, run.width)])
        with serial(ROWS) as r:
            scalars = {
                "score_multiplier": minus,
                "score_offset": T.Bind(memory.rows[r]),
                "shift": self.scalar["score_shift"],
            }
            constants = uniform(scalars, run, 0)
            constants |= {"score_shift": constants["shift"], "curve": self.curve}
            scores = _read_twice(memory.scores, slot + r * self.heads.pitch, run)
            weight = weight_of(self.score_dialect, scores, constants, self.attrs)
            whole = weight.bytes() if isinstance(weight, Words) else narrow(weight, layout.left, run)[0]
            at, line = T.Bind(r * keys + block * run.width), ramp(r * layout.lanes, layout.lanes)
            T.buffer_store(memory.weights, whole & alive, [ramp(at, run.width)])
            total = memory.totals[line]
            for i in range(0, run.width, width):
                more = memory.weights[ramp(at + i, width)]
                total = multiply_add(layout, total, more, splat(1, layout.right, width))
            T.buffer_store(memory.totals, total, [line])

    def _finish(self, memory) -> None:
        """Divide the unit that waits by its sums of weights, and store it."""
        with T.If(memory.state[i64(0)] >= 0), T.Then():
            origin, row = T.Bind(memory.state[i64(1)]), T.Bind(memory.state[i64(2)])
            self._shares(memory)
            with serial(tirx.min(i64(ROWS), self.tokens - row)) as r:
                at = T.Bind(origin + (row + r) * self.heads.channels)
                self._finish_row(memory, r, at)

    def _shares(self, memory) -> None:
        """Of each row, the multiplier of its products."""
        lanes = self.layout.lanes
        for r in range(0, ROWS, lanes):
            totals = fold([memory.totals[ramp((r + i) * lanes, lanes)] for i in range(lanes)], lambda a, b: a + b)
            multiplier = Vector((splat(self.scalar["multiplier"], "int64", lanes),), "int64")
            share = share_of(SumDialect, Vector((totals,), "int32"), {"multiplier": multiplier}, self.attrs)
            T.buffer_store(memory.rows, TvmDialect.wide(share).parts[0], [ramp(r, lanes)])

    def _finish_row(self, memory, r, at) -> None:
        scalars = {"share": T.Bind(memory.rows[r]), "offset": self.scalar["offset"], "shift": self.scalar["shift"]}
        for run in self.heads.runs:
            constants = uniform(scalars, run, self.base)
            products = _read_twice(memory.sums, r * self.heads.columns + run.start, run)
            mean = mean_of(TvmDialect, products, constants["share"], constants, self.attrs)
            store(self.buffers["out"], T.Bind(at + run.start), mean, run)


def _operand(x, dtype: str):
    """Loaded bytes as a product takes them: without their zero point, unless they stay unsigned."""
    count = lanes_of(x)
    if dtype == "int8":
        return reinterpret(x ^ splat(ZERO_POINT, "uint8", count), vector_type("int8", count))
    if dtype == "int16":
        return x.astype(vector_type("int16", count)) - splat(ZERO_POINT, "int16", count)
    return x


def _position(run: Run, key):
    """Where packing puts a block's key, the first of those that a product takes together: see Run.order."""
    if not run.quad:
        return key
    part, lane = key // run.part_lanes, key % run.part_lanes
    return lane // 4 * 16 + part * 4 + lane % 4


def _interleaved(rows: list, run: Run):
    """(column, elements): rows of a run side by side, channel after channel in the run's order."""
    if len(rows) == 1:
        yield 0, rows[0]
        return
    parts = run.order.reshape(run.parts, -1)
    if len(rows) == 2:
        for i, channels in enumerate(parts):
            yield i * run.part_lanes, shuffle(rows, np.stack([channels, channels + run.width], axis=1).ravel())
        return
    for half in range(2):  # of each 128-bit lane, as vpunpcklbw and vpunpckhbw take it
        taken = _halves(run.width, half, 16)
        words = [T.Bind(reinterpret(shuffle(x, taken), f"int16x{run.width // 2}")) for x in (rows[:2], rows[2:])]
        for quarter in range(2):
            four = shuffle(words, _halves(run.width // 2, quarter, 8))
            yield (2 * half + quarter) * run.part_lanes, reinterpret(four, f"int8x{run.width}")


def _halves(count: int, half: int, lane: int) -> np.ndarray:
    """Of two vectors of ``count`` elements: from each ``lane`` elements one half, element by element in turn."""
    taken = np.arange(count).reshape(-1, 2, lane // 2)[:, half].ravel()
    return np.stack([taken, taken + count], axis=1).ravel()


def _read_twice(sums, at, run: Run) -> Vector:
    """int32 sums as (even, odd) pairs: the odd ones are even one place on, which costs a load but no shift."""
    if not run.quad:
        return Vector((sums[ramp(at, run.width)],), "int32")
    lanes, parts = run.part_lanes, []
    for i in range(run.parts):
        parts += [reinterpret(sums[ramp(at + i * lanes + odd, lanes)], f"int64x{lanes // 2}") for odd in range(2)]
    return Vector(tuple(parts), "int64", True)
