"""Runs of channels in registers: loaded as int32, stored as bytes or words (see :mod:`intq.kernels.cpu.runs`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import Vector, lanes, low_words, reinterpret, splat, vector_type
from intq.kernels.build import i64, ramp
from intq.kernels.cpu.isa import Isa
from intq.kernels.cpu.runs import Run

QUAD_PACKS = {  # channels of a quad -> the instructions that pack int32 to int16 and int16 to uint8 with saturation
    64: ("llvm.x86.avx512.packssdw.512", "llvm.x86.avx512.packuswb.512"),
    32: ("llvm.x86.avx2.packssdw", "llvm.x86.avx2.packuswb"),
    16: ("llvm.x86.sse2.packssdw.128", "llvm.x86.sse2.packuswb.128"),
}
TABLE = 32  # entries of a table that two registers hold
CURVE = 3  # tables of a curve, see intq.curves
SATURATED = {"uint8": (0, 255), "int16": (-(2**15), 2**15 - 1)}


def load(buffer, index, run: Run) -> Vector:
    """``run.width`` elements of a flat uint8, int16 or int32 buffer from ``index`` on, as int32.

    ``index``: of a run over several rows one for each.
    """
    rows = [widen(buffer[ramp(i, run.width)], str(buffer.dtype), run) for i in _each(index)]
    return replace(rows[0], parts=tuple(part for row in rows for part in row.parts))


def _each(index) -> tuple:
    return index if isinstance(index, tuple) else (index,)


def widen(whole, dtype: str, run: Run) -> Vector:
    """A row of loaded elements as int32, in the run's order."""
    if not run.quad:
        return Vector((whole.astype(vector_type("int32", run.width)),), "int32")
    order = run.order.reshape(-1, run.part_lanes)
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
    each = run.parts // run.rows
    parts = tuple(buffer[ramp(i + j * step, step)] for i in _each(index) for j in range(each))
    return Vector(parts, "int32", run.quad)


def store(buffer, index, value: Vector, run: Run) -> None:
    """Clamp and store as the buffer's dtype; ``index`` as in :func:`load`."""
    for place, row in zip(_each(index), narrow(value, str(buffer.dtype), run), strict=True):
        T.buffer_store(buffer, row, [ramp(place, run.width)])


def narrow(value, dtype: str, run: Run) -> list:
    """The clamped value of each row as one vector of ``dtype`` in natural order.

    ``value``: a Vector, or the words of a curve (:mod:`intq.kernels.cpu.words`), which packing makes uint8.
    """
    if not isinstance(value, Vector):
        return _split(T.Bind(value.bytes()), run)
    if value.dtype == "int64":
        value = low_words(value.clamped())
    if not run.quad:
        return [value.clamped().parts[0].astype(vector_type(dtype, run.width))]
    each = run.parts // run.rows
    if dtype == "int32":
        parts = value.clamped().parts
        return [_shuffle(list(parts[i : i + each]), np.argsort(run.order)) for i in range(0, run.parts, each)]
    low, high = value.bounds or SATURATED[dtype]
    elements, (words_of, bytes_of) = 4 * run.part_lanes, QUAD_PACKS[4 * run.part_lanes]
    pack = lambda name, kind, a, b: tirx.call_llvm_pure_intrin(kind, name, a, b)  # noqa: E731
    words = [pack(words_of, f"int16x{elements // 2}", value.parts[i], value.parts[i + 1]) for i in (0, 2)]
    if dtype == "int16":
        rows = words if run.rows == 2 else [_shuffle(words, np.argsort(_word_order(elements)))]
        return [_within(row, dtype, low, high) for row in rows]
    whole = reinterpret(pack(bytes_of, f"int8x{elements}", *words), f"uint8x{elements}")
    return _split(T.Bind(_within(whole, dtype, low, high)), run)


def _split(whole, run: Run) -> list:
    """The bytes of each row of a run."""
    if run.rows == 1:
        return [whole]
    eighths = np.arange(lanes(whole)).reshape(-1, 2, 8)  # eight bytes of one row, eight of the other
    return [_shuffle([whole], eighths[:, i].ravel()) for i in range(2)]


def _word_order(elements: int) -> np.ndarray:
    """The channel of each word of two vectors that vpackssdw made: 16 l + (0..7) in the first, 16 l + (8..15)."""
    at = np.arange(elements // 2)
    return np.concatenate([16 * (at // 8) + at % 8 + 8 * vector for vector in (0, 1)])


def _within(whole, dtype: str, low: int, high: int):
    least, most = SATURATED[dtype]
    if high < most:
        whole = tirx.min(whole, splat(high, dtype, lanes(whole)))
    if low > least:
        whole = tirx.max(whole, splat(low, dtype, lanes(whole)))
    return whole


def table(buffer, at, isa: Isa) -> Callable[[Vector], Vector]:
    """``buffer[at + x]`` for int32 lanes 0 <= x < TABLE: on AVX-512 one instruction on two registers, else loads."""
    if "avx512f" not in isa.features:
        return lambda x: replace(x, parts=tuple(buffer[_from(at, p)] for p in x.parts))
    halves = [T.Bind(buffer[ramp(at + i * 16, 16)]) for i in range(2)]

    def choose(index):
        count = lanes(index)
        if count == 1:
            return buffer[_from(at, index)]
        wide = index if count == 16 else _shuffle([index] * (16 // count), np.arange(16))
        name = "llvm.x86.avx512.vpermi2var.d.512"
        chosen = tirx.call_llvm_pure_intrin("int32x16", name, halves[0], wide, halves[1])
        return chosen if count == 16 else _shuffle([chosen], np.arange(count))

    return lambda x: replace(x, parts=tuple(map(choose, x.parts)))


def tables(buffer, isa: Isa) -> tuple[Callable[[Vector], Vector], ...]:
    """The coefficients of a curve, as its body takes them."""
    return tuple(table(buffer, i * TABLE, isa) for i in range(CURVE))


def _from(at, index):
    """The places of int32 lanes ``index`` counted from ``at``."""
    count = lanes(index)
    return splat(i64(at), "int64", count) + index.astype(vector_type("int64", count))
