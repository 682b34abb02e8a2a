"""Operations on one element of each input: their bodies, a few channels to a thread."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import Vector
from intq.kernels.build import bound, symbolic
from intq.kernels.cuda.build import i32, kernel, quotient, remainder
from intq.kernels.cuda.dialect import CudaDialect, tables
from intq.kernels.cuda.elements import Constants, Elements, width_of
from intq.kernels.cuda.sweep import each

Tensor = tuple[tuple, str]


def pointwise(
    name: str, body: Callable, attrs: Mapping, constants: Constants | None, curve: int, inputs: list, out: Tensor
) -> tirx.PrimFunc:
    """The kernel (inputs..., [constants], [curve], out). ``curve``: entries of each of its tables, 0 for none.

    The second input may be 1 where the first is not.
    """
    (shape, dtype), channels = out, out[0][-1]
    alike = all(s == shape for s, _ in inputs)
    width = width_of(channels, dtype, *(d for s, d in inputs if s[-1] == channels))
    sizes_ = (constants.size if constants else 0, 3 * curve)
    arguments = [*inputs, *(((size,), "int32") for size in sizes_ if size)]
    names = symbolic(shape)

    def write(*given):
        sizes, (*sources, target) = bound(shape, given), given[len(names) :]
        coefficients = {"curve": tables(sources.pop(), curve, 3)} if curve else {}
        packed = sources.pop() if constants else None
        first, rest = (1, math.prod(sizes)) if alike else (sizes[0], math.prod(sizes[1:]))
        total = math.prod(sizes, start=i32(1))

        def element(sample, at):
            at = T.Bind(at * width)
            channel = T.Bind(remainder(at, channels)) if constants else None
            place = at if alike else T.Bind(sample * rest + at)
            values = constants.load(packed, [channel + i for i in range(width)]) if constants else {}
            operands = []
            for source, (other, _) in zip(sources, inputs, strict=True):
                if other == shape:
                    operands.append(Elements(source, total, width).load(place))
                else:
                    operands.append(_broadcast(source, sample, at, sizes, other, width))
            lift = constants.rescale.lift if constants else 0
            result = body(CudaDialect, tuple(x.lifted(lift) for x in operands), values | coefficients, attrs)
            Elements(target, total, width).store(place, result)

        each(first, quotient(rest, width) if not isinstance(rest, int) else rest // width, element)

    return kernel(name, [*arguments, out], write, names)


def _broadcast(source, sample, at, sizes, other: tuple, width: int) -> Vector:
    """The elements of an input of shape ``other`` that meet those from ``at`` on of a sample of the first."""
    places = [i32(0)] * width
    stride, rest = 1, [at + i for i in range(width)]
    for axis in range(len(other) - 1, 0, -1):
        if other[axis] != 1:
            here = rest if axis == 1 else [remainder(r, sizes[axis]) for r in rest]
            places = [place + r * stride for place, r in zip(places, here, strict=True)]
            stride = stride * sizes[axis]
        if axis > 1:
            rest = [quotient(r, sizes[axis]) for r in rest]
    return Vector(tuple(T.Bind(source[sample * stride + place]).astype("int32") for place in places), "int32")


def lookup(name: str, body: Callable, attrs: Mapping, dtype: str, x: Tensor, out: Tensor) -> tirx.PrimFunc:
    """The kernel (x, table, out)."""
    width = width_of(out[0][-1], x[1], out[1])

    def write(n, source, table, target):
        size = math.prod(d for d in out[0] if not isinstance(d, str))

        def element(_, at):
            at = T.Bind(at * width)
            operand = Elements(source, n * size, width).load(at)
            (values,) = tables(table, 256, 1)
            result = body(CudaDialect, (operand,), {"table": lambda v: _as_int32(values(v))}, attrs)
            Elements(target, n * size, width).store(at, result)

        each(1, n * (size // width), element)

    return kernel(name, [x, ((256,), dtype), out], write)


def _as_int32(x: Vector) -> Vector:
    return Vector(tuple(part.astype("int32") for part in x.parts), "int32")
