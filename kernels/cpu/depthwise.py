"""Depthwise convolutions: each channel with its own window, vectorised over channels.

With vpdpbusd a 32-bit lane takes four rows of one column of the window: bytes of up to four rows are interleaved once
per column of the image and serve every output pixel whose window holds the column. Elsewhere: a product per tap.
"""

from __future__ import annotations

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import Vector, reinterpret, splat
from intq.kernels.cpu.build import i64, kernel, local, parallel, parallel_region, ramp, scratch, serial
from intq.kernels.cpu.gather import pad_image
from intq.kernels.cpu.lanes import load, store
from intq.kernels.cpu.runs import Run, runs
from intq.kernels.cpu.plan import Plan, interleaves
from intq.kernels.cpu.sweep import over_runs

PRODUCT = {64: "llvm.x86.avx512.vpdpbusd.512", 32: "llvm.x86.avx512.vpdpbusd.256", 16: "llvm.x86.avx512.vpdpbusd.128"}
PIXELS = 4  # neighbouring outputs held in registers


def _run_bytes(plan: Plan, run: Run) -> int:
    kh, kw = plan.kernel
    return kw * run.width * (-(-kh // 4) * 4 if interleaves(plan, run) else kh)


def depthwise(name: str, plan: Plan, epilogue, shapes) -> tirx.PrimFunc:
    """The kernel (x, [residual], weight, constants, [pad_value], out)."""
    arguments = [(shapes["x"], "uint8")]
    if epilogue.residual:
        arguments.append((shapes["out"], epilogue.residual))
    arguments += [(shapes["weight"], "int8"), (shapes["constants"], "int64")]
    pads = any(plan.padding)
    if pads:
        arguments.append(((plan.co,), "uint8"))
    arguments.append((shapes["out"], epilogue.dtype))
    (h, w, c), (oh, ow) = plan.source, plan.output
    width = plan.padded[1] * c

    def write(n, x, *rest):
        residual = rest[0] if epilogue.residual else None
        weight, constants, *pad_value, out = rest[1:] if epilogue.residual else rest
        padded = scratch(plan.padded[0] * width, "uint8") if pads else x
        with parallel_region(), serial(n) as image:
            at = image * (h * w * c)
            if pads:
                pad_image(padded, x, image, pad_value[0], plan.source, plan.padding)
                at = i64(0)
            with parallel(oh, barrier=pads) as y:
                row = at + y * (plan.stride[0] * width)
                target = (image * oh + y) * (ow * c)
                weight_at, words_at = 0, 0

                def one(start, run: Run, weight_at, words_at):
                    index = (start - run.start) // run.width
                    words = epilogue.constants.words((run,))
                    values = epilogue.constants.load(constants, T.Bind(words_at + index * words), run)
                    taps_at = T.Bind(weight_at + index * _run_bytes(plan, run))

                    def finish(x_, sums: Vector):
                        place = T.Bind(target + x_ * c + start)
                        operands = (sums,) if residual is None else (sums, epilogue.residual_of(residual, place, run))
                        store(out, place, epilogue.apply(operands, values), run)

                    rows = _interleaved if interleaves(plan, run) else _products
                    rows(plan, padded, T.Bind(row + start), width, weight, taps_at, run, finish)

                first: dict[int, tuple[int, int]] = {}
                for run in runs(plan.co, plan.isa.quads, plan.isa.natural):
                    first.setdefault(run.width, (weight_at, words_at))
                    weight_at += _run_bytes(plan, run)
                    words_at += epilogue.constants.words((run,))
                over_runs(
                    runs(plan.co, plan.isa.quads, plan.isa.natural),
                    lambda start, run: one(start, run, *first[run.width]),
                )

    return kernel(name, arguments, write)


def _products(plan: Plan, x, at, width: int, weight, taps_at, run: Run, finish) -> None:
    """One output pixel at a time, a product per tap and lane."""
    (kh, kw), (dh, dw), c, lanes = plan.kernel, plan.dilation, plan.source[2], run.part_lanes
    with serial(plan.output[1]) as x_:
        sums = local(run.width, "int32")
        for j in range(run.parts):
            T.buffer_store(sums, splat(0, "int32", lanes), [ramp(j * lanes, lanes)])
        with serial(kh) as i, serial(kw) as k:
            tap = load(x, T.Bind(at + (x_ * plan.stride[1] + k * dw) * c + i * (dh * width)), run)
            for j, part in enumerate(tap.parts):
                place = ramp(j * lanes, lanes)
                w = weight[ramp(taps_at + (i * kw + k) * run.width + j * lanes, lanes)]
                w = w.astype("int32" if lanes == 1 else f"int32x{lanes}")
                T.buffer_store(sums, sums[place] + part * w, [place])
        finish(x_, Vector(tuple(sums[ramp(j * lanes, lanes)] for j in range(run.parts)), "int32", run.quad))


def _interleaved(plan: Plan, x, at, width: int, weight, taps_at, run: Run, finish) -> None:
    """A few neighbouring output pixels at a time; each column of the image is interleaved once for all of them."""
    (kh, kw), (dh, dw), c, ow = plan.kernel, plan.dilation, plan.source[2], plan.output[1]
    stride, lanes, pixels = plan.stride[1], run.part_lanes, min(PIXELS, ow)
    fours = -(-kh // 4)
    with serial(-(-ow // pixels)) as tile:
        left = T.Bind(tirx.min(tile * pixels, i64(ow - pixels)))
        sums = [local(run.width, "int32") for _ in range(pixels)]
        place = lambda j: ramp(j * lanes, lanes)  # noqa: E731
        for p in range(pixels):
            for j in range(4):
                T.buffer_store(sums[p], splat(0, "int32", lanes), [place(j)])
        for column in range((pixels - 1) * stride + (kw - 1) * dw + 1):
            users = [(p, t) for p in range(pixels) for t in range(kw) if p * stride + t * dw == column]
            for four in range(fours if users else 0):
                first = at + (left * stride + column) * c
                rows = [
                    x[ramp(first + i * (dh * width), run.width)] if i < kh else splat(0, "uint8", run.width)
                    for i in range(4 * four, 4 * four + 4)
                ]
                for j, quad in enumerate(_interleave(rows, run.width)):
                    quad = T.Bind(quad)
                    for p, t in users:
                        w = weight[ramp(taps_at + ((t * fours + four) * 4 + j) * run.width, run.width)]
                        name, old = PRODUCT[run.width], sums[p][place(j)]
                        total = tirx.call_llvm_pure_intrin(f"int32x{lanes}", name, old, quad, w)
                        T.buffer_store(sums[p], total, [place(j)])
        for p in range(pixels):
            finish(left + p, Vector(tuple(sums[p][place(j)] for j in range(4)), "int32", True))


def _interleave(rows: list, width: int) -> list:
    """Four rows of bytes -> four vectors whose 32-bit lanes hold (row 0..3) of one channel, in the run's order."""

    def unpack(a, b, high: bool, size: int):
        """Alternate ``size``-byte elements of one half of each 128-bit lane."""
        per = 16 // size
        half = np.arange(per // 2) + (per // 2 if high else 0)
        lane = np.stack([half, half + width // size], axis=1).ravel()
        block = (per * np.arange(width // 16))[:, None]
        indices = np.where(lane < width // size, block + lane, block + lane).ravel()
        return tirx.Shuffle([a, b], [tirx.const(int(i), "int32") for i in indices])

    words = lambda v: reinterpret(v, f"int16x{width // 2}")  # noqa: E731
    out = []
    for high in (False, True):
        one, two = (T.Bind(words(unpack(rows[i], rows[i + 1], high, 1))) for i in (0, 2))
        out += [reinterpret(unpack(one, two, h, 2), f"uint8x{width}") for h in (False, True)]
    return out
