"""How a contraction becomes a matrix product: where the rows of A lie, and in which order its columns are taken.

C (rows, co) = A (rows, k) W (k, co). A row of A is read in place where it can be:
  direct   1 x 1, stride 1: the pixels of the activation itself
  flat     stride 1: a padded copy of the image read as one long row of pixels. The window of pixel p is that of p + 1
           moved by one pixel, so sixteen rows of A are a strided view, tap by tap; rows at the right edge are computed
           and dropped
  columns  anything else: the windows copied out one after another (im2col)
  frames   conv1d: the windows lie in a padded copy of a sample's frames, tap by tap or, undilated, in one piece
  dense    linear and most conv1d on AMX: the rows themselves, or such windows, see :mod:`intq.kernels.cpu.dense`
  rows     linear elsewhere: the rows themselves, or a copy of them where they are fewer than a tile has
  depthwise  each channel with its own window: no matrix product, see :mod:`intq.kernels.cpu.depthwise`
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from intq.graph import Node
from intq.kernels.cpu.isa import ISAS, Isa
from intq.kernels.cpu.runs import DOUBLE, Run, runs
from intq.ops.contract import weight_bits
from intq.ops.op import window_shape
from intq.value import Value

MANY_PRODUCTS = 256  # of an output: of fewer, rescaling takes longer than multiplying, and is quicker 64 columns wide
MANY_WEIGHTS = 2**19  # bytes, of which a frame's rows are read by columns
FEW_WEIGHTS = 2**16  # bytes, that stay near a core, whatever else passes by
TILE_BYTES = 64  # of a row of an AMX tile


@dataclass(frozen=True)
class Plan:
    """``source``: (h, w, c) of the image; a linear layer's is (1, 1, k). All counts are of one group of channels.
    Frames are the rows of an image whose height is not known, ``source`` has 0 for it; a conv1d's is one pixel wide.

    Row r of A is ``length`` bytes at ``r * pitch + sum_i t_i * stride_i`` for each combination of taps t_i < count_i;
    ``taps`` holds (count, stride in bytes). ``k``: products per output, ``image_rows``: rows of A per image.
    ``weight_bits``: how wide the weights are in memory.
    """

    isa_name: str
    mode: str
    source: tuple[int, int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int
    co: int
    weight_bits: int = 8

    @property
    def isa(self) -> Isa:
        return ISAS[self.isa_name]

    @property
    def padded(self) -> tuple[int, int]:
        """(h, w) of the padded image."""
        (h, w, _), (top, left, bottom, right) = self.source, self.padding
        return h + top + bottom, w + left + right

    @property
    def output(self) -> tuple[int, int]:
        return window_shape(self.source[:2], self.kernel, self.stride, self.padding, self.dilation)

    @property
    def output_width(self) -> int:
        (_, w, _), (_, left, _, right), d = self.source, self.padding, self.dilation[1]
        return (w + left + right - d * (self.kernel[1] - 1) - 1) // self.stride[1] + 1

    @property
    def ci(self) -> int:
        return self.source[2] // self.groups

    @property
    def columns(self) -> int:
        return self.co // self.groups

    @property
    def k(self) -> int:
        return self.kernel[0] * self.kernel[1] * self.ci

    @property
    def length(self) -> int:
        if self.mode == "flat":
            return self.kernel[1] * self.ci if self.dilation[1] == 1 else self.ci
        row = self.ci if self.taps else self.k
        return -(-row // self.isa.k_quantum) * self.isa.k_quantum

    @property
    def pitch(self) -> int:
        if self.mode in ("frames", "dense"):
            return self.stride[0] * self.frame
        if self.mode in ("direct", "flat"):
            return self.source[2]
        beyond = self.copy_width - self.copy_run if self.overshoots else 0
        row = max(self.length, self.k + beyond)
        return -(-row // 16) * 16 + (TILE_BYTES if row % 512 == 0 else 0)  # rows in different cache sets

    @property
    def copy_run(self) -> int:
        """Bytes of a window that lie together in the image."""
        return self.kernel[1] * self.ci if self.dilation[1] == 1 and self.groups == 1 else self.ci

    @property
    def copy_width(self) -> int:
        """Bytes that are copied at a time; where a run is shorter, what follows it is copied too, and overwritten."""
        return min(64, 1 << (self.copy_run - 1).bit_length())

    @property
    def gathers_by_tile(self) -> bool:
        """Whether each thread copies the windows of one tile at a time, which stay in its first cache, and not the
        threads together those of the image: where there are tiles enough to share."""
        many = not self.source[0] or self.image_rows >= 16 * self.tile_rows
        return self.mode == "columns" and not self.by_columns and many

    @property
    def overshoots(self) -> bool:
        """Whether copying windows reads beyond them, and so needs a copy of the image with room behind it."""
        return self.mode == "columns" and self.copy_run < self.copy_width

    @property
    def taps(self) -> tuple[tuple[int, int], ...]:
        if self.mode in ("frames", "dense"):
            together = self.dilation[0] == 1 and self.groups == 1 and not self.by_channels
            return () if together or self.kernel[0] == 1 else ((self.kernel[0], self.dilation[0] * self.frame),)
        if self.mode != "flat":
            return ()
        (kh, kw), (dh, dw), c = self.kernel, self.dilation, self.source[2]
        down = (kh, dh * self.padded[1] * c)
        return (down,) if dw == 1 else (down, (kw, dw * c))

    @property
    def by_channels(self) -> bool:
        """Whether a step of K takes the same channels of all taps before it goes on to the next ones: windows of frames
        overlap, and what a tap reads is what the one before it read, one frame on, and in the first cache still."""
        return self.mode == "dense" and self.ci % TILE_BYTES == 0

    @property
    def frame(self) -> int:
        """Bytes from a row of the padded image to the next; where windows are read by channels an odd number of cache
        lines, so that a tile's rows lie in different sets of the first cache."""
        row = self.padded[1] * self.source[2]
        return row + TILE_BYTES if self.by_channels and self.kernel[0] > 1 and row % (2 * TILE_BYTES) == 0 else row

    @property
    def image_rows(self) -> int:
        oh, ow = self.output
        return (oh - 1) * self.padded[1] + ow if self.mode == "flat" else oh * ow

    @cached_property
    def tile(self) -> tuple[int, int]:
        """(rows of a hardware tile, such tiles) of a unit of work: as few rows beyond the image as possible."""
        if self.isa_name != "amx":
            return self.isa.rows, 1
        if self.mode == "rows":
            return 8, 2
        if not self.source[0]:
            return 16, 2
        rows = self.image_rows
        return min((tiles(rows, 2 * h) * h, -h, h) for h in range(8, 17))[2], 2

    @property
    def tile_rows(self) -> int:
        """Rows of a unit of work."""
        return self.tile[0] * self.tile[1]

    @property
    def by_columns(self) -> bool:
        """Whether threads share the columns of W and not the rows of A.

        W comes from memory that all cores share, A for the most part from the core's own cache or the other core's,
        which is some three times as slow.
        """
        if not self.source[0]:  # frames of a few seconds; hours are cut into pieces before
            return self.mode == "frames" and self.k * self.columns > MANY_WEIGHTS
        rows_bytes = self.image_rows * self.pitch if self.mode == "columns" else math.prod(self.source)
        return self.k * self.columns > 4 * (rows_bytes + 2 * self.image_rows * self.columns)

    @property
    def step(self) -> int:
        """Bytes of a row that one instruction takes (AMX) or all of a tap (others)."""
        return min(TILE_BYTES, self.length) if self.isa_name == "amx" else self.length

    @cached_property
    def starts(self) -> list[int]:
        """Where in a tap each step begins; the last may overlap the one before it (its repeated weights are zero)."""
        return [min(i * self.step, self.length - self.step) for i in range(-(-self.length // self.step))]

    @cached_property
    def k_order(self) -> np.ndarray:
        """The product that each byte of a row meets, in the order taken; -1: none, its weight is zero."""
        count = math.prod(count for count, _ in self.taps)
        each = self.k // count  # products of a tap
        done = [0, *(start + self.step for start in self.starts)]
        turns = [(tap, i) for tap in range(count) for i in range(len(self.starts))]
        order = []
        for tap, i in sorted(turns, key=lambda turn: turn[::-1]) if self.by_channels else turns:
            at = np.arange(self.starts[i], self.starts[i] + self.step)
            order.append(np.where((at >= done[i]) & (at < each), tap * each + at, -1))
        return np.concatenate(order)

    @property
    def steps(self) -> int:
        return len(self.k_order) // self.step

    @property
    def blocks(self) -> list[tuple[int, tuple[Run, ...]]]:
        """(first column, runs) of each block of columns; all but the last are alike."""
        if self.mode == "dense":
            return [(at, (DOUBLE,)) for at in range(0, self.columns, DOUBLE.width)]
        width = self.isa.columns
        return [
            (at, tuple(runs(min(width, self.columns - at), self.isa.quads, self.isa.natural)))
            for at in range(0, self.columns, width)
        ]

    def block_size(self, block_runs: tuple[Run, ...]) -> int:
        """Weights of a block, with those that are zero to fill it."""
        return padded_width(block_runs) * len(self.k_order)

    @property
    def unpacks_blocks(self) -> bool:
        """Whether a thread unpacks its narrow weights block by block, and not all of them at once."""
        whole = self.groups * self.k * self.columns <= FEW_WEIGHTS and not self.by_columns
        return self.weight_bits < 8 and self.mode != "depthwise" and not self.gathers_by_tile and not whole

    @property
    def per_byte(self) -> int:
        """Weights to a byte."""
        return 8 // self.weight_bits

    @cached_property
    def chunk(self) -> int:
        """Narrow weights that are unpacked together. Their first ``chunk / per_byte`` are in the low bits of as many
        bytes, the next in the bits above. Blocks, and what a turn of a microkernel reads of them, are whole chunks."""
        most = max(self.isa.quads, default=self.isa.natural) * self.per_byte  # a vector of bytes
        if self.mode == "depthwise":
            return most
        if self.isa_name in ("amx", "avx2"):  # 16 columns at a time
            return math.gcd(most, 16 * (self.step if self.isa_name == "amx" else self.isa.k_quantum))
        return math.gcd(most, *(padded_width(block) * self.isa.k_quantum for _, block in self.blocks))


def padded_width(block_runs: tuple[Run, ...]) -> int:
    """Columns of a block, up to a multiple of 16."""
    return -(-sum(run.width for run in block_runs) // 16) * 16


def interleaves(plan: Plan, run: Run) -> bool:
    """Whether a run of a depthwise convolution is computed with vpdpbusd, four rows of the image at a time."""
    return run.quad and plan.isa_name in ("amx", "vnni")


def plan(isa: str, source, kernel, stride, padding, dilation, groups: int, co: int, weight_bits: int = 8) -> Plan:
    """The cheapest mode for a convolution's geometry."""

    source = tuple(0 if isinstance(size, str) else size for size in source)

    def of(mode: str) -> Plan:
        return Plan(isa, mode, *map(tuple, (source, kernel, stride, padding, dilation)), groups, co, weight_bits)

    if not source[0]:
        return of("columns")
    if groups == source[2] == co > 1:
        return of("depthwise")
    quantum, tile = ISAS[isa].k_quantum, ISAS[isa].rows
    in_place = groups == 1 and tuple(stride) == (1, 1)
    direct, flat, columns = of("direct"), of("flat"), of("columns")
    if in_place and tuple(kernel) == (1, 1) and not any(padding):
        return direct if direct.k % quantum == 0 and direct.image_rows >= tile else columns
    # copying the windows costs about 16 / co of the product, dropped rows cost their share of it
    few_dropped = tiles(flat.image_rows, tile) <= tiles(columns.image_rows, tile) * (1 + 16 / co)
    if in_place and flat.length % quantum == 0 and flat.image_rows >= tile and few_dropped:
        return flat
    return columns


def conv1d_plan(isa: str, channels: int, kernel: int, attrs, co: int, weight_bits: int = 8) -> Plan:
    """A convolution over frames of any number."""
    dense = isa == "amx" and attrs["groups"] == 1 and kernel * channels >= MANY_PRODUCTS
    mode = "depthwise" if attrs["groups"] == channels == co else "dense" if dense else "frames"
    (before, after), stride, dilation = attrs["padding"], (attrs["stride"], 1), (attrs["dilation"], 1)
    source, window, sides = (0, 1, channels), (kernel, 1), (before, 0, after, 0)
    return Plan(isa, mode, source, window, stride, sides, dilation, attrs["groups"], co, weight_bits)


def linear_plan(isa: str, k: int, co: int, weight_bits: int = 8) -> Plan:
    """A linear layer: a row for each sample, or each of its tokens."""
    mode = "dense" if isa == "amx" and k % ISAS[isa].k_quantum == 0 else "rows"
    return Plan(isa, mode, (1, 1, k), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1, co, weight_bits)


def tiles(rows: int, tile: int) -> int:
    return -(-rows // tile)


def of_node(isa: str, node: Node, x: Value) -> Plan:
    """The plan of a conv1d, conv2d or linear node whose first input is ``x``."""
    a, (co, k, *_), bits = node.attrs, node.constants["weight"].shape, weight_bits(node.attrs)
    if node.op == "linear":
        return linear_plan(isa, k, co, bits)
    if node.op == "conv1d":
        return conv1d_plan(isa, x.channels, k, a, co, bits)
    kernel = node.constants["weight"].shape[1:3]
    return plan(isa, x.shape[1:], kernel, a["stride"], a["padding"], a["dilation"], a["groups"], co, bits)
