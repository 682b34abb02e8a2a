"""How a contraction becomes tiles of a matrix product on a GPU. Without TVM.

C (rows, co) = A (rows, k) W (co, k)^T, each group of channels for itself. A block of threads computes ``tile.rows`` x
``tile.columns`` of C; its warps share that in ``tile.warps`` (down, across). Both operands pass through shared memory
in steps of STEP bytes of k, CHUNK bytes at a time. A chunk of A is gathered from the activation itself, without a copy
of its windows (implicit GEMM): its products are those of one tap where the channels allow it.

Operands are bytes, or two to a byte where the weights have 4 bits or fewer, the activations are below 16 and the tensor
cores multiply such (``nibbles``). Weights of fewer bits than the product takes are widened when an artifact is loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from intq.graph import Node
from intq.kernels.cuda.arch import Arch, arch_of
from intq.ops.contract import weight_bits
from intq.ops.op import window_shape
from intq.value import Value

STEP, CHUNK = 64, 16  # bytes
SWIZZLE = 4  # chunks of a step, whose order differs from row to row
NIBBLE = 15  # the largest activation that fits 4 bits
SHARED_RATE = 128  # bytes a cycle into and out of a multiprocessor's shared memory
# Bytes a cycle that a multiprocessor gets from the second cache: T4's 1270 GB/s as Jia et al. measured ("Dissecting the
# NVidia Turing T4 GPU via microbenchmarking", 2019), A100's 5120 bytes a cycle by NVIDIA; of others an assumption.
CACHE_RATE, USUAL_CACHE_RATE = {"sm_75": 20, "sm_80": 47}, 32
ENDS = 2  # steps that the first loads and the rescale of a block take as long as
MULTIPROCESSORS, USUAL = {"sm_75": 40, "sm_80": 108, "sm_90": 132}, 84  # of T4, A100, H100, and of others
SAMPLES, PLACES = 8, 128  # of a usual batch; tokens or frames of each


@dataclass(frozen=True)
class Tile:
    """``rows`` x ``columns`` of C by ``warps`` = (down, across)."""

    rows: int
    columns: int
    warps: tuple[int, int]

    @property
    def threads(self) -> int:
        return 32 * math.prod(self.warps)

    def cycles(self, arch: Arch) -> tuple[float, float]:
        """(until the products of a step are taken, until its operands are brought to them), at least.

        Operands come through the second cache, into shared memory and out of it, by as many warps as need them; all
        blocks of a multiprocessor share these and its tensor cores. Nibbles are twice as many products, taken at twice
        the rate.
        """
        read = (self.rows + self.columns) * STEP
        shared = read + math.prod(self.warps) * sum(self.warp) * STEP
        brought = max(read / CACHE_RATE.get(arch.name[:5], USUAL_CACHE_RATE), shared / SHARED_RATE)
        return self.rows * self.columns * STEP / arch.products, brought

    @property
    def warp(self) -> tuple[int, int]:
        """(rows, columns) of a warp."""
        return self.rows // self.warps[0], self.columns // self.warps[1]


@dataclass(frozen=True)
class Plan:
    """A contraction's geometry. ``source``: (h, w, c) of the image; frames of any number are the rows of an image whose
    height is 0 here; a linear layer's input is an image of one pixel."""

    arch_name: str
    source: tuple[int, int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int
    co: int
    nibbles: bool
    tile: Tile

    @property
    def arch(self) -> Arch:
        return arch_of(self.arch_name)

    @property
    def ci(self) -> int:
        return self.source[2] // self.groups

    @property
    def columns(self) -> int:
        """Of C in each group."""
        return self.co // self.groups

    @property
    def column_tiles(self) -> int:
        return -(-self.columns // self.tile.columns)

    @property
    def k(self) -> int:
        return self.kernel[0] * self.kernel[1] * self.ci

    @property
    def per_byte(self) -> int:
        return 2 if self.nibbles else 1

    @property
    def steps(self) -> int:
        return -(-self.k // (STEP * self.per_byte))

    @property
    def piece(self) -> int:
        """Products of a chunk that are loaded together: as many as lie in one pixel and are aligned there."""
        return math.gcd(CHUNK, self.ci, self.source[2])

    @property
    def in_place(self) -> bool:
        """Whether a row of A is a pixel of the activation."""
        one = self.kernel == self.stride == (1, 1) and self.groups == 1
        return one and not any(self.padding)

    @property
    def output(self) -> tuple[int, int]:
        """(h, w) of the output; h is 0 where it is not known."""
        h, w, _ = self.source
        enough = h or self.dilation[0] * self.kernel[0]
        oh, ow = window_shape((enough, w), self.kernel, self.stride, self.padding, self.dilation)
        return (oh if h else 0), ow


TILES = (
    *(Tile(128, 128, (2, 4)), Tile(128, 64, (2, 2)), Tile(128, 32, (4, 1)), Tile(128, 16, (4, 1))),
    *(Tile(64, 64, (2, 2)), Tile(64, 32, (2, 1)), Tile(32, 64, (1, 2)), Tile(32, 32, (1, 1))),
)


def tile_for(arch: Arch, rows: int, columns: int, steps: int, groups: int = 1) -> Tile:
    """The tile whose blocks the busiest multiprocessor of a usual card ends first with; of equals the largest."""
    card = MULTIPROCESSORS.get(arch.name[:5], USUAL)

    def cost(tile: Tile) -> float:
        blocks = -(-rows // tile.rows) * -(-columns // tile.columns) * groups
        return -(-blocks // card) * (steps + ENDS) * max(tile.cycles(arch))

    return min(TILES, key=cost)


def of_node(arch_name: str, node: Node, x: Value) -> Plan:
    """The plan of a conv1d, conv2d or linear node whose first input is ``x``."""
    a, weight, arch = node.attrs, node.constants["weight"], arch_of(arch_name)
    kernel, stride, padding, dilation, groups = (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), a.get("groups", 1)
    source = (1, 1, x.channels)
    if node.op == "conv2d":
        kernel, stride, padding, dilation = weight.shape[1:3], a["stride"], a["padding"], a["dilation"]
        source = tuple(0 if isinstance(size, str) else size for size in x.shape[1:])
    elif node.op == "conv1d":
        (before, after), kernel = a["padding"], (weight.shape[1], 1)
        stride, padding, dilation = (a["stride"], 1), (before, 0, after, 0), (a["dilation"], 1)
        source = (0 if isinstance(x.shape[1], str) else x.shape[1], 1, x.channels)
    nibbles = arch.int4 is not None and in_nibbles(node, x)
    geometry = tuple(map(tuple, (source, kernel, stride, padding, dilation)))
    plan = Plan(arch_name, *geometry, groups, weight.shape[0], nibbles, TILES[0])
    return replace(plan, tile=tile_for(arch, _usual_rows(node), plan.columns, plan.steps, groups))


def _usual_rows(node: Node) -> int:
    """Of A, all groups alike, when a network is used as it often is."""
    _, *rest = node.output.shape[:-1]
    return SAMPLES * math.prod(PLACES if isinstance(size, str) else size for size in rest)


def in_nibbles(node: Node, x: Value) -> bool:
    """Whether both operands of a contraction fit 4 bits, the padding too."""
    most = max(x.high, int(node.constants.get("pad_value", np.zeros(1)).max()))
    return weight_bits(node.attrs) <= 4 and most <= NIBBLE


def is_depthwise(plan: Plan) -> bool:
    """Whether every channel has its own window: there is no matrix product."""
    return plan.ci == 1 and plan.groups > 1
