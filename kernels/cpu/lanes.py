"""Runs of channels in registers: loaded as int32, stored as bytes or words (see :mod:`intq.kernels.cpu.runs`)."""

from __future__ import annotations

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import Vector, low_words, reinterpret, splat, vector_type
from intq.kernels.cpu.runs import Run

QUAD_PACKS = {  # channels of a quad -> the instructions that pack int32 to int16 and int16 to uint8 with saturation
    64: ("llvm.x86.avx512.packssdw.512", "llvm.x86.avx512.packuswb.512"),
    32: ("llvm.x86.avx2.packssdw", "llvm.x86.avx2.packuswb"),
    16: ("llvm.x86.sse2.packssdw.128", "llvm.x86.sse2.packuswb.128"),
}
SATURATED = {"uint8": (0, 255), "int16": (-(2**15), 2**15 - 1)}


def load(buffer, index, run: Run) -> Vector:
    """``run.width`` elements of a flat uint8, int16 or int32 buffer from ``index`` on, as int32."""
    whole = buffer[tirx.Ramp(index, tirx.const(1, "int64"), run.width)] if run.width > 1 else buffer[index]
    return widen(whole, str(buffer.dtype), run)


def widen(whole, dtype: str, run: Run) -> Vector:
    """A loaded vector as int32, in the run's order."""
    if not run.quad:
        return Vector((whole.astype(vector_type("int32", run.width)),), "int32")
    order = run.order.reshape(4, -1)
    if dtype == "uint8":
        zeros = splat(0, "uint8", run.width)
        spread = lambda channels: np.stack([channels] + [np.full_like(channels, run.width)] * 3, axis=1).ravel()  # noqa: E731
        parts = tuple(reinterpret(_shuffle([whole, zeros], spread(c)), f"int32x{run.part_lanes}") for c in order)
    else:
        parts = tuple(_shuffle([whole], c).astype(f"int32x{run.part_lanes}") for c in order)
    return Vector(parts, "int32", True)


def _shuffle(vectors, indices):
    return tirx.Shuffle(vectors, [tirx.const(int(i), "int32") for i in indices])


def accumulated(buffer, index, run: Run) -> Vector:
    """int32 accumulators that already lie in the run's order."""
    step = run.part_lanes
    one = tirx.const(1, "int64")
    parts = tuple(
        buffer[tirx.Ramp(index + j * step, one, step)] if step > 1 else buffer[index + j] for j in range(run.parts)
    )
    return Vector(parts, "int32", run.quad)


def store(buffer, index, value: Vector, run: Run) -> None:
    """Clamp and store as the buffer's dtype."""
    dtype = str(buffer.dtype)
    place = [tirx.Ramp(index, tirx.const(1, "int64"), run.width) if run.width > 1 else index]
    T.buffer_store(buffer, narrow(value, dtype, run), place)


def narrow(value: Vector, dtype: str, run: Run):
    """The clamped value as one vector of ``dtype`` in natural order."""
    if value.dtype == "int64":
        value = low_words(value.clamped())
    if not run.quad:
        return value.clamped().parts[0].astype(vector_type(dtype, run.width))
    if dtype == "int32":
        return _shuffle(list(value.clamped().parts), np.argsort(run.order))
    bounds = value.bounds or SATURATED[dtype]
    words_of, bytes_of = QUAD_PACKS[run.width]
    pack = lambda name, kind, a, b: tirx.call_llvm_pure_intrin(kind, name, a, b)  # noqa: E731
    words = [pack(words_of, f"int16x{run.width // 2}", value.parts[i], value.parts[i + 1]) for i in (0, 2)]
    if dtype == "int16":  # lane l of the first vector has channels 16 l + (0..7), of the second 16 l + (8..15)
        channel = np.concatenate(
            [16 * (np.arange(run.width // 2) // 8) + np.arange(run.width // 2) % 8 + 8 * v for v in (0, 1)]
        )
        whole = _shuffle(words, np.argsort(channel))
    else:
        whole = reinterpret(pack(bytes_of, f"int8x{run.width}", *words), f"uint8x{run.width}")
    low, high = bounds
    least, most = SATURATED[dtype]
    if high < most:
        whole = tirx.min(whole, splat(high, dtype, run.width))
    if low > least:
        whole = tirx.max(whole, splat(low, dtype, run.width))
    return whole
