"""Depthwise convolutions: each channel with its own window, vectorised over channels.

With vpdpbusd a 32-bit lane takes four rows of one column of the window: bytes of up to four rows are interleaved once
per column of the image and serve every output pixel whose window holds the column. Elsewhere: a product per tap.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import Vector, reinterpret, splat
from intq.kernels.build import i64, kernel, ramp
from intq.kernels.cpu.build import local, parallel, parallel_region, scratch, serial
from intq.kernels.cpu.epilogue import Epilogue
from intq.kernels.cpu.gather import pad_image
from intq.kernels.cpu.lanes import load, store
from intq.kernels.cpu.plan import Plan, interleaves
from intq.kernels.cpu.runs import Run, runs
from intq.kernels.cpu.weights import unpacked

PRODUCT = {64: "llvm.x86.avx512.vpdpbusd.512", 32: "llvm.x86.avx512.vpdpbusd.256", 16: "llvm.x86.avx512.vpdpbusd.128"}
PIXELS = (4, 5, 3)  # neighbouring outputs held in registers: what fits a row best


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
    row = runs(plan.co, plan.isa.quads, plan.isa.natural)
    in_place = all(interleaves(plan, run) for run in row)

    def write(n, x, *rest):
        residual = rest[0] if epilogue.residual else None
        weight, constants, *pad_value, out = rest[1:] if epilogue.residual else rest
        padded = None if in_place or not pads else scratch(math.prod(plan.padded) * plan.co, "uint8")
        with parallel_region(), unpacked(plan, weight) as weight:
            writer = _Writer(plan, epilogue, row, x, residual, weight, constants, out)
            if padded is None:
                writer.rows(n * plan.output[0], pad_value[0] if pads else None)
                return
            inner = replace(plan, source=(*plan.padded, plan.co), padding=(0, 0, 0, 0))
            writer = replace(writer, plan=inner, x=padded)
            with serial(n) as image:
                pad_image(padded, x, image, pad_value[0], plan.source, plan.padding)
                writer.rows(plan.output[0], None, image * plan.output[0], barrier=True)

    return kernel(name, arguments, write)


def sums_by_product(plan: Plan, dtype: str) -> bool:
    """Whether :func:`avg_pool` can sum a window: as a depthwise convolution by ones."""
    row = runs(plan.co, plan.isa.quads, plan.isa.natural)
    return dtype == "uint8" and plan.output[1] >= 3 and all(interleaves(plan, run) for run in row)


def avg_pool(name: str, plan: Plan, epilogue: Epilogue, shapes) -> tirx.PrimFunc:
    """The kernel (x, [pad_value], out) of an average pooling of bytes, with vpdpbusd: weights are ones."""
    pads = [((plan.co,), "uint8")] if any(plan.padding) else []

    def write(n, x, *rest):
        row = runs(plan.co, plan.isa.quads, plan.isa.natural)
        with parallel_region():
            writer = _Writer(plan, epilogue, row, x, None, None, None, rest[-1])
            writer.rows(n * plan.output[0], rest[0] if pads else None)

    return kernel(name, [(shapes["x"], "uint8"), *pads, (shapes["out"], epilogue.dtype)], write)


@dataclass(frozen=True)
class _Writer:
    """The buffers of one kernel, and the code over them."""

    plan: Plan
    epilogue: Epilogue
    row: list[Run]
    x: object
    residual: object
    weight: object
    constants: object
    out: object

    def rows(self, count, pad_value, first=0, barrier: bool = False) -> None:
        """``count`` rows of outputs from row number ``first`` on; row r of x's first image begins at 0.

        A unit of work is a row and one of its widest runs; the last of these takes what is left of the channels too.
        """
        units = len(widest(self.row))
        with parallel(count * units, barrier) as unit:
            y = T.Bind(unit // units)
            of = partial(self._run, y, first, pad_value)
            runs_of_unit(self.row, unit % units, self._run_bytes, self.epilogue, of)

    def _run_bytes(self, run: Run) -> int:
        kh, kw = self.plan.kernel
        return kw * run.width * (-(-kh // 4) * 4 if interleaves(self.plan, run) else kh)

    def _run(self, y, first, pad_value, start, run: Run, weight_at, words_at) -> None:
        """One row of outputs, one run of channels."""
        plan = self.plan
        (h, w, c), (oh, ow) = plan.source, plan.output
        values = self.epilogue.constants.load(self.constants, T.Bind(words_at), run)
        target, weight_at = T.Bind((y + first) * (ow * c) + start), T.Bind(weight_at)
        image, top = y // oh, T.Bind(y % oh * plan.stride[0] - plan.padding[0])
        source = T.Bind(image * (h * w * c) + start)

        def finish(x, sums: Vector) -> None:
            place = T.Bind(target + x * c)
            operands = (sums,)
            if self.residual is not None:
                operands += (self.epilogue.residual_of(self.residual, place, run),)
            store(self.out, place, self.epilogue.apply(operands, values), run)

        if not interleaves(plan, run):
            _products(plan, self.x, T.Bind(source + top * (w * c)), w * c, self.weight, weight_at, run, finish)
            return
        pad = None if pad_value is None else T.Bind(pad_value[ramp(start, run.width)])
        lines = [self._line(source, top, k * plan.dilation[0]) for k in range(plan.kernel[0])]
        _interleaved(plan, self.x, lines, pad, self.weight, weight_at, run, finish)

    def _line(self, source, top, row: int):
        """(where row ``top + row`` of the image begins, whether it is in the image); None: it always is.

        For one outside, where the nearest inside begins: something to load before the padding is chosen.
        """
        (h, w, c), (oh, _) = self.plan.source, self.plan.output
        least = row - self.plan.padding[0]
        y = top + row
        if least >= 0 and (oh - 1) * self.plan.stride[0] + least < h:
            return T.Bind(source + y * (w * c)), None
        nearest = tirx.max(tirx.min(y, i64(h - 1)), i64(0))
        return T.Bind(source + nearest * (w * c)), T.Bind(tirx.all(y >= 0, y < h))


def widest(row: list[Run]) -> list[Run]:
    """The runs of channels that are as wide as the first: so many units of work share a row."""
    return [run for run in row if run.width == row[0].width]


def runs_of_unit(row: list[Run], i, run_bytes: Callable, epilogue: Epilogue, body: Callable) -> None:
    """``body(first channel, run, where its weights begin, where its constants do)`` of unit ``i`` of a row.

    A unit is one of the widest runs; the last of these takes what is left of the channels too.
    """
    run, units, words = row[0], len(widest(row)), epilogue.constants.words
    body(i * run.width, run, i * run_bytes(run), i * words((run,)))
    if units == len(row):
        return
    with T.If(i == units - 1), T.Then():
        weight_at, words_at = units * run_bytes(run), units * words((run,))
        for run in row[units:]:
            body(i64(run.start), run, i64(weight_at), i64(words_at))
            weight_at += run_bytes(run)
            words_at += words((run,))


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


def _interleaved(plan: Plan, x, lines: list, pad, weight, taps_at, run: Run, finish) -> None:
    """A few neighbouring output pixels at a time; each column of the image is interleaved once for all of them.

    Only the first and last of these tiles can have columns outside of the image: they have code of their own.
    """
    (_, kw), (_, dw), (_, w, c), ow = plan.kernel, plan.dilation, plan.source, plan.output[1]
    stride, left = plan.stride[1], plan.padding[1]
    pixels = min(PIXELS, key=lambda p: (-(-ow // min(p, ow)) * min(p, ow), -min(p, ow)))
    pixels = min(pixels, ow)
    columns = (pixels - 1) * stride + (kw - 1) * dw + 1
    starts = [min(i * pixels, ow - pixels) for i in range(-(-ow // pixels))]

    def tap(at, valid):
        loaded = x[ramp(at, run.width)]
        return loaded if valid is None else tirx.Select(tirx.Broadcast(valid, run.width), loaded, pad)

    def tile(first, columns_outside: set[int]) -> None:
        sums = [local(run.width, "int32") for _ in range(pixels)]
        lanes = run.part_lanes
        place = lambda j: ramp(j * lanes, lanes)  # noqa: E731
        for p in range(pixels):
            for j in range(4):
                T.buffer_store(sums[p], splat(0, "int32", lanes), [place(j)])
        for column in range(columns):
            users = [(p, t) for p in range(pixels) for t in range(kw) if p * stride + t * dw == column]
            if not users:
                continue
            at_column = (first * stride + (column - left)) * c
            if column in columns_outside:
                taps = [pad] * len(lines)
            else:
                taps = [tap(begin + at_column, valid) for begin, valid in lines]
            for four in range(0, len(lines), 4):
                rows = taps[four : four + 4]
                rows += [splat(0, "uint8", run.width)] * (4 - len(rows))
                for j, quad in enumerate(interleave(rows, run.width)):
                    quad = T.Bind(quad)
                    for p, t in users:
                        at = taps_at + ((t * -(-len(lines) // 4) + four // 4) * 4 + j) * run.width
                        name, old = PRODUCT[run.width], sums[p][place(j)]
                        w = splat(1, "int8", run.width) if weight is None else weight[ramp(at, run.width)]
                        total = tirx.call_llvm_pure_intrin(f"int32x{lanes}", name, old, quad, w)
                        T.buffer_store(sums[p], total, [place(j)])
        for p in range(pixels):
            finish(first + p, Vector(tuple(sums[p][place(j)] for j in range(4)), "int32", True))

    def outside(first: int) -> set[int]:
        return {k for k in range(columns) if not 0 <= first * stride + k - left < w}

    inner = [i for i, first in enumerate(starts) if not outside(first) and first == i * pixels]
    low, high = (inner[0], inner[-1] + 1) if inner else (0, 0)
    for first in starts[:low]:
        tile(i64(first), outside(first))
    if inner:
        with serial(high - low) as i:
            tile(T.Bind((i + low) * pixels), set())
    for first in starts[high:]:
        tile(i64(first), outside(first))


def interleave(rows: list, width: int) -> list:
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
