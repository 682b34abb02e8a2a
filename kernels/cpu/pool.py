"""Pooling: sums and maxima over windows of an image."""

from __future__ import annotations

import math

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import TvmDialect, Vector, splat
from intq.kernels.build import i64, kernel, ramp
from intq.kernels.cpu.build import local, parallel, parallel_region, scratch, serial
from intq.kernels.cpu.constants import uniform
from intq.kernels.cpu.gather import pad_image
from intq.kernels.cpu.isa import Isa
from intq.kernels.cpu.lanes import load, store
from intq.kernels.cpu.runs import Run, runs
from intq.kernels.cpu.sweep import over_runs
from intq.kernels.rescale import Rescale


def _windows(name: str, source, output, attrs, arguments, pixel) -> tirx.PrimFunc:
    """A kernel (x, [pad_value], *arguments, out) that calls ``pixel`` for every output pixel.

    ``pixel(padded, at, width, number, of_image, rest, out)``: the window begins at ``padded[at]``, its rows lie
    ``width`` elements apart; ``number`` counts output pixels, ``of_image`` those of the image.
    """
    (_, h, w, c), dtype = source
    (_, oh, ow, _), _ = output
    top, left, bottom, right = padding = attrs["padding"]
    sh, sw = attrs["stride"]
    pads = [((c,), dtype)] if any(padding) else []
    width = (w + left + right) * c

    def write(n, x, *rest):
        out, padded = rest[-1], x
        if pads:
            padded = scratch((h + top + bottom) * width, dtype)
        with parallel_region(), serial(n) as image:
            start = image * (h * w * c)
            if pads:
                pad_image(padded, x, image, rest[0], (h, w, c), padding)
                start = i64(0)
            with parallel(oh * ow, barrier=bool(pads)) as p:
                at = start + p // ow * sh * width + p % ow * (sw * c)
                pixel(padded, T.Bind(at), width, image * (oh * ow) + p, p, rest[len(pads) : -1], out)

    return kernel(name, [source, *pads, *arguments, output], write)


def avg_pool(name: str, isa: Isa, body, attrs, rescale: Rescale, source, output) -> tirx.PrimFunc:
    """The kernel (x, [pad_value], [constants (3, oh * ow) where they differ by pixel], out)."""
    (kh, kw), c = attrs["kernel"], source[0][3]
    names = ("multiplier", "offset", "shift")
    constants, per_pixel = rescale.constants, rescale.constants["multiplier"].ndim > 0
    pixels = math.prod(output[0][1:3])

    def pixel(padded, at, width, number, of_image, rest, out):
        if per_pixel:
            values = {k: T.Bind(rest[0][of_image + i * pixels]) for i, k in enumerate(names)}
        else:
            values = {k: constants[k] for k in names}

        def run_sum(start, run: Run):
            sums = local(run.width, "int32")
            lanes = run.part_lanes
            for j in range(run.parts):
                T.buffer_store(sums, splat(0, "int32", lanes), [ramp(j * lanes, lanes)])
            with serial(kh) as i, serial(kw) as k:
                tap = load(padded, T.Bind(at + i * width + k * c + start), run)
                for j, part in enumerate(tap.parts):
                    T.buffer_store(sums, sums[ramp(j * lanes, lanes)] + part, [ramp(j * lanes, lanes)])
            total = Vector(tuple(sums[ramp(j * lanes, lanes)] for j in range(run.parts)), "int32", run.quad)
            result = body(TvmDialect, (total,), uniform(values, run, rescale.base), attrs)
            store(out, number * c + start, result, run)

        over_runs(runs(c, isa.quads, isa.natural), run_sum)

    arguments = [((3 * pixels,), "int64")] if per_pixel else []
    return _windows(name, source, output, attrs, arguments, pixel)


def max_pool(name: str, body, attrs, source, output) -> tirx.PrimFunc:
    """The kernel (x, [pad_value], out); maxima are taken in the dtype itself, bytes 64 at a time."""
    (kh, kw), c, dtype = attrs["kernel"], source[0][3], source[1]

    def pixel(padded, at, width, number, of_image, rest, out):
        def run_max(start, run: Run):
            first = at + start
            best = None
            for i in range(kh):
                for k in range(kw):
                    tap = padded[ramp(first + i * width + k * c, run.width)]
                    best = tap if best is None else tirx.max(best, tap)
            result = body(TvmDialect, (Vector((best,), dtype),), {}, attrs)
            T.buffer_store(out, result.parts[0], [ramp(number * c + start, run.width)])

        over_runs(runs(c, (), 64), run_max)

    return _windows(name, source, output, attrs, [], pixel)
