"""Curves in 16-bit lanes: where coefficients are small enough to lose nothing, AVX-512 takes 32 values at a time.

    (a * t) >> 10  =  (2 a * 32 t) >> 16        which is vpmulhw, for 2 a and 32 t in int16

and a table of 32 words is one register (vpermw). Arguments of a curve reach 2**15 - 1, where vpackssdw saturates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import TvmDialect, Vector, lanes, low_words, reinterpret, splat
from intq.kernels.build import ramp
from intq.kernels.cpu.lanes import CURVE, QUAD_PACKS, TABLE

WIDTH = 64  # values: two vectors of words, which are one of bytes
_PACK_WORDS, _PACK_BYTES = QUAD_PACKS[WIDTH]


@dataclass(frozen=True)
class Words:
    """int16 values as vectors of 32 lanes, in the order in which packing leaves them."""

    parts: tuple

    def __add__(self, other: Words) -> Words:
        return Words(tuple(a + b for a, b in zip(self.parts, other.parts, strict=True)))

    def __mul__(self, other: Words) -> Product:
        return Product(self, other)

    def shifted(self, right: int) -> Words:
        return Words(tuple(p >> splat(right, "int16", lanes(p)) for p in self.parts))

    def bytes(self):
        """Both vectors as one of uint8, saturated."""
        return reinterpret(_intrinsic(f"int8x{WIDTH}", _PACK_BYTES, *self.parts), f"uint8x{WIDTH}")


@dataclass(frozen=True)
class Product:
    """A product of words before its low bits are shifted away."""

    a: Words
    b: Words

    def shifted(self, right: int) -> Words:
        """Of ``2 a`` and ``b << (15 - right)``, which must be int16, the high words of the product."""
        places = splat(15 - right, "int16", WIDTH // 2)
        pairs = zip(self.a.parts, self.b.parts, strict=True)
        return Words(
            tuple(
                _intrinsic(f"int16x{WIDTH // 2}", "llvm.x86.avx512.pmulh.w.512", a + a, b << places) for a, b in pairs
            )
        )


class NarrowDialect(TvmDialect):
    """For sums that are known to be in [0, 2**31) when shifted: they are int32 before they are clamped."""

    @staticmethod
    def shift_right(x: Vector, shift) -> Vector:
        if x.dtype != "int64":
            return TvmDialect.shift_right(x, shift)
        x = low_words(TvmDialect.shift_right(x, shift))
        return replace(x, parts=tuple(map(T.Bind, x.parts)))


class WordDialect(NarrowDialect):
    """The same, and the curve behind them in words."""

    @staticmethod
    def shift_right(x, shift):
        return NarrowDialect.shift_right(x, shift) if isinstance(x, Vector) else x.shifted(shift)

    @staticmethod
    def narrow(x: Vector) -> Words:
        """An argument of a curve: no less than 0, and packing saturates it at 2**15 - 1."""
        pairs = zip(x.parts[::2], x.parts[1::2], strict=True)
        return Words(tuple(T.Bind(_intrinsic(f"int16x{WIDTH // 2}", _PACK_WORDS, *pair)) for pair in pairs))

    @staticmethod
    def lookup(table, x: Words) -> Words:
        return table(x)

    @staticmethod
    def low_bits(x: Words, count: int) -> Words:
        return Words(tuple(p & splat((1 << count) - 1, "int16", lanes(p)) for p in x.parts))

    @staticmethod
    def clamp(x, low: int, high: int):
        """Of words, to the range of bytes, as they are packed."""
        return TvmDialect.clamp(x, low, high) if isinstance(x, Vector) else x


@dataclass(frozen=True)
class Lifted:
    """``(words << lift) + level``, which need not fit 16 bits: what is shifted right again does."""

    words: Words
    lift: Words
    level: int = 0

    def __add__(self, level: int) -> Lifted:
        return replace(self, level=self.level + level)

    def shifted(self, right: int) -> Words:
        """``((x << l) + c) >> r = (x + (c >> l)) >> (r - l)``; the sum saturates where the result is no byte anyway."""
        parts = []
        for x, lift in zip(self.words.parts, self.lift.parts, strict=True):
            level, places = (splat(value, "int16", lanes(x)) for value in (self.level, right))
            parts.append(_intrinsic(f"int16x{lanes(x)}", "llvm.sadd.sat", x, level >> lift) >> (places - lift))
        return Words(tuple(parts))


class LayerDialect(WordDialect):
    """A linear layer's sums, of either sign, and the scales of its curve's channels."""

    @staticmethod
    def shift_right(x, shift):
        return TvmDialect.shift_right(x, shift) if isinstance(x, Vector) else x.shifted(shift)

    @staticmethod
    def narrow(x: Vector) -> Words:
        words = WordDialect.narrow(x)
        return Words(tuple(tirx.max(p, splat(0, "int16", lanes(p))) for p in words.parts))

    @staticmethod
    def shift_left(x: Words, places: Words) -> Lifted:
        return Lifted(x, places)


def packed(x: Vector) -> Words:
    """Small int32 as words, in the order of :meth:`WordDialect.narrow`."""
    return WordDialect.narrow(x)


def bound(x: Words) -> Words:
    """The same, computed once."""
    return Words(tuple(map(T.Bind, x.parts)))


def word_tables(buffer) -> tuple:
    """The coefficients of a curve, as its body takes them (see :func:`intq.kernels.cpu.lanes.tables`)."""

    def table(i: int):
        words = T.Bind(buffer[ramp(i * TABLE, TABLE)].astype(f"int16x{TABLE}"))
        name = "llvm.x86.avx512.permvar.hi.512"
        return lambda x: Words(tuple(_intrinsic(f"int16x{TABLE}", name, words, p) for p in x.parts))

    return tuple(map(table, range(CURVE)))


def _intrinsic(dtype: str, name: str, *arguments):
    return tirx.call_llvm_pure_intrin(dtype, name, *arguments)
