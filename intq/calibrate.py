"""From calibration data to ranges: limits and histograms of the float graph's values, and the range that loses least.

``minmax``: the least and the greatest value seen. ``percentile``: all but a ten-thousandth at either end. ``mse``: the
range of least mean squared error, ``sum_x count(x) * (f(quantized(x)) - f(x))**2`` over the histogram, where ``f`` is
what reads the value (the identity, or the function whose table it indexes).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from intq.errors import IntqError
from intq.floatgraph import FloatGraph, by_channel

METHODS = ("minmax", "percentile", "mse")
BINS = 2048
TAIL = 1e-4  # what "percentile" leaves out at each end

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Limits:
    """Per channel: the least and the greatest of ``count`` values seen, their mean square and their mean."""

    low: Tensor
    high: Tensor
    square: Tensor
    count: int
    mean: Tensor

    def divided(self, scale: Tensor) -> Limits:
        """The limits of the value divided by a positive scale per channel."""
        return Limits(self.low / scale, self.high / scale, self.square / scale.square(), self.count, self.mean / scale)


@dataclass(frozen=True)
class Histogram:
    """How often a value fell into each of ``BINS`` equal parts of [low, high]."""

    low: float
    high: float
    counts: Tensor

    def centers(self) -> Tensor:
        width = (self.high - self.low) / BINS
        return self.low + width * (torch.arange(BINS, dtype=torch.float64) + 0.5)


def mirrored(histogram: Histogram) -> Histogram:
    """The histogram of the values' negatives."""
    return Histogram(-histogram.high, -histogram.low, histogram.counts.flip(0))


def observe_limits(graph: FloatGraph, batches: Sequence[Tensor], progress: Progress) -> dict[str, Limits]:
    """The limits of every value over all batches.

    Raises IntqError when a value is not finite.
    """
    limits: dict[str, Limits] = {}
    samples, real = sum(batch.numel() for batch in batches), graph.real()
    for done, batch in enumerate(batches):
        for name, value in graph.values(batch):
            if name not in real:
                continue
            signal = graph.reads_samples and name == graph.input  # one channel, of any length
            rows = value.reshape(1, -1) if signal else by_channel(value)
            low, high = (side.double() for side in torch.aminmax(rows, dim=1))
            if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
                raise IntqError(
                    f"{name}: the float network computes NaN or infinity on the calibration data; "
                    "check the data's scale and the checkpoint"
                )
            share = batch.numel() / samples
            square = rows.square().mean(1, dtype=torch.float64) * share
            mean = rows.mean(1, dtype=torch.float64) * share
            count = rows.shape[1]
            if name in limits:
                seen = limits[name]
                low, high, square = torch.minimum(seen.low, low), torch.maximum(seen.high, high), seen.square + square
                mean, count = seen.mean + mean, seen.count + count
            limits[name] = Limits(low, high, square, count, mean)
        progress(done + 1, len(batches))
    return limits


def observe_histograms(
    graph: FloatGraph, batches: Sequence[Tensor], limits: Mapping[str, Limits], progress: Progress
) -> dict[str, Histogram]:
    """The histogram of every value over all batches, between its limits."""
    ends = {name: (float(seen.low.min()), float(seen.high.max())) for name, seen in limits.items()}
    counts = {name: torch.zeros(BINS, dtype=torch.float64) for name in limits}
    for done, batch in enumerate(batches):
        for name, value in graph.values(batch):
            low, high = ends.get(name, (0.0, 0.0))
            if high > low:
                counts[name] += torch.histc(value.float().clamp(low, high), BINS, low, high).double()
        progress(done + 1, len(batches))
    return {name: Histogram(*ends[name], counts[name]) for name in limits}


def choose_range(
    histograms: Iterable[Histogram],
    method: str,
    function: Callable[[Tensor], Tensor] | None = None,
    steps: int = 255,
) -> tuple[float, float]:
    """(low, high), low <= 0 <= high, for values that share one scale.

    ``function``: what the values are read through, for ``mse``. ``steps`` of integers lie between low and high.
    """
    histograms = list(histograms)
    low = min(0.0, *(h.low for h in histograms))
    high = max(0.0, *(h.high for h in histograms))
    spread = [h for h in histograms if float(h.counts.sum()) > 0]
    if method == "minmax" or not spread:
        return low, high
    if method == "percentile":
        ends = [_percentiles(h) for h in spread]
        return min(0.0, *(e[0] for e in ends)), max(0.0, *(e[1] for e in ends))
    return _least_error(spread, low, high, function, steps)


def _percentiles(histogram: Histogram) -> tuple[float, float]:
    share = torch.cumsum(histogram.counts, 0) / histogram.counts.sum()
    centers = histogram.centers()
    first, last = int((share > TAIL).nonzero()[0]), int((share >= 1 - TAIL).nonzero()[0])
    return float(centers[first]), float(centers[last])


def _least_error(spread: list[Histogram], low: float, high: float, function, steps: int) -> tuple[float, float]:
    """Shrinks either end in turn over a grid of shares of the full range, until neither moves."""
    x = torch.cat([h.centers() for h in spread])
    weight = torch.cat([h.counts for h in spread])
    x, weight = x[weight > 0], weight[weight > 0]
    wanted = x if function is None else function(x)
    smallest = max(high - low, math.ulp(0.0)) * 1e-6

    def error(ends: Tensor) -> Tensor:  # (candidates, 2) -> (candidates,)
        scale = (ends[:, 1:] - ends[:, :1]).clamp_min(smallest) / steps
        zero = torch.round(-ends[:, :1] / scale)
        read = (torch.round(x / scale) + zero).clamp(0, steps).sub(zero).mul(scale)
        read = read if function is None else function(read)
        return ((read - wanted).square() * weight).sum(1)

    full = torch.tensor([low, high], dtype=torch.float64)
    shares = torch.linspace(0.02, 1.0, 99, dtype=torch.float64)
    best = full
    for _ in range(4):
        before = best
        for end in (0, 1):
            ends = best.repeat(len(shares), 1)
            ends[:, end] = full[end] * shares
            best = ends[int(torch.argmin(error(ends)))]
        if torch.equal(before, best):
            break
    return float(best[0]), float(best[1])
