"""Pooling over windows, over height and width, over tokens."""

from __future__ import annotations

import math

import torch

from intq.aten.build import Unsupported, affine, cut, join, mean_of_frames, pair, takes
from intq.aten.text import token_sum


def _window(build, x: str, kernel, stride, padding, dilation=(1, 1)) -> tuple[tuple, tuple, tuple]:
    """(kernel, stride, padding (t, l, b, r)), the far sides padded just as far as the last window reaches."""
    kernel, padding = pair(kernel), pair(padding)
    stride = pair(stride) if stride else kernel
    sides = []
    for size, out, k, s, p, d in zip(
        build.shapes[x][2:], build.shape[2:], kernel, stride, padding, dilation, strict=True
    ):
        sides.append(max(0, (out - 1) * s + d * (k - 1) + 1 - size - p))
    return kernel, stride, (*padding, *sides)


@takes("max_pool2d")
def _max_pool2d(build, self, kernel_size, stride, padding, dilation, ceil_mode):
    dilation = pair(dilation)
    if dilation != (1, 1):
        raise Unsupported(f"dilation must be 1, got {dilation}")
    kernel, stride, sides = _window(build, self, kernel_size, stride, padding)
    return build.emit("max_pool2d", self, kernel=kernel, stride=stride, padding=sides, dilation=dilation)


@takes("avg_pool2d")
def _avg_pool2d(build, self, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override):
    kernel, strides, sides = _window(build, self, kernel_size, stride, padding)
    ones = torch.ones(1, 1, *build.shapes[self][2:])
    average = torch.nn.functional.avg_pool2d(
        ones, kernel, strides, pair(padding), ceil_mode, count_include_pad, divisor_override
    )
    top, left, bottom, right = sides
    padded = torch.nn.functional.pad(ones, (left, right, top, bottom))
    divisor = torch.nn.functional.avg_pool2d(padded, kernel, strides, divisor_override=1)[0, 0] / average[0, 0]
    divisor = divisor.round()
    if bool((divisor == divisor.flatten()[0]).all()):
        divisor = divisor.flatten()[0]
    return build.emit("avg_pool2d", self, kernel=kernel, stride=strides, padding=sides, parameters={"divisor": divisor})


@takes("adaptive_avg_pool2d", "_adaptive_avg_pool2d")
def _adaptive_avg_pool2d(build, self, output_size):
    size, out = build.shapes[self][2:], build.shape[2:]
    if out == (1, 1):
        return build.emit("mean", self, keepdim=True)
    if out == size:
        return self
    if all(s % o == 0 for s, o in zip(size, out, strict=True)):
        kernel = tuple(s // o for s, o in zip(size, out, strict=True))
        divisor = torch.tensor(float(kernel[0] * kernel[1]))
        return build.emit(
            "avg_pool2d", self, kernel=kernel, stride=kernel, padding=(0, 0, 0, 0), parameters={"divisor": divisor}
        )
    return _uneven_pool(build, self, size, out)


def _uneven_pool(build, x: str, size: tuple, out: tuple) -> str:
    """Windows of unequal size, torch's [floor(i * s / o), ceil((i + 1) * s / o)): one slice and one mean each."""
    n, c = build.shapes[x][:2]
    bounds = [[(i * s // o, -(-(i + 1) * s // o)) for i in range(o)] for s, o in zip(size, out, strict=True)]
    rows = []
    for top, bottom in bounds[0]:
        band = cut(build, x, 2, top, bottom)
        cells = [
            build.emit("mean", cut(build, band, 3, left, right), shape=(n, c, 1, 1), keepdim=True)
            for left, right in bounds[1]
        ]
        rows.append(join(build, cells, 3))
    return join(build, rows, 2)


@takes("mean")
def _mean(build, self, dim=None, keepdim=False, dtype=None):
    rank = len(build.shapes[self])
    axes = sorted(d % rank for d in (dim if isinstance(dim, (list, tuple)) else [dim]))
    if rank == 3 and axes == [2]:  # (n, c, frames)
        return mean_of_frames(build, self)
    if rank != 4 or axes not in ([2, 3], [2], [3]):
        raise Unsupported(f"only a mean over height and width of (n, c, h, w) is taken, got axes {axes} of rank {rank}")
    if axes == [2, 3]:
        return build.emit("mean", self, keepdim=bool(keepdim))
    shape = build.shapes[self]
    kernel = (shape[2], 1) if axes == [2] else (1, shape[3])
    pooled = (*shape[:2], 1, shape[3]) if axes == [2] else (*shape[:3], 1)
    divisor = torch.tensor(float(kernel[0] * kernel[1]))
    pool = build.emit(
        "avg_pool2d",
        self,
        shape=pooled,
        kernel=kernel,
        stride=kernel,
        padding=(0, 0, 0, 0),
        parameters={"divisor": divisor},
    )
    return pool if keepdim else build.emit("reshape", pool)


@takes("adaptive_max_pool2d")
def _adaptive_max_pool2d(build, self, output_size):
    shapes = build.shape
    size, out = build.shapes[self][2:], shapes[0][2:]
    if any(s % o for s, o in zip(size, out, strict=True)):
        raise Unsupported(f"an output of {out} does not divide the input of {size}; choose one that does")
    kernel = tuple(s // o for s, o in zip(size, out, strict=True))
    pool = build.emit(
        "max_pool2d", self, shape=shapes[0], kernel=kernel, stride=kernel, padding=(0, 0, 0, 0), dilation=(1, 1)
    )
    return [pool, pool]


@takes("amax")
def _amax(build, self, dim, keepdim):
    shape = build.shapes[self]
    if len(shape) != 4 or sorted(d % 4 for d in dim) != [2, 3]:
        raise Unsupported("only a maximum over height and width of (n, c, h, w) is taken")
    kernel, pooled = shape[2:], (*shape[:2], 1, 1)
    pool = build.emit(
        "max_pool2d", self, shape=pooled, kernel=kernel, stride=kernel, padding=(0, 0, 0, 0), dilation=(1, 1)
    )
    return pool if keepdim else build.emit("reshape", pool)


@takes("sum")
def _sum(build, self, dim, keepdim, dtype):
    if len(build.shapes[self]) == 3 and list(dim) == [1] and not keepdim:
        return token_sum(build, self)
    count = math.prod(build.shapes[self][2:])
    mean = _mean(build, self, dim, keepdim)
    if build.nodes[mean].op != "mean":
        raise Unsupported("only a sum over height and width of (n, c, h, w) is taken")
    return affine(build, mean, float(count), 0.0)
