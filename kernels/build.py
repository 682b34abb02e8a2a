"""What kernels of every target are written with: their frame, 64-bit constants, ramps of places."""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T


def i64(value):
    """A TIR int64 of a Python integer; expressions pass."""
    return tirx.const(value, "int64") if isinstance(value, int) else value


def kernel(
    name: str, arguments: list[tuple[tuple, str]], body: Callable, names: tuple[str, ...] | None = None
) -> tirx.PrimFunc:
    """A PrimFunc over tensors of the given (shape, dtype); the names in a shape, such as "n", are symbolic sizes.

    ``body(n, *buffers)`` writes it with flat one-dimensional views of the tensors. n: the product of the names that
    lead the last tensor's shape, such as n samples of s tokens, or each of ``names`` where they are given.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True, "global_symbol": name})
        sizes = {d: tirx.Var(d, "int64") for shape, _ in arguments for d in shape if isinstance(d, str)}
        handles = [T.arg(f"a{i}", T.handle()) for i in range(len(arguments))]
        shapes = [[sizes[d] if isinstance(d, str) else i64(d) for d in shape] for shape, _ in arguments]
        # TVM would take the data of others to lie at multiples of 64 bytes; NumPy's does not
        tensors = [
            T.match_buffer(h, s, dtype, align=1) for h, s, (_, dtype) in zip(handles, shapes, arguments, strict=True)
        ]
        flat = [T.decl_buffer((math.prod(t.shape, start=i64(1)),), t.dtype, data=t.data, align=1) for t in tensors]
        leading = [math.prod((sizes[d] for d in arguments[-1][0] if isinstance(d, str)), start=i64(1))]
        body(*(leading if names is None else [sizes[d] for d in names]), *flat)
    return builder.get()


def symbolic(shape: tuple) -> tuple[str, ...]:
    """The names in a shape."""
    return tuple(d for d in shape if isinstance(d, str))


def bound(shape: tuple, sizes) -> tuple:
    """A shape with its names replaced, in order, by ``sizes``."""
    rest = iter(sizes)
    return tuple(next(rest) if isinstance(d, str) else d for d in shape)


def sample_size(shape: tuple) -> int:
    """Elements of a tensor for each of the samples that its symbolic axes count."""
    return math.prod(d for d in shape if not isinstance(d, str))


def ramp(start, width: int):
    """The indices of ``width`` consecutive elements."""
    return tirx.Ramp(i64(start), i64(1), width) if width > 1 else i64(start)
