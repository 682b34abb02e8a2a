"""Runs of channels: how a row of C channels is cut, and in which order a run's channels lie in vector lanes.

x86 unpacks and packs bytes within 128-bit lanes. A *quad* therefore holds W channels (64, 32 or 16) as four int32
vectors in which 128-bit lane l of vector j has the channels 16 l + 4 j + (0..3): a byte shuffle inside the lane makes
each vector from W loaded bytes, and vpackssdw, vpackuswb undo it exactly. Constants and weight columns are laid out in
that order once, when they are packed. What is left of a row, and every run on other processors, is in natural order.

A *double* quad is 32 channels of two rows: vectors 0 and 1 are of the first row, 2 and 3 of the second; 128-bit lane
l of vector j of a row has the channels 8 l + 4 j + (0..3). Its four vectors are packed by the same instructions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Run:
    """``width`` channels from ``start`` on, of ``rows`` rows at once."""

    start: int
    width: int
    quad: bool
    rows: int = 1

    @property
    def order(self) -> np.ndarray:
        """(width,) the channel, counted from ``start``, that each int32 lane holds, part after part."""
        if not self.quad:
            return np.arange(self.width)
        parts = self.parts // self.rows
        part, lane, i = np.meshgrid(np.arange(parts), np.arange(self.part_lanes // 4), np.arange(4), indexing="ij")
        return (4 * parts * lane + 4 * part + i).ravel()

    @property
    def pair_order(self) -> np.ndarray:
        """(width,) the same for int64 constants: of each part first the even lanes, then the odd ones."""
        if not self.quad:
            return self.order
        parts = self.order.reshape(-1, self.part_lanes)
        return np.concatenate([np.concatenate([p[::2], p[1::2]]) for p in parts])

    @property
    def part_lanes(self) -> int:
        return self.rows * self.width // 4 if self.quad else self.width

    @property
    def parts(self) -> int:
        return 4 if self.quad else 1


DOUBLE = Run(0, 32, True, 2)


def runs(channels: int, quads: tuple[int, ...], natural: int = 8) -> list[Run]:
    """A row of channels cut into the widest runs: quads of the given widths, then powers of two up to ``natural``."""
    out, start = [], 0
    widths = [(w, True) for w in quads]
    while natural:
        widths.append((natural, False))
        natural //= 2
    for width, quad in widths:
        while channels - start >= width:
            out.append(Run(start, width, quad))
            start += width
    return out
