"""Sums over the lanes of a warp."""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.cuda.build import WARP, i32

EVERY_LANE = 2**32 - 1


def warp_sum(value, apart: int = 1):
    """The sum over the warp's lanes, or over every ``apart``-th of them, a power of two; each of these has it.

    All lanes come here together.
    """
    flip, dtype = WARP // 2, str(value.ty.dtype)
    while flip >= apart:
        mine = T.Bind(value)
        mask = tirx.const(EVERY_LANE, "uint32")
        value = mine + tirx.call_pure_extern(dtype, "__shfl_xor_sync", mask, mine, i32(flip))
        flip //= 2
    return T.Bind(value)
