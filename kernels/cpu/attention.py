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
from intq.kernels.build import i64, kernel, ramp
from intq.kernels.cpu.build import State, keep_last, parallel, parallel_region, serial, state, workspace
from intq.kernels.cpu.constants import uniform
from intq.kernels.cpu.heads import ROWS, SLOTS, TILE, Heads, Layout
from intq.kernels.cpu.lanes import CURVE, TABLE, narrow, store, tables
from intq.kernels.cpu.micro import amx_configure, amx_instruction, amx_release, tile
from intq.kernels.cpu.packer import Packer
from intq.kernels.cpu.product import Matrix, multiply_add, product
from intq.kernels.cpu.runs import Run
from intq.kernels.cpu.shuffle import fold
from intq.kernels.cpu.words import WIDTH, NarrowDialect, WordDialect, Words, word_tables
from intq.kernels.reach import SCALARS
from intq.ops.attention import mean_of, share_of, split, weight_of

STATE = (
    "head",  # that is packed, and of the unit that waits; none is -1
    "origin",  # where that begins
    "row",  # the first query of the unit that waits
    "last",  # unit of the thread
    "unit",  # sample and head of the unit at hand, and its first query
    "query",
)


class SumDialect(TvmDialect):
    """For sums of weights, at least 255: the quotient and all rests of their reciprocal are int32."""

    @staticmethod
    def reciprocal(d: Vector, bits: int) -> Vector:
        return TvmDialect.wide(reciprocal(TvmDialect, TvmDialect.narrow(d), bits))


def attention(name: str, heads: Heads, attrs, arithmetic: str, base: int, inputs, output) -> tirx.PrimFunc:
    """The kernel (q, k, v, [bias], [mask], scalars, curve, out). ``inputs``, ``output``: (shape, dtype).

    ``arithmetic``: of :func:`intq.kernels.cpu.heads.arithmetic`; ``base``: see :class:`intq.kernels.rescale.Rescale`.
    """
    if arithmetic == "words" and heads.block.width != WIDTH:
        arithmetic = "narrow"
    batch, tokens, _ = output[0]
    names = tuple(dict.fromkeys(d for d in (batch, tokens) if isinstance(d, str)))

    def body(*arguments):
        sizes = dict(zip(names, arguments, strict=False))
        *given, scalars, curve, out = arguments[len(names) :]
        (q, k, v), bias, mask = split(given, attrs)
        with parallel_region():
            _Writer(
                heads,
                attrs,
                _DIALECTS[arithmetic],
                base,
                i64(sizes.get(batch, batch)),
                i64(sizes.get(tokens, tokens)),
                {"q": q, "k": k, "v": v, "out": out, "bias": _one(bias), "mask": _one(mask)},
                {key: T.Bind(scalars[i64(i)]) for i, key in enumerate(SCALARS)},
                word_tables(curve) if arithmetic == "words" else tables(curve, heads.isa),
            ).write()

    packed = [((len(SCALARS),), "int64"), ((CURVE * TABLE,), "int32")]
    return kernel(name, [*inputs, *packed, output], body, names)


def _one(found: tuple):
    """The buffer of an input that there may be, or None."""
    return found[0] if found else None


_DIALECTS = {"words": WordDialect, "narrow": NarrowDialect, "wide": TvmDialect}


@dataclass(frozen=True)
class _Scratch:
    """A thread's memory. What is packed of a head stays until the thread comes to the next one."""

    state: State
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
        packer = Packer(heads, s, keys)
        with self._scratch() as memory:
            memory.state["head"] = -1
            for panel in (memory.queries, memory.panel):  # zeros stay behind the head's channels
                with serial(ROWS * heads.depth) as i:
                    T.buffer_store(panel, tirx.const(0, str(panel.dtype)), [i])
            blocks = T.Bind((s + (ROWS - 1)) // ROWS)
            units = T.Bind(self.batch * heads.count * blocks)
            keep_last(units, memory.state)
            with parallel(units) as unit:
                head, row = T.Bind(unit // blocks), T.Bind(unit % blocks * ROWS)
                sample = T.Bind(head // heads.count)
                origin = T.Bind(sample * s * heads.channels + head % heads.count * heads.size)
                with T.If(memory.state["head"] != head), T.Then():
                    with T.If(memory.state["head"] // heads.count != sample), T.Then():
                        packer.penalties(memory, self.buffers["mask"], self.scalar, sample)
                    packer.pack_keys(memory, self.buffers["k"], origin)
                    packer.pack_values(memory, self.buffers["v"], origin)
                packer.copy_rows(memory.queries, self.buffers["q"], origin, row)
                memory.state["unit"], memory.state["query"] = head, row
                self._scores_to_weights(memory, keys)
                weights, values = Matrix(memory.weights, i64(0), keys), Matrix(memory.values, i64(0), keys)
                sums = Matrix(memory.sums, i64(0), heads.columns)
                product(heads.isa.name, weights, values, heads.columns // TILE, sums)
                memory.state["head"], memory.state["origin"], memory.state["row"] = head, origin, row
                with T.If(unit == memory.state["last"]), T.Then():
                    self._finish(memory)

    @contextmanager
    def _scratch(self):
        heads, layout, keys = self.heads, self.layout, self.heads.keys
        sizes = {
            "keys": (keys * heads.depth, layout.right),
            "values": (keys * heads.columns, layout.right),
            "penalties": (keys, "int32"),
            "alive": (keys, layout.left),
            "queries": (ROWS * heads.depth, layout.left),
            "panel": (ROWS * heads.depth, layout.right),
            "scores": (ROWS * heads.pitch + 1, "int32"),  # one more: see _read_twice
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
            numbers = stack.enter_context(state(*STATE))
            yield _Scratch(numbers, **{"first": taken["penalties"]} | taken)
            if heads.isa.name == "amx":
                amx_release()

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
                    amx_instruction("tdpbusd", tile(0), tile(4), tile(6))

    def _fill(self, lines, value: int) -> None:
        width = self.layout.lanes
        with serial(ROWS) as r:
            T.buffer_store(lines, splat(value, "int32", width), [ramp(r * width, width)])

    def _slot(self, block):
        """Where the scores of a block begin in each of their rows."""
        held = block & (SLOTS - 1) if self.heads.slots == SLOTS else block  # % of such a sum TVM simplifies wrongly
        return held * self.layout.block

    def _scores(self, memory, block) -> None:
        heads, width = self.heads, self.layout.block
        a = Matrix(memory.queries, i64(0), heads.depth)
        b = Matrix(memory.keys, block * (width * heads.depth), heads.depth)
        first, out = Matrix(memory.first, block * width, 0), Matrix(memory.scores, self._slot(block), heads.pitch)
        if self.buffers["bias"] is not None:
            self._bias(memory, block)
            first = out
        product(heads.isa.name, a, b, width // TILE, out, first)

    def _bias(self, memory, block) -> None:
        """What the scores of a block begin with, where each query and key have a bias of their own."""
        lanes, width, s, bias = self.layout.lanes, self.layout.block, self.tokens, self.buffers["bias"]
        slot, key = T.Bind(self._slot(block)), T.Bind(block * width)
        with serial(ROWS) as r:
            row = T.Bind((memory.state["unit"] * s + tirx.min(memory.state["query"] + r, s - 1)) * s)
            to = T.Bind(slot + r * self.heads.pitch)
            with T.If(key + width <= s):
                with T.Then():
                    for i in range(0, width, lanes):
                        more = bias[ramp(row + key + i, lanes)] + memory.first[ramp(key + i, lanes)]
                        T.buffer_store(memory.scores, more, [ramp(to + i, lanes)])
                with T.Else(), serial(width) as i:
                    own = bias[row + tirx.min(key + i, s - 1)]
                    T.buffer_store(memory.scores, own + memory.first[key + i], [to + i])

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
        with T.If(memory.state["head"] >= 0), T.Then():
            origin, row = memory.state["origin"], memory.state["row"]
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


def _read_twice(sums, at, run: Run) -> Vector:
    """int32 sums as (even, odd) pairs: the odd ones are even one place on, which costs a load but no shift."""
    if not run.quad:
        return Vector((sums[ramp(at, run.width)],), "int32")
    lanes, parts = run.part_lanes, []
    for i in range(run.parts):
        parts += [reinterpret(sums[ramp(at + i * lanes + odd, lanes)], f"int64x{lanes // 2}") for odd in range(2)]
    return Vector(tuple(parts), "int64", True)
