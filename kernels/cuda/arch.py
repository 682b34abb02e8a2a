"""The GPU architectures that the kernels know, and what each of them has."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from intq.errors import IntqError

KB = 1024


@dataclass(frozen=True)
class Arch:
    """What kernels may use on one architecture.

    ``name``: NVIDIA's, "sm_75", by which a library says for what it was compiled. ``int8``, ``int4``: the (m, n, k) of
    the widest ``mma.sync`` on operands of 8 and of 4 bits that the tensor cores themselves compute; ``int4`` is None
    where CUDA would take it apart into 8-bit ones, and kernels widen 4-bit operands on their own. ``cp_async``: copies
    from global to shared memory need no registers. ``shared_block``, ``shared_sm``: bytes of shared memory that one
    block and one multiprocessor have (a block above 48 KB has to take it as dynamic shared memory). ``products``: of 8
    bits that the tensor cores of a multiprocessor take a cycle, dense. ``registers``: of 32 bits, per multiprocessor; a
    thread has at most 255. ``threads_sm``, ``blocks_sm``: resident at a time.

    Source: CUDA C++ Programming Guide 13.0, table "Technical Specifications per Compute Capability". Of ``int8`` and
    ``int4``: what ptxas 13.0 makes of each ``mma.sync`` (tests/test_cuda_targets.py). Of ``products``: the operations
    that NVIDIA's data sheets give a card, by its multiprocessors and highest clock.
    """

    name: str
    int8: tuple[int, int, int]
    int4: tuple[int, int, int] | None
    cp_async: bool
    shared_block: int
    shared_sm: int
    threads_sm: int
    blocks_sm: int
    products: int
    registers: int = 64 * KB

    @property
    def capability(self) -> tuple[int, int]:
        """NVIDIA's number of the architecture: (7, 5) of "sm_75"."""
        number = int(re.sub(r"\D", "", self.name))
        return number // 10, number % 10


def _ampere(name: str, int4: bool, shared_sm: int, threads_sm: int, blocks_sm: int, products: int) -> Arch:
    """sm_80 and later: one KB of a multiprocessor's shared memory is the system's."""
    wide = (16, 8, 64) if int4 else None
    return Arch(name, (16, 8, 32), wide, True, (shared_sm - 1) * KB, shared_sm * KB, threads_sm, blocks_sm, products)


ARCHS = {
    arch.name: arch
    for arch in (
        Arch("sm_75", (8, 8, 16), (8, 8, 32), False, 64 * KB, 64 * KB, 1024, 16, 1024),
        _ampere("sm_80", True, 164, 2048, 32, 2048),
        _ampere("sm_86", True, 100, 1536, 16, 1024),
        _ampere("sm_87", True, 164, 1536, 16, 2048),
        _ampere("sm_89", True, 100, 1536, 24, 1024),
        _ampere("sm_90", False, 228, 2048, 32, 4096),
        _ampere("sm_100", False, 228, 2048, 32, 8192),
        _ampere("sm_103", False, 228, 2048, 32, 512),
        _ampere("sm_120", False, 100, 1536, 24, 1024),
        _ampere("sm_121", False, 100, 1536, 24, 1024),
    )
}


def arch_of(name: str) -> Arch:
    """The architecture called "sm_80", or "sm_90a" with what no other generation has.

    Raises IntqError for one without tensor cores for 8-bit integers, and for one that the kernels do not know.
    """
    match = re.fullmatch(r"sm_(\d+)([af]?)", name)
    known = f"choose one of {', '.join(ARCHS)}"
    if match is None:
        raise IntqError(f"{name!r} is no GPU architecture: {known}")
    if int(match[1]) < 75:
        lacks = "has no tensor cores" if int(match[1]) < 70 else "has no mma.sync on 8-bit integers"
        raise IntqError(f"{name} {lacks}, which the kernels for GPUs compute with and which came with sm_75: {known}")
    arch = ARCHS.get(f"sm_{match[1]}")
    if arch is None:
        raise IntqError(f"the kernels do not know {name}: {known}")
    return replace(arch, name=name)
