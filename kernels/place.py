"""Where a network's values lie, and how its kernels are run there: the processor's memory, or a GPU's."""

from __future__ import annotations

import contextlib
import mmap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

HUGE_PAGE = 1 << 21  # bytes
Call = Callable[[], None]


@dataclass(frozen=True)
class Staged:
    """A value as the processor writes and reads it: ``array``. ``given`` and ``taken`` bring it to where kernels find
    it and back; None where that is the array itself."""

    array: np.ndarray
    given: Call | None = None
    taken: Call | None = None


@dataclass(frozen=True)
class Place:
    """``area(size)``: so many bytes. ``part(area, start, shape, dtype)``: what kernels take of a value in it.
    ``refuse(shapes)``: raises IntqError if values of these shapes, by name, are too large for its kernels.
    ``staged(part)``: the value as the processor has it. ``repeated(calls)``: runs these calls, one after the other, as
    quickly as can be when that is done again and again, and returns when they have run. ``seconds(call)``: how long a
    call takes.
    """

    area: Callable[[int], Any]
    part: Callable[[Any, int, tuple, str], Any]
    staged: Callable[[Any], Staged]
    repeated: Callable[[Sequence[Call]], Call]
    seconds: Callable[[Call], float]
    refuse: Callable[[Mapping[str, tuple]], None] = lambda shapes: None


def processor(tensor: Callable[[np.ndarray], Any]) -> Place:
    """The processor's memory. ``tensor``: what kernels take of an array."""

    def part(area: np.ndarray, start: int, shape: tuple, dtype: str):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return tensor(area[start : start + size].view(dtype).reshape(shape))

    def repeated(calls: Sequence[Call]) -> Call:
        def run() -> None:
            for call in calls:
                call()

        return run

    def seconds(call: Call) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return Place(huge, part, lambda given: Staged(np.from_dlpack(given)), repeated, seconds)


def huge(size: int) -> np.ndarray:
    """Bytes that begin at a huge page; memory is taken when they are written."""
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    area = mmap.mmap(-1, size + 2 * HUGE_PAGE, **private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            area.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(area, np.uint8)
    skip = -whole.ctypes.data % HUGE_PAGE
    return whole[skip : skip + size]
