"""The dialect of CUDA kernels: bodies on a few scalars of a thread, in registers."""

from __future__ import annotations

from dataclasses import replace

from tvm import tirx

from intq.kernels.bodies import TvmDialect, Vector
from intq.kernels.cuda.build import registers, store


class CudaDialect(TvmDialect):
    """A :class:`Vector` has a part for each element; none is paired."""

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
