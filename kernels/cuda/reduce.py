"""Sums over the lanes of a warp, and over the warps of a block."""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import Vector
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


def over_warps(memory, warps: int, apart: int, at=0) -> Vector:
    """The sum of what each warp has left at ``at`` in shared memory, ``apart`` elements from the next one's."""
    parts = [memory[i32(at) + warp * apart] for warp in range(warps)]
    return Vector((T.Bind(sum(parts[1:], start=parts[0])),), str(memory.dtype))
