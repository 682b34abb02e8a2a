"""From calibration data to ranges: histograms of every value of the float graph, and the range that loses least.

``minmax``: the least and the greatest value seen. ``percentile``: all but a ten-thousandth at either end. ``mse``: the
range of least mean squared error, ``sum_x count(x) * (f(quantized(x)) - f(x))**2`` over the histogram, where ``f`` is
what reads the value (the identity, or the function whose table it indexes).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from intq.errors import IntqError
from intq.floatgraph import FloatGraph

METHODS = ("minmax", "percentile", "mse")
BINS = 2048
TAIL = 1e-4  # what "percentile" leaves out at each end


@dataclass(frozen=True)
class Observation:
    """How a value is distributed: ``counts`` over equal bins of [low, high], and the same limits per channel."""

    low: float
    high: float
    counts: Tensor  # (BINS,) float64
    channel_low: Tensor  # (c,)
    channel_high: Tensor  # (c,)
    channel_square: Tensor  # (c,) mean square

    def centers(self) -> Tensor:
        width = (self.high - self.low) / BINS
        return self.low + width * (torch.arange(BINS, dtype=torch.float64) + 0.5)


def observe(
    graph: FloatGraph, batches: Sequence[Tensor], progress: Callable[[int, int], None] | None = None
) -> dict[str, Observation]:
    """One :class:`Observation` per value, over all batches: a pass for the limits, a pass for the histograms.

    Raises IntqError when a value is not finite.
    """
    limits: dict[str, list[Tensor]] = {}
    for done, batch in enumerate(batches):
        for name, value in graph.values(batch):
            by_channel = value.transpose(0, 1).flatten(1)
            low, high = torch.aminmax(by_channel, dim=1)
            if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
                raise IntqError(
                    f"{name}: the float network computes NaN or infinity on the calibration data; check both"
                )
            square = by_channel.square().mean(1, dtype=torch.float64) / len(batches)
            if name in limits:
                seen = limits[name]
                low, high, square = torch.minimum(seen[0], low), torch.maximum(seen[1], high), seen[2] + square
            limits[name] = [low, high, square]
        if progress:
            progress(done + 1, 2 * len(batches))
    counts = {name: torch.zeros(BINS, dtype=torch.float64) for name in limits}
    for done, batch in enumerate(batches):
        for name, value in graph.values(batch):
            low, high = float(limits[name][0].min()), float(limits[name][1].max())
            if high > low:
                counts[name] += torch.histc(value, BINS, low, high).double()
        if progress:
            progress(len(batches) + done + 1, 2 * len(batches))
    return {
        name: Observation(float(low.min()), float(high.max()), counts[name], low, high, square)
        for name, (low, high, square) in limits.items()
    }


def choose_range(
    observations: Iterable[Observation], method: str, function: Callable[[Tensor], Tensor] | None = None
) -> tuple[float, float]:
    """(low, high), low <= 0 <= high, for values that share one scale.

    ``function``: what the value is read through, for ``mse``. Raises IntqError for an unknown method.
    """
    if method not in METHODS:
        raise IntqError(f"the calibration method must be one of {', '.join(METHODS)}, got {method!r}")
    observations = list(observations)
    low = min(0.0, *(o.low for o in observations))
    high = max(0.0, *(o.high for o in observations))
    spread = [o for o in observations if o.high > o.low]
    if method == "minmax" or not spread:
        return low, high
    if method == "percentile":
        ends = [_percentiles(o) for o in spread]
        return min(0.0, *(e[0] for e in ends)), max(0.0, *(e[1] for e in ends))
    return _least_error(spread, low, high, function)


def _percentiles(o: Observation) -> tuple[float, float]:
    share = torch.cumsum(o.counts, 0) / o.counts.sum()
    centers = o.centers()
    first, last = int((share > TAIL).nonzero()[0]), int((share >= 1 - TAIL).nonzero()[0])
    return float(centers[first]), float(centers[last])


def _least_error(spread: list[Observation], low: float, high: float, function) -> tuple[float, float]:
    """Shrinks either end in turn over a grid of shares of the full range, until neither moves."""
    x = torch.cat([o.centers() for o in spread])
    weight = torch.cat([o.counts for o in spread])
    x, weight = x[weight > 0], weight[weight > 0]
    wanted = x if function is None else function(x)

    def error(ends: Tensor) -> Tensor:  # (candidates, 2) -> (candidates,)
        scale = (ends[:, 1:] - ends[:, :1]).clamp_min(math.ulp(0.0) * 2**60) / 255
        zero = torch.round(-ends[:, :1] / scale)
        q = (torch.round(x / scale) + zero).clamp(0, 255)
        read = (q - zero) * scale
        read = read if function is None else function(read)
        return ((read - wanted).square() * weight).sum(1)

    best = torch.tensor([low, high], dtype=torch.float64)
    shares = torch.linspace(0.02, 1.0, 99, dtype=torch.float64)
    full = best.clone()
    for _ in range(4):
        before = best.clone()
        for end in (0, 1):
            if full[end] == 0:
                continue
            ends = best.repeat(len(shares), 1)
            ends[:, end] = full[end] * shares
            best = ends[int(torch.argmin(error(ends)))]
        if torch.equal(before, best):
            break
    return float(best[0]), float(best[1])
