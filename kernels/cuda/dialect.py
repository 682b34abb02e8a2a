"""The dialect of CUDA kernels: bodies on a few scalars of a thread, in registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import TvmDialect, Vector
from intq.kernels.cuda import newton
from intq.kernels.cuda.build import registers, store

# Of an operand that stays the same in a loop nvcc widens once and then multiplies all 64 bits, in five instructions.
_PRODUCT = """
__forceinline__ __device__ int64_t intq_product(int a, int b) {
  int64_t product;
  asm("mul.wide.s32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
  return product;
}
"""


@dataclass(frozen=True)
class Wide(Vector):
    """int64 of the int32 elements ``narrow``: two of them are multiplied by one instruction."""

    narrow: tuple = ()

    def _operate(self, other, operation) -> Vector:
        return Vector(self.parts, self.dtype)._operate(other, operation)

    def __mul__(self, other) -> Vector:
        if not isinstance(other, Wide):
            return super().__mul__(other)
        pairs = zip(self.narrow, other.narrow, strict=True)
        return Vector(tuple(_product(a, b) for a, b in pairs), "int64")


def _product(a, b):
    return T.cuda.func_call("intq_product", a, b, source_code=_PRODUCT, return_type="int64")


class CudaDialect(TvmDialect):
    """A :class:`Vector` has a part for each element; none is paired."""

    @staticmethod
    def wide(x: Vector) -> Vector:
        x = x.clamped()
        return Wide(TvmDialect.wide(x).parts, "int64", narrow=x.parts) if x.dtype == "int32" else x

    @staticmethod
    def where(condition: Vector, a: Vector, b: Vector) -> Vector:
        """a where the condition holds, else b; computed here and once, for what follows uses it several times."""
        parts = zip(condition.parts, a.clamped().parts, b.clamped().parts, strict=True)
        return held(replace(a, parts=tuple(tirx.Select(*part) for part in parts), bounds=None))


def held(x: Vector) -> Vector:
    """The same in registers."""
    memory = registers(len(x.parts), x.dtype)
    for i, part in enumerate(x.parts):
        store(memory, part, i)
    return replace(x, parts=tuple(memory[i] for i in range(len(x.parts))))


def tables(buffer, size: int, count: int) -> tuple:
    """``count`` tables of ``size`` entries that lie one after another, as bodies look them up."""

    def table(first: int):
        return lambda x: replace(x, parts=tuple(buffer[part.astype("int32") + first] for part in x.parts))

    return tuple(table(i * size) for i in range(count))


class HeldDialect(CudaDialect):
    """For what is computed once a row: what a body uses again is held, quotients and roots are a few instructions."""

    @staticmethod
    def wide(x: Vector) -> Vector:
        return x if x.dtype == "int64" and x.bounds is None else held(TvmDialect.wide(x))

    @staticmethod
    def narrow(x: Vector) -> Vector:
        return held(CudaDialect.narrow(x))

    @staticmethod
    def within(x: Vector, low: int, high: int) -> Vector:
        return held(x.clamped())

    @staticmethod
    def clamp(x: Vector, low: int, high: int) -> Vector:
        return held(CudaDialect.clamp(x, low, high).clamped())

    @staticmethod
    def quotient(n: Vector, d: Vector) -> Vector:
        return _each(newton.quotient, n, d)

    @staticmethod
    def reciprocal(d: Vector, bits: int) -> Vector:
        return _each(lambda part: newton.quotient(tirx.const(1 << bits, "int64"), part), d)

    @staticmethod
    def isqrt(n: Vector) -> Vector:
        return _each(newton.isqrt, n)


def _each(function: Callable, *operands: Vector) -> Vector:
    """A function of int64 on every element."""
    parts = zip(*(CudaDialect.wide(x).parts for x in operands), strict=True)
    return Vector(tuple(function(*each) for each in parts), "int64")


def everywhere(value, count: int) -> Vector:
    """A scalar expression, ``count`` times."""
    return Vector((value,) * count, str(value.ty.dtype))
