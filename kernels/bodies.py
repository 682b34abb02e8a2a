"""The TVM dialect: runs an operation's body on vectors of channels, as TIR expressions.

A run of channels is held as a few vector registers, the ``parts``. On x86 a run of 64, 32 or 16 channels is a *quad*:
four int32 vectors whose lanes are in the order in which byte unpack and pack instructions work, so that neither costs
a permutation (see :mod:`intq.kernels.cpu.runs`). A 64-bit vector of a quad is the *pair* (even lanes, odd lanes) of
its 32-bit one: ``vpmuldq`` multiplies exactly those, unconverted. Elsewhere a run is one vector in natural order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.build import ramp
from intq.kernels.cpu.build import local
from intq.kernels.rescale import HIGH_WORD


def lanes(expression) -> int:
    """The number of elements of a TIR expression."""
    return expression.ty.dtype.lanes


def splat(value, dtype: str, count: int):
    """A vector of ``count`` equal elements."""
    scalar = tirx.const(int(value), dtype) if isinstance(value, int | np.integer) else value
    return scalar if count == 1 else tirx.Broadcast(scalar, count)


def vector_type(dtype: str, count: int) -> str:
    return dtype if count == 1 else f"{dtype}x{count}"


def reinterpret(expression, dtype: str):
    """The same bits as another type."""
    return tirx.op.reinterpret(dtype, expression)


@dataclass(frozen=True)
class Vector:
    """Integers of one width. ``paired``: its int64 form is, or will be, (even, odd) pairs of int32 vectors.

    ``bounds``: a clamp not yet applied: the store does it, most cheaply in the narrowest type.
    """

    parts: tuple
    dtype: str
    paired: bool = False
    bounds: tuple[int, int] | None = None

    def _operate(self, other, operation) -> Vector:
        if isinstance(other, Vector):
            if (other.dtype, other.paired, len(other.parts)) != (self.dtype, self.paired, len(self.parts)):
                raise TypeError(f"operands differ: {self.dtype} {self.paired} and {other.dtype} {other.paired}")
            right = other.clamped().parts
        else:
            right = [splat(other, self.dtype, lanes(p)) for p in self.parts]
        left = self.clamped().parts
        return replace(self, parts=tuple(map(operation, left, right)), bounds=None)

    def clamped(self) -> Vector:
        """The same with a pending clamp applied."""
        if self.bounds is None:
            return self
        low, high = self.bounds
        limit = lambda p: tirx.max(  # noqa: E731
            tirx.min(p, splat(high, self.dtype, lanes(p))), splat(low, self.dtype, lanes(p))
        )
        return replace(self, parts=tuple(map(limit, self.parts)), bounds=None)

    def __add__(self, other) -> Vector:
        return self._operate(other, lambda a, b: a + b)

    def __sub__(self, other) -> Vector:
        return self._operate(other, lambda a, b: a - b)

    def __mul__(self, other) -> Vector:
        return self._operate(other, lambda a, b: a * b)

    __radd__, __rmul__ = __add__, __mul__

    def __le__(self, other) -> Vector:
        return replace(self._operate(other, lambda a, b: a <= b), dtype="bool")

    def __ge__(self, other) -> Vector:
        return replace(self._operate(other, lambda a, b: a >= b), dtype="bool")

    def lifted(self, places: int) -> Vector:
        """Times ``2**places``."""
        return self._operate(places, lambda a, b: a << b) if places else self


def _sign_extended(pair_word):
    """The low 32 bits of 64-bit lanes, sign extended: free in front of ``vpmuldq``, which reads only these."""
    places = splat(32, "int64", lanes(pair_word))
    return (pair_word << places) >> places


class TvmDialect:
    """How bodies are spelled in TIR (see :mod:`intq.fixedpoint`)."""

    @staticmethod
    def wide(x: Vector) -> Vector:
        """int64 of int32. An int64 operand is a constant, loaded in pairs, of int32 range."""
        x = x.clamped()
        if x.dtype == "int64":
            return replace(x, parts=tuple(map(_sign_extended, x.parts))) if x.paired else x
        if not x.paired:
            return Vector(tuple(p.astype(vector_type("int64", lanes(p))) for p in x.parts), "int64")
        parts = []
        for part in x.parts:
            word = reinterpret(part, vector_type("int64", lanes(part) // 2))
            parts += [_sign_extended(word), word >> splat(32, "int64", lanes(word))]
        return Vector(tuple(parts), "int64", True)

    @staticmethod
    def shift_right(x: Vector, shift) -> Vector:
        """Arithmetic shift. An int32 ``shift`` of an int64 ``x`` is what exceeds HIGH_WORD: the result is int32."""
        if isinstance(shift, int) or shift.dtype == x.dtype:
            return x._operate(shift, lambda a, b: a >> b)
        high = high_words(x)
        return high._operate(shift, lambda a, b: a >> b)

    @staticmethod
    def lookup(table, x: Vector) -> Vector:
        """``table``: what its kernel makes of it, such as :func:`intq.kernels.cpu.lanes.table`."""
        return table(x.clamped())

    @staticmethod
    def low_bits(x: Vector, count: int) -> Vector:
        """x modulo ``2**count``."""
        return x._operate((1 << count) - 1, lambda a, b: a & b)

    @staticmethod
    def narrow(x: Vector) -> Vector:
        """int32 of int64, which must hold its value."""
        x = x.clamped()
        return low_words(x) if x.dtype == "int64" else x

    @staticmethod
    def shift_left(x: Vector, places: int | Vector) -> Vector:
        return x.lifted(places) if isinstance(places, int) else x._operate(places, lambda a, b: a << b)

    @staticmethod
    def within(x: Vector, low: int, high: int) -> Vector:
        return x

    @staticmethod
    def where(condition: Vector, a: Vector, b: Vector) -> Vector:
        """a where the condition holds, else b; see :func:`held`."""
        parts = zip(condition.parts, a.clamped().parts, b.clamped().parts, strict=True)
        return held(replace(a, parts=tuple(tirx.Select(*part) for part in parts), bounds=None))

    @staticmethod
    def clamp(x: Vector, low: int, high: int) -> Vector:
        return replace(x.clamped(), bounds=(low, high))


def held(x: Vector) -> Vector:
    """The same, computed here and once: each round of a root or a quotient uses the last one's results several times.

    In buffers, which LLVM makes registers: TVM takes for ever to simplify a long chain of ``T.Bind``.
    """
    parts = []
    for part in x.parts:
        buffer, place = local(lanes(part), x.dtype), ramp(0, lanes(part))
        T.buffer_store(buffer, part, [place])
        parts.append(buffer[place])
    return replace(x, parts=tuple(parts))


def high_words(x: Vector) -> Vector:
    """The high 32 bits of each int64."""
    if not x.paired:
        return Vector(
            tuple((p >> splat(HIGH_WORD, "int64", lanes(p))).astype(vector_type("int32", lanes(p))) for p in x.parts),
            "int32",
        )
    return _joined(x, lambda even, odd, word: (_logical(even, word), odd & ~splat(0xFFFFFFFF, "int64", word)))


def low_words(x: Vector) -> Vector:
    """The low 32 bits of each int64, which must hold its value."""
    if not x.paired:
        return replace(x, parts=tuple(p.astype(vector_type("int32", lanes(p))) for p in x.parts), dtype="int32")
    return _joined(
        x, lambda even, odd, word: (even & splat(0xFFFFFFFF, "int64", word), odd << splat(32, "int64", word))
    )


def _logical(word, count: int):
    unsigned = reinterpret(word, vector_type("uint64", count))
    return reinterpret(unsigned >> splat(32, "uint64", count), vector_type("int64", count))


def _joined(x: Vector, halves) -> Vector:
    parts = []
    for even, odd in zip(x.parts[::2], x.parts[1::2], strict=True):
        low, high = halves(even, odd, lanes(even))
        parts.append(reinterpret(low | high, vector_type("int32", 2 * lanes(even))))
    return Vector(tuple(parts), "int32", True)
