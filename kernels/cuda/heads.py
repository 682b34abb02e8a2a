"""How a GPU's blocks share the heads of attention: queries, keys and channels of each. Without TVM.

Both products are taken in chunks of CHUNK bytes: of channels in the first, of keys in the second.
"""

from __future__ import annotations

from dataclasses import dataclass

from intq.errors import IntqError
from intq.graph import Node
from intq.kernels.cuda.arch import KB, Arch, arch_of
from intq.kernels.cuda.plan import CHUNK

WARP_ROWS, WARP = 16, 32  # queries and threads of a warp
EIGHT = 8  # rows that instructions count in
PART, FEW = 8, 4  # chunks of a head's channels whose sums registers hold, beside short and beside long queries
SHARED = 46 * KB  # for keys and values


@dataclass(frozen=True)
class Heads:
    """``count`` heads of ``size`` channels on an architecture."""

    arch: Arch
    count: int
    size: int

    @property
    def channels(self) -> int:
        """Of all heads: the distance between tokens."""
        return self.count * self.size

    @property
    def high(self) -> int:
        """Eights of rows that an instruction takes."""
        return self.arch.int8[0] // EIGHT

    @property
    def deep(self) -> int:
        """Chunks of terms that an instruction takes."""
        return self.arch.int8[2] // CHUNK

    @property
    def chunks(self) -> int:
        """Of a query or key, in whole instructions."""
        return -(-self.size // (CHUNK * self.deep)) * self.deep

    @property
    def parts(self) -> int:
        """Blocks that share the channels of a head's values; each takes all scores."""
        return -(-self.size // (CHUNK * (PART if self.chunks <= PART else FEW)))

    @property
    def values(self) -> int:
        """Chunks of a value that a block takes."""
        return -(-self.size // (CHUNK * self.parts))

    @property
    def rows(self) -> int:
        """Queries of a block, and keys that are in shared memory at a time."""
        for rows in (64, 32):
            if rows * CHUNK * (pitch(self.chunks) + pitch(self.values)) <= SHARED:
                return rows
        raise IntqError(
            f"attention's heads have {self.size} channels, and so many do not fit a GPU's shared memory; "
            f"use more heads, of 1024 channels at most"
        )

    @property
    def threads(self) -> int:
        return self.rows // WARP_ROWS * WARP

    @property
    def resident(self) -> int:
        """Blocks of a multiprocessor at a time. (Of its own accord ptxas would spill a few registers for one more.)"""
        return 4 if self.chunks <= FEW else 2


def pitch(chunks: int) -> int:
    """Chunks from row to row of shared memory: odd, so that a chunk of eight rows lies in different banks."""
    return chunks | 1


def of_node(arch: str, node: Node) -> Heads:
    """Those of an attention node."""
    return Heads(arch_of(arch), node.attrs["heads"], node.attrs["size"])
