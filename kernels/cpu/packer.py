"""Keys and values of a head in the order of products, and where its scores begin: once for each head and thread."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import Vector, reinterpret, splat, vector_type
from intq.kernels.bodies import lanes as lanes_of
from intq.kernels.build import ramp
from intq.kernels.cpu.build import local, serial
from intq.kernels.cpu.heads import ROWS, TILE, Heads
from intq.kernels.cpu.lanes import store
from intq.kernels.cpu.product import multiply_add
from intq.kernels.cpu.runs import Run, runs
from intq.kernels.cpu.shuffle import shuffle, transpose
from intq.ops.attention import ZERO_POINT


@dataclass(frozen=True)
class Packer:
    """``tokens`` of a sample; ``keys``: the same in whole blocks. ``memory``: a thread's, see attention.py.

    A head begins at ``origin`` of its tensor.
    """

    heads: Heads
    tokens: object
    keys: object

    def penalties(self, memory, mask, scalar, sample) -> None:
        """Where the scores of a sample begin: 0, a masked key's penalty, or that of a key which there is not."""
        s, layout, run = self.tokens, self.heads.layout, self.heads.block
        with serial(self.keys) as key:
            own = tirx.const(0, "int64")
            if mask is not None:
                own = (mask[sample * s + tirx.min(key, s - 1)].astype("int64") - 1) * scalar["masked"]
            penalty = tirx.Select(key < s, own, 0 - scalar["beyond"])
            T.buffer_store(memory.penalties, penalty.astype("int32"), [key])
        with serial(self.keys // run.width) as block:
            parts = []
            for i in range(run.parts):
                key = ramp(T.Bind(block * run.width + i * run.part_lanes), run.part_lanes)
                all_ones = {"uint8": 255, "int16": -1}[layout.left]
                there = key < splat(s, "int64", run.part_lanes)
                parts.append(tirx.Select(there, *(splat(x, "int32", run.part_lanes) for x in (all_ones, 0))))
            store(memory.alive, block * run.width, Vector(tuple(parts), "int32", run.quad), run)

    def copy_rows(self, panel, source, origin, first) -> None:
        copy_rows(self.heads, self.tokens, panel, source, origin, first)

    def pack_keys(self, memory, source, origin) -> None:
        layout, depth = self.heads.layout, self.heads.depth
        lanes, pair, words = layout.lanes, layout.pair, depth // layout.pair
        with serial(self.keys // TILE) as t:
            self.copy_rows(memory.panel, source, origin, t * TILE)
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

    def pack_values(self, memory, source, origin) -> None:
        """Keys in the order of weights. Those that there are not have no weight: any value will do."""
        heads, block, pair = self.heads, self.heads.block, self.heads.layout.pair
        with serial(self.keys // block.width) as b, serial(block.width // pair) as x:
            key = T.Bind(b * block.width + x * pair)
            at = [T.Bind(origin + tirx.min(key + i, self.tokens - 1) * heads.channels) for i in range(pair)]
            group = T.Bind((b * block.width + _position(block, x * pair)) // pair)
            for run in heads.runs:
                self._pack_columns(memory.values, source, at, run, group)

    def _pack_columns(self, values, source, rows, run: Run, group) -> None:
        """A run of channels of the tokens at ``rows``: their elements side by side, channel after channel."""
        layout = self.heads.layout

        def place(column):
            tile, lane = (run.start + column) // TILE, (run.start + column) % TILE
            return tile * TILE * self.keys + (group * TILE + lane) * layout.pair

        if run.quad or layout.pair == 1:
            loaded = [T.Bind(operand(source[ramp(at + run.start, run.width)], layout.right)) for at in rows]
            for column, packed in _interleaved(loaded, run):
                T.buffer_store(values, packed, [ramp(place(column), lanes_of(packed))])
            return
        with serial(run.width) as column:
            for i, at in enumerate(rows):
                element = operand(source[at + (run.start + column)], layout.right)
                T.buffer_store(values, element, [place(column) + i])


def copy_rows(heads: Heads, tokens, panel, source, origin, first) -> None:
    """16 tokens of a head, from ``first`` on, as a product's operand; beyond the last token it is taken again."""
    with serial(ROWS) as r:
        at = T.Bind(origin + tirx.min(first + r, tokens - 1) * heads.channels)
        for run in runs(heads.size, (), 64):
            x = operand(source[ramp(at + run.start, run.width)], str(panel.dtype))
            T.buffer_store(panel, x, [ramp(r * heads.depth + run.start, run.width)])


def operand(x, dtype: str):
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
