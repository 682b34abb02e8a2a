"""Geometry of the kernels over frames, and the constants of a log-mel as its kernel reads them. Without TVM.

A log-mel's kernel has as many frames in the lanes of a vector as that has 32-bit lanes. What it takes from a frame are
runs of samples: pairs (x[i - 1], x[i]) for i = j, j + 2, ... are what lies in memory from x[j - 1] on, and one
instruction multiplies the pairs by pairs of weights and adds. For even points of the window the sums are real parts,
for odd points imaginary parts of the transform's input.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from intq.graph import Node
from intq.ops.log_mel import input_order

CHANNELS = 16  # that are normalised at a time
SPLIT_BITS = 15  # of the low half of a window's weight
LANES = {"amx": 16, "vnni": 16, "avx2": 8, "plain": 4}


@dataclass(frozen=True)
class Spectrum:
    """``lanes``: frames at a time; ``points`` of the complex transform; ``first``: the first of them that the window
    reaches, ``blocks`` of ``lanes`` points are what it reaches at most."""

    lanes: int
    points: int
    first: int
    blocks: int

    @property
    def spare(self) -> int:
        """The row that takes what lies beyond the transform's points; one more than the spectrum has."""
        return self.points + 1

    @property
    def span(self) -> int:
        """Samples of the window, in whole blocks."""
        return 2 * self.lanes * self.blocks


def window_span(node: Node) -> tuple[int, int]:
    """The first and the last complex point that the window reaches."""
    used = np.flatnonzero(node.constants["window"].any(0)) // 2
    return int(used[0]), int(used[-1])


def spectrum_of(node: Node, isa: str) -> Spectrum:
    points, lanes, (first, last) = node.constants["window"].shape[1] // 2, LANES[isa], window_span(node)
    blocks = -(-(last + 1 - first) // lanes)
    return Spectrum(lanes, points, max(0, min(first, points - blocks * lanes)), blocks)


def log_mel_arrays(node: Node, rescale, isa: str) -> list[np.ndarray]:
    """[window, order, turn, bands, weights, guard and offset, scalars] for one instruction set.

    window: int16 pairs of weights (before, now), by block, even or odd points, high or low half, lane; order: int32,
    the row in which each point of the blocks belongs, then the rows of no block; bands: int32 first and count of each.
    """
    spectrum, constants = spectrum_of(node, isa), node.constants
    reached = slice(2 * spectrum.first, 2 * spectrum.first + spectrum.span)
    weights = constants["window"].astype(np.int64)[::-1, reached]  # before, now
    weights = np.pad(weights, ((0, 0), (0, spectrum.span - weights.shape[1])))
    high = (weights + (1 << (SPLIT_BITS - 1))) >> SPLIT_BITS
    halves = np.stack([high, weights - (high << SPLIT_BITS)])  # (half, before and now, point)
    halves = halves.reshape(2, 2, spectrum.blocks, spectrum.lanes, 2)  # (half, before and now, block, lane, odd)
    rows, reached = np.argsort(input_order(spectrum.points)), spectrum.lanes * spectrum.blocks
    inside = rows[spectrum.first : spectrum.first + reached]
    beyond = np.full(reached - len(inside), spectrum.spare)
    order = np.concatenate([inside, beyond, np.setdiff1d(rows, inside)])
    return [
        halves.transpose(2, 4, 0, 3, 1).astype(np.int16).ravel(),
        order.astype(np.int32),
        constants["turn"].T.ravel(),  # real and imaginary part together
        np.stack([constants["band_first"], constants["band_count"]], 1).ravel(),
        constants["band_weight"],
        np.stack([constants["guard"], rescale.constants["offset"] + 0 * constants["guard"]], 1).ravel(),
        np.array([rescale.constants[name] for name in ("multiplier", "shift")], np.int64),
    ]
