"""Attention's geometry on an instruction set. Without TVM.

Both products are taken in tiles of 16 columns (keys, then channels), whose ``pair`` consecutive terms lie together as
the instruction set's product takes them, in blocks of 16 rows (queries).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from intq.curves import PLACE_BITS
from intq.graph import Node
from intq.kernels.cpu.isa import ISAS, Isa
from intq.kernels.cpu.runs import Run, runs
from intq.kernels.reach import reach_of
from intq.ops.attention import ZERO_POINT

ROWS = 16  # queries that a thread takes at a time
TILE = 16  # columns of a tile
GROUP = 4  # tiles of distances whose products are taken together
SLOTS = 4  # blocks of keys, a power of two; each has 4 KB of scores


@dataclass(frozen=True)
class Layout:
    """``left``, ``right``: the types a product takes; ``pair``: terms it adds at once; ``lanes``: of its int32 vector.

    ``block``: keys whose weights are computed at a time; ``depth``: what the channels are padded to a multiple of;
    ``tiles``: of columns, whose sums registers hold; ``corrected``: queries keep their zero point.
    """

    left: str
    right: str
    pair: int
    lanes: int
    block: int
    depth: int
    tiles: int
    corrected: bool = False


_BYTES = Layout("uint8", "int8", pair=4, lanes=16, block=64, depth=64, tiles=4, corrected=True)
_WORDS = Layout("int16", "int16", pair=2, lanes=8, block=32, depth=16, tiles=1)
_PLAIN = Layout("int16", "int16", pair=1, lanes=16, block=16, depth=1, tiles=1)
LAYOUTS = {"amx": _BYTES, "vnni": _BYTES, "avx2": _WORDS, "plain": _PLAIN}


@dataclass(frozen=True)
class Heads:
    """``count`` heads of ``size`` channels, at most ``longest`` tokens."""

    isa: Isa
    count: int
    size: int
    longest: int

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.isa.name]

    @property
    def channels(self) -> int:
        """Of all heads: the distance between tokens."""
        return self.count * self.size

    @property
    def depth(self) -> int:
        """Terms of a score, with zeros behind the head's channels."""
        return _whole(self.size, self.layout.depth)

    @property
    def columns(self) -> int:
        """Columns of the second product: the head's channels in whole tiles, in the order of ``runs``."""
        return _whole(self.size, TILE)

    @property
    def runs(self) -> list[Run]:
        return runs(self.size, self.isa.quads, self.isa.natural)

    @property
    def keys(self) -> int:
        """The most keys, in whole blocks."""
        return _whole(self.longest, self.layout.block)

    @property
    def slots(self) -> int:
        """Blocks of keys whose scores are held at a time: all, or 16 KB of them where the product is cheap."""
        blocks = self.keys // self.layout.block
        return min(blocks, SLOTS) if self.isa.name == "amx" else blocks

    @property
    def pitch(self) -> int:
        """Scores from row to row: a cache line more than the blocks have, or all rows would meet in the same sets."""
        return self.slots * self.layout.block + TILE

    @property
    def block(self) -> Run:
        """The keys of a block, as lanes hold their scores. Its weights are stored in the order of their packing."""
        return Run(0, self.layout.block, bool(self.isa.quads))


@dataclass(frozen=True)
class Distances:
    """The table of :mod:`intq.ops.relative`, for ``heads``, as columns of a product of 16 queries.

    Beside the table's columns there is room: distance 0 is column ``zero``, such that for 16 queries from a multiple
    of 16 on the first column that they meet is that of a whole tile.
    """

    heads: Heads

    @property
    def zero(self) -> int:
        return _whole(self.heads.longest, ROWS) + ROWS - 1

    @property
    def columns(self) -> int:
        """Of a head, a whole number of tiles: what the last queries' product reads too."""
        return _whole(self.zero + self.heads.longest + ROWS, TILE) + GROUP * TILE

    @property
    def pitch(self) -> int:
        """Of the sums of a query."""
        return _whole(self.heads.longest + ROWS - 1, GROUP * TILE) + TILE


def distances_of(isa: str, node: Node) -> Distances:
    count, _, size = node.constants["distances"].shape
    return Distances(Heads(ISAS[isa], count, size, node.attrs["longest"]))


def distance_columns(distances: Distances, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The table tile by tile as :func:`intq.kernels.cpu.product.product` takes it, and what its sums begin with."""
    heads, layout = distances.heads, distances.heads.layout
    wide = np.zeros((heads.count, distances.columns, heads.depth), np.int64)
    start = distances.zero - (heads.longest - 1)
    wide[:, start : start + table.shape[1], : heads.size] = table
    first = -ZERO_POINT * wide.sum(2) if layout.corrected else np.zeros(wide.shape[:2])
    tiles = wide.reshape(heads.count, -1, TILE, heads.depth // layout.pair, layout.pair).swapaxes(2, 3)
    return tiles.astype(layout.right).ravel(), first.astype(np.int32).ravel()


def of_node(isa: str, node: Node) -> Heads:
    tokens = node.output.shape[1]
    longest = tokens if isinstance(tokens, int) else node.attrs["longest"]
    return Heads(ISAS[isa], node.attrs["heads"], node.attrs["size"], longest)


def arithmetic(node: Node) -> str:
    """How weights are computed: "words" (a distance as int32, its curve as int16), "narrow" (as int32) or "wide"."""
    if not reach_of(node).narrow:
        return "wide"
    return "words" if words_suffice(node.constants["curve"]) else "narrow"


def words_suffice(coefficients: np.ndarray) -> bool:
    """Whether nothing that :func:`intq.curves.curve` computes leaves int16, and doubled factors neither."""
    c0, c1, c2 = coefficients.astype(np.int64)[:, :, None]
    t = np.arange(1 << PLACE_BITS)
    slope = ((c2 * t) >> PLACE_BITS) + c1
    y = ((slope * t) >> PLACE_BITS) + c0
    return all(x.min() >= -(2**15) and x.max() < 2**15 for x in (c0, c1, 2 * c2, 2 * slope, y))


def _whole(size: int, quantum: int) -> int:
    return -(-size // quantum) * quantum
