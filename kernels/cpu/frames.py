"""Depthwise convolutions over frames: each channel with its own window of time, vectorised over channels.

With vpdpbusd a 32-bit lane takes four taps of one channel: the bytes of four frames are interleaved once and serve
every output whose window holds them. Elsewhere: a product per tap. A unit of work is a run of channels of some frames,
whose window a thread copies first, so that padding and masks cost nothing afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import Vector, splat
from intq.kernels.cpu.build import i64, kernel, local, parallel, parallel_region, ramp, serial, workspace
from intq.kernels.cpu.depthwise import PRODUCT, interleave
from intq.kernels.cpu.epilogue import Epilogue
from intq.kernels.cpu.lanes import accumulated, load, store
from intq.kernels.cpu.plan import Plan, interleaves
from intq.kernels.cpu.runs import Run, runs

PLACES = 48  # outputs of a unit of work: what they read stays in the core's first cache
TOGETHER = 12  # of them in registers


def sizes_of(shapes: dict[str, tuple]) -> tuple[tuple[str, ...], tuple]:
    """The symbolic names among (samples, frames, places) of a convolution's input and output, and all three."""
    sizes = (*shapes["x"][:2], shapes["out"][1])
    return tuple(dict.fromkeys(d for d in sizes if isinstance(d, str))), sizes


def depthwise_frames(name: str, plan: Plan, epilogue: Epilogue, shapes, masked: bool) -> tirx.PrimFunc:
    """The kernel (x, [residual], [mask], weight, constants, pad_value, out)."""
    arguments = [(shapes["x"], "uint8")]
    arguments += [(shapes["out"], epilogue.residual)] if epilogue.residual else []
    arguments += [(shapes["x"][:2], "uint8")] if masked else []
    arguments += [(shapes["weight"], "int8"), (shapes["constants"], "int64"), ((plan.co,), "uint8")]
    arguments.append((shapes["out"], epilogue.dtype))
    names, sizes = sizes_of(shapes)
    row = runs(plan.co, plan.isa.quads, plan.isa.natural)

    def write(*rest):
        known, (x, *more) = dict(zip(names, rest, strict=False)), rest[len(names) :]
        samples, frames, places = (i64(known.get(d, d)) for d in sizes)
        residual = more.pop(0) if epilogue.residual else None
        mask = more.pop(0) if masked else None
        with (
            parallel_region(),
            workspace(_window(plan) * row[0].width, "uint8") as window,
            workspace(4 * _window(plan) * row[0].width, "uint8") as quads,
            workspace(TOGETHER * row[0].width, "int32") as sums,
        ):
            buffers = _Buffers(x, residual, mask, *more, window, quads, sums)
            _Writer(plan, epilogue, row, buffers, frames, places).write(samples)

    return kernel(name, [*arguments], write, names)


def _taps(plan: Plan) -> int:
    """Taps of a window, up to a multiple of four."""
    return -(-plan.kernel[0] // 4) * 4


def _window(plan: Plan) -> int:
    """Frames that the outputs of a unit of work read."""
    return (PLACES - 1) * plan.stride[0] + (_taps(plan) - 1) * plan.dilation[0] + 1


@dataclass(frozen=True)
class _Buffers:
    x: object
    residual: object
    mask: object
    weight: object
    constants: object
    pad_value: object
    out: object
    window: object  # frames of one run of channels
    quads: object  # four frames each of them and those behind it, interleaved
    sums: object  # of the outputs that are in registers together


@dataclass(frozen=True)
class _Writer:
    plan: Plan
    epilogue: Epilogue
    row: list[Run]
    buffers: _Buffers
    frames: object
    places: object

    def write(self, samples) -> None:
        """A unit has one of the widest runs; the last of them takes what is left of the channels too."""
        widest = self.row[0]
        alike = [run for run in self.row if run.width == widest.width]
        weights, words = self._run_bytes(widest), self.epilogue.constants.words((widest,))
        pieces = T.Bind((self.places + (PLACES - 1)) // PLACES)
        with parallel(samples * pieces * len(alike)) as unit:
            i, piece = unit % len(alike), T.Bind(unit // len(alike))
            sample, first = T.Bind(piece // pieces), T.Bind(piece % pieces * PLACES)
            self._run(sample, first, i * widest.width, widest, i * weights, i * words)
            if len(alike) < len(self.row):
                with T.If(i == len(alike) - 1), T.Then():
                    weight_at, words_at = len(alike) * weights, len(alike) * words
                    for run in self.row[len(alike) :]:
                        self._run(sample, first, i64(run.start), run, i64(weight_at), i64(words_at))
                        weight_at += self._run_bytes(run)
                        words_at += self.epilogue.constants.words((run,))

    def _run_bytes(self, run: Run) -> int:
        return run.width * (_taps(self.plan) if interleaves(self.plan, run) else self.plan.kernel[0])

    def _run(self, sample, first, start, run: Run, weight_at, words_at) -> None:
        """The outputs from ``first`` on of one sample, one run of channels."""
        plan, buffers = self.plan, self.buffers
        start, weight_at = T.Bind(start), T.Bind(weight_at)
        values = self.epilogue.constants.load(buffers.constants, T.Bind(words_at), run)
        count = T.Bind(tirx.min(i64(PLACES), self.places - first))
        self._copy(sample, first, start, run)
        target = T.Bind((sample * self.places + first) * plan.co + start)

        def finish(place, sums: Vector) -> None:
            at = T.Bind(target + place * plan.co)
            operands = (sums,)
            if buffers.residual is not None:
                operands += (self.epilogue.residual_of(buffers.residual, at, run),)
            store(buffers.out, at, self.epilogue.apply(operands, values), run)

        (self._interleaved if interleaves(plan, run) else self._products)(run, weight_at, count, finish)

    def _copy(self, sample, first, start, run: Run) -> None:
        """The frames that the outputs from ``first`` on read: padding before, behind, and where the mask says so."""
        plan, buffers, c = self.plan, self.buffers, self.plan.co
        pad = T.Bind(buffers.pad_value[ramp(start, run.width)])
        begin = T.Bind(first * plan.stride[0] - plan.padding[0])
        with serial(_window(plan)) as i:
            frame = T.Bind(begin + i)
            nearest = T.Bind(sample * self.frames + tirx.max(tirx.min(frame, self.frames - 1), i64(0)))
            inside = tirx.all(frame >= 0, frame < self.frames)
            if buffers.mask is not None:
                inside = tirx.all(inside, buffers.mask[nearest] != 0)
            inside = tirx.Broadcast(inside, run.width) if run.width > 1 else inside
            taken = tirx.Select(inside, buffers.x[ramp(nearest * c + start, run.width)], pad)
            T.buffer_store(buffers.window, taken, [ramp(i * run.width, run.width)])

    def _products(self, run: Run, weight_at, count, finish) -> None:
        """One output at a time, a product per tap and lane."""
        (taps, _), (dilation, _), lanes = self.plan.kernel, self.plan.dilation, run.part_lanes
        with serial(count) as place:
            sums = local(run.width, "int32")
            for j in range(run.parts):
                T.buffer_store(sums, splat(0, "int32", lanes), [ramp(j * lanes, lanes)])
            with serial(taps) as k:
                at = T.Bind((place * self.plan.stride[0] + k * dilation) * run.width)
                for j, part in enumerate(load(self.buffers.window, at, run).parts):
                    w = self.buffers.weight[ramp(weight_at + k * run.width + j * lanes, lanes)]
                    w = w.astype("int32" if lanes == 1 else f"int32x{lanes}")
                    T.buffer_store(sums, sums[ramp(j * lanes, lanes)] + part * w, [ramp(j * lanes, lanes)])
            finish(place, accumulated(sums, i64(0), run))

    def _interleaved(self, run: Run, weight_at, count, finish) -> None:
        """Some outputs at a time, four taps by four."""
        plan, buffers, width, lanes = self.plan, self.buffers, run.width, run.part_lanes
        stride, dilation = plan.stride[0], plan.dilation[0]
        with serial(_window(plan) - 3 * dilation) as i:
            four = [buffers.window[ramp((i + k * dilation) * width, width)] for k in range(4)]
            for j, quad in enumerate(interleave(four, width)):
                T.buffer_store(buffers.quads, quad, [ramp((4 * i + j) * width, width)])
        name = PRODUCT[width]
        with serial((count + (TOGETHER - 1)) // TOGETHER) as block:
            first = T.Bind(block * TOGETHER)
            with serial(4) as j:
                totals = [local(lanes, "int32") for _ in range(TOGETHER)]
                for total in totals:
                    T.buffer_store(total, splat(0, "int32", lanes), [ramp(0, lanes)])
                with serial(_taps(plan) // 4) as g:
                    w = T.Bind(buffers.weight[ramp(weight_at + (4 * g + j) * width, width)])
                    base = T.Bind((4 * (first * stride + 4 * g * dilation) + j) * width)
                    for p, total in enumerate(totals):
                        quad = buffers.quads[ramp(base + 4 * p * stride * width, width)]
                        old = total[ramp(0, lanes)]
                        T.buffer_store(
                            total,
                            tirx.call_llvm_pure_intrin(f"int32x{lanes}", name, old, quad, w),
                            [ramp(0, lanes)],
                        )
                for p, total in enumerate(totals):
                    T.buffer_store(buffers.sums, total[ramp(0, lanes)], [ramp(p * width + j * lanes, lanes)])
            with serial(tirx.min(i64(TOGETHER), count - first)) as p:
                finish(first + p, accumulated(buffers.sums, p * width, run))
