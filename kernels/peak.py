"""The core's peak: operations a second of a loop of the multiply instruction that the kernels use, and nothing else."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from intq.errors import IntqError

ROUNDS, PER_ROUND = 20_000, 16  # loop turns, and independent instructions in each
OPERATIONS = {"amx": 2 * 16 * 16 * 64, "vnni": 2 * 64, "avx2": 2 * 16, "plain": 2 * 16}  # of one instruction


def peak(instruction_set: str, threads: int) -> float:
    """Operations (multiplications and additions) a second of ``threads`` threads, from one short measurement."""
    from intq.kernels import runtime

    run, turns = _loop(instruction_set), ROUNDS
    runtime.use_threads(threads)
    if instruction_set == "amx":
        runtime.request_amx()
    out = runtime.tensor(np.zeros(threads * 16, np.int32))
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        run(out)
        best = min(best, time.perf_counter() - start)
    return OPERATIONS[instruction_set] * PER_ROUND * turns * threads / best


@cache
def _loop(instruction_set: str):
    """The compiled loop: every thread runs it whole."""
    from intq.kernels import lower, runtime
    from intq.kernels.cpu.peak import loop

    if instruction_set not in OPERATIONS:
        raise IntqError(f"there is no instruction set {instruction_set!r}: {', '.join(OPERATIONS)}")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "peak.so"
        lower.library(loop(instruction_set, ROUNDS, PER_ROUND), instruction_set).export_library(str(path))
        return runtime.open_library(path)["peak"]
