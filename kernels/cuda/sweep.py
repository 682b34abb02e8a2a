"""A thread for each element."""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script.builder import ir as T

from intq.kernels.cuda.build import blocks, ceil_div, i32

THREADS = 128


def each(samples, count, body: Callable) -> None:
    """``body(sample, i)`` for i < ``count`` of every sample, by a thread each."""
    with blocks(THREADS, ceil_div(count, THREADS), samples) as (bx, by, _, thread):
        i = T.Bind(bx * THREADS + thread)
        with T.If(i < i32(count)), T.Then():
            body(by, i)
