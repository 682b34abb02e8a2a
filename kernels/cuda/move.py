"""Operations that rearrange tensors: copies. (A reshape copies nothing and has no kernel.)"""

from __future__ import annotations

import math
from collections.abc import Mapping

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.build import bound, symbolic
from intq.kernels.cuda.build import blocks, ceil_div, i32, kernel, quotient, remainder, store
from intq.kernels.cuda.sweep import THREADS, each

Tensor = tuple[tuple, str]


def concat(name: str, attrs: Mapping, inputs: list[Tensor], out: Tensor) -> tirx.PrimFunc:
    """The kernel (inputs..., out): every input is one run of elements per index of the axes before ``axis``."""
    axis, names = attrs["axis"], symbolic(out[0])

    def write(*given):
        (*sources, target), at = given[len(names) :], 0
        lengths = [math.prod(shape[axis:]) for shape, _ in inputs]
        outer = math.prod(bound(out[0][:axis], given), start=i32(1))
        for source, length in zip(sources, lengths, strict=True):

            def element(_, i, source=source, length=length, at=at):
                place = quotient(i, length) * sum(lengths) + remainder(i, length) + at
                store(target, source[i], place)

            each(1, outer * length, element)
            at += length

    return kernel(name, [*inputs, out], write, names)


def slice_(name: str, attrs: Mapping, source: Tensor, out: Tensor) -> tirx.PrimFunc:
    """The kernel (x, out)."""
    (shape, _), axis, start, step = source, attrs["axis"], attrs["start"], attrs["step"]
    taken, names = out[0][axis], symbolic(shape)

    def write(*given):
        sizes, (x, target) = bound(shape, given), given[len(names) :]
        inner = math.prod(sizes[axis + 1 :])

        def element(_, i):
            before, within = quotient(i, taken * inner), remainder(i, taken * inner)
            place = before * (sizes[axis] * inner) + (quotient(within, inner) * step + start) * inner
            store(target, x[place + remainder(within, inner)], i)

        each(1, math.prod(sizes[:axis], start=i32(1)) * (taken * inner), element)

    return kernel(name, [source, out], write, names)


def transpose(name: str, attrs: Mapping, source: Tensor, out: Tensor) -> tirx.PrimFunc:
    """The kernel (x, out): element by element, in the order of the output.

    The output's first two axes are those of the grid, so that no index is divided by a size that is not known.
    """
    shape, perm, names = source[0], attrs["perm"], symbolic(source[0])

    def write(*given):
        known, (x, target) = bound(shape, given), given[len(names) :]
        strides = [math.prod(known[axis + 1 :]) for axis in perm]
        sizes = [known[axis] for axis in perm]
        inner = math.prod(sizes[2:])
        with blocks(THREADS, ceil_div(inner, THREADS), sizes[1], sizes[0]) as (bx, by, bz, thread):
            i = T.Bind(bx * THREADS + thread)
            with T.If(i < i32(inner)), T.Then():
                at, left = bz * strides[0] + by * strides[1], i
                for axis in range(len(sizes) - 1, 1, -1):
                    last = axis == 2
                    at = at + (left if last else remainder(left, sizes[axis])) * strides[axis]
                    left = left if last else quotient(left, sizes[axis])
                store(target, x[at], (bz * sizes[1] + by) * inner + i)

    return kernel(name, [source, out], write, names)


def pad(name: str, attrs: Mapping, source: Tensor, out: Tensor) -> tirx.PrimFunc:
    """The kernel (x, pad_value, out)."""
    (_, h, w, c), (_, oh, ow, _), (top, left, _, _) = source[0], out[0], attrs["padding"]

    def write(n, x, pad_value, target):
        def element(sample, i):
            channel, pixel = remainder(i, c), quotient(i, c)
            y, column = T.Bind(quotient(pixel, ow) - top), T.Bind(remainder(pixel, ow) - left)
            inside = tirx.all(y >= 0, y < h, column >= 0, column < w)
            value = tirx.if_then_else(inside, x[((sample * h + y) * w + column) * c + channel], pad_value[channel])
            store(target, value, sample * (oh * ow * c) + i)

        each(n, oh * ow * c, element)

    return kernel(name, [source, ((c,), source[1]), out], write)
