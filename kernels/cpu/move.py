"""Operations that rearrange tensors: copies. (A reshape copies nothing and has no kernel.)"""

from __future__ import annotations

import math

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.build import bound, kernel, sample_size, symbolic
from intq.kernels.cpu.build import copy, parallel, parallel_region, serial
from intq.kernels.cpu.gather import pad_image


def concat(name: str, attrs, inputs, output) -> tirx.PrimFunc:
    """The kernel (inputs..., out): every input is one run of elements per index of the axes before ``axis``."""
    axis = attrs["axis"]
    lengths = [math.prod(shape[axis:]) for shape, _ in inputs]

    def write(n, *buffers):
        *sources, out = buffers
        with parallel_region(), parallel(n * sample_size(output[0][:axis])) as i:
            at = 0
            for source, length in zip(sources, lengths, strict=True):
                copy(out, T.Bind(i * sum(lengths) + at), source, T.Bind(i * length), length)
                at += length

    return kernel(name, [*inputs, output], write)


def slice_(name: str, attrs, source, output) -> tirx.PrimFunc:
    """The kernel (x, out)."""
    (shape, _), axis, start, step = source, attrs["axis"], attrs["start"], attrs["step"]
    taken, names = output[0][axis], symbolic(shape)

    def write(*rest):
        sizes, (x, out) = bound(shape, rest), rest[len(names) :]
        inner = math.prod(sizes[axis + 1 :])
        with parallel_region(), parallel(math.prod(sizes[:axis])) as i:
            first = i * (sizes[axis] * inner) + start * inner
            if step == 1:
                copy(out, T.Bind(i * (taken * inner)), x, T.Bind(first), taken * inner)
            else:
                with serial(taken) as k:
                    copy(out, T.Bind((i * taken + k) * inner), x, T.Bind(first + k * (step * inner)), inner)

    return kernel(name, [source, output], write, names)


def transpose(name: str, attrs, source, output) -> tirx.PrimFunc:
    """The kernel (x, out): element by element, in the order of the output."""
    shape, perm, names = source[0], attrs["perm"], symbolic(source[0])

    def write(*rest):
        known, (x, out) = bound(shape, rest), rest[len(names) :]
        strides = [math.prod(known[axis + 1 :]) for axis in perm]
        sizes = [known[axis] for axis in perm]
        inner = math.prod(sizes[2:])
        with parallel_region(), parallel(sizes[0] * sizes[1]) as i, serial(inner) as k:
            at, left = (i // sizes[1]) * strides[0] + i % sizes[1] * strides[1], k
            for size, stride in zip(reversed(sizes[2:]), reversed(strides[2:]), strict=True):
                at, left = at + left % size * stride, left // size
            T.buffer_store(out, x[at], [i * inner + k])

    return kernel(name, [source, output], write, names)


def pad(name: str, attrs, source, output) -> tirx.PrimFunc:
    """The kernel (x, pad_value, out)."""
    (_, h, w, c), dtype = source

    def write(n, x, pad_value, out):
        with parallel_region(), serial(n) as image:
            pad_image(out, x, image, pad_value, (h, w, c), attrs["padding"], image * math.prod(output[0][1:]))

    return kernel(name, [source, ((c,), dtype), output], write)
