"""The instruction sets that the kernels know, and which of them a TVM target has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Isa:
    """A contraction's register tile on one instruction set.

    ``rows`` x ``columns``: what one call of the microkernel computes. ``k_quantum``: bytes of a row of A that it
    takes at a time. ``quads``: widths of channel runs in pack order (see :mod:`intq.kernels.cpu.runs`); ``natural``:
    the widest run in natural order. ``features``: what the processor must have, in LLVM's names.
    """

    name: str
    rows: int
    columns: int
    k_quantum: int
    quads: tuple[int, ...]
    natural: int
    features: tuple[str, ...]


_AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni")
ISAS = {
    isa.name: isa
    for isa in (
        Isa("amx", 32, 64, 4, (64, 32, 16), 8, (*_AVX512, "amx-tile", "amx-int8")),
        Isa("vnni", 6, 64, 4, (64, 32, 16), 8, _AVX512),
        Isa("avx2", 4, 32, 8, (32, 16), 8, ("avx2",)),
        Isa("plain", 4, 16, 1, (), 16, ()),
    )
}
