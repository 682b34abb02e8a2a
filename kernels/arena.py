"""Where the values of a network lie in one piece of memory: two may share bytes when no moment needs both."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

ALIGNMENT = 64  # bytes: a cache line, which vector loads and TVM's kernels expect


@dataclass(frozen=True)
class Life:
    """A value of ``size`` bytes is written at moment ``start`` and read for the last time at moment ``end``."""

    size: int
    start: int
    end: int


def offsets(lives: Mapping[str, Life]) -> tuple[dict[str, int], int]:
    """Byte offset of every value, and the bytes of the whole: the largest first, each at the lowest free place.

    (Greedy by size, as in Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020.)
    """
    where: dict[str, int] = {}
    placed: list[tuple[int, int, Life]] = []  # (first byte, byte after the last, life), in order
    for name in sorted(lives, key=lambda name: -lives[name].size):
        life, at, size = lives[name], 0, _whole(lives[name].size)
        for start, stop, other in placed:
            if other.end < life.start or other.start > life.end:
                continue
            if at + size <= start:
                break
            at = max(at, stop)
        where[name] = at
        insort(placed, (at, at + size, life), key=lambda place: place[:2])
    return where, max((stop for _, stop, _ in placed), default=0)


def lives(
    shapes: Mapping[str, tuple[tuple[int, ...], str]],
    steps: Sequence[tuple[str, tuple[str, ...]]],
    views: Mapping[str, str],
    outputs: Sequence[str],
) -> dict[str, Life]:
    """The life of every value that has memory of its own.

    ``shapes``: (shape, dtype) by name. ``steps``: (output, inputs) in order; what is never written by one is there from
    the start. ``views``: a value that is another one's memory under another shape. ``outputs`` live to the end.
    """
    written = {name: moment for moment, (name, _) in enumerate(steps)}
    read = {name: moment for moment, (_, inputs) in enumerate(steps) for name in inputs}
    out: dict[str, Life] = {}
    for name, (shape, dtype) in shapes.items():
        owner = owner_of(name, views)
        start = written.get(name, -1)
        end = len(steps) if name in outputs else read.get(name, start)
        size = math.prod(shape) * np.dtype(dtype).itemsize
        same = out.get(owner, Life(size, start, end))
        out[owner] = Life(size, min(same.start, start), max(same.end, end))
    return out


def owner_of(name: str, views: Mapping[str, str]) -> str:
    """The value whose memory a view is."""
    while name in views:
        name = views[name]
    return name


def _whole(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
