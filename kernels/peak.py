"""The core's peak: operations a second of a loop of the multiply instruction that the kernels use, nothing else."""

from __future__ import annotations

import time
from functools import cache

import numpy as np

from intq.errors import IntqError

TURNS, INSTRUCTIONS = 20_000, 12  # of the loop, and independent ones in each turn
OPERATIONS = {"amx": 2 * 16 * 16 * 64, "vnni": 2 * 64, "avx2": 2 * 16, "plain": 2 * 16}  # of one instruction


def peak(instruction_set: str, threads: int) -> float:
    """Operations (multiplications and additions) a second of ``threads`` threads, the best of a few milliseconds.

    Of a GPU what its tensor cores take at its highest clock: a number of its makers, not a measurement.
    """
    from intq.kernels import runtime
    from intq.kernels.library import is_gpu

    if is_gpu(instruction_set):
        return _of_gpu(instruction_set)
    if instruction_set not in OPERATIONS:
        raise IntqError(f"there is no instruction set {instruction_set!r}: {', '.join(OPERATIONS)}")
    loop = _loop(instruction_set)
    if instruction_set == "amx":
        runtime.request_amx()
    runtime.use_threads(threads)
    out = runtime.tensor(np.zeros(threads * 1024, np.int32))
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        loop(out)
        best = min(best, time.perf_counter() - start)
    return OPERATIONS[instruction_set] * INSTRUCTIONS * TURNS * threads / best


@cache
def _loop(instruction_set: str):
    """The compiled loop: each thread of out (threads x 1024 int32) runs it whole."""
    import tvm

    from intq.kernels.cpu.peak import loop
    from intq.kernels.targets import choose

    module = tvm.IRModule({"peak": loop(instruction_set, TURNS, INSTRUCTIONS)})
    return tvm.compile(module, target=choose("cpu", instruction_set).target)["peak"]


def _of_gpu(instruction_set: str) -> float:
    from intq.kernels.cuda import driver
    from intq.kernels.cuda.arch import arch_of

    gpu = driver.check(instruction_set)
    return 2.0 * arch_of(instruction_set).products * gpu.multiprocessors * gpu.clock
