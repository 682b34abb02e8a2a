"""Depthwise convolutions over frames: each channel with its own window of time, vectorised over channels.

With vpdpbusd a 32-bit lane takes four taps of one channel: the bytes of four frames are interleaved once and serve
every output whose window holds them. Elsewhere: a product per tap. A unit of work is a run of channels, of all frames
or a part of them, which a thread goes through piece by piece: it copies the frames that a piece reads, so that padding
and masks cost nothing afterwards, and keeps those that the next piece reads too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import Vector, splat
from intq.kernels.build import i64, kernel, ramp
from intq.kernels.cpu.build import local, parallel, parallel_region, serial, workspace
from intq.kernels.cpu.depthwise import PRODUCT, interleave, runs_of_unit, widest
from intq.kernels.cpu.epilogue import Epilogue, frames_arguments, sizes_of
from intq.kernels.cpu.lanes import accumulated, load, store
from intq.kernels.cpu.plan import Plan, interleaves
from intq.kernels.cpu.runs import Run, runs
from intq.kernels.cpu.weights import unpacked

PLACES = 48  # outputs of a piece: what they read stays in the core's first cache
UNITS = 8  # at least, for threads to share
TOGETHER = 12  # of them in registers
GROUPS = 4  # of four taps, summed in one go


def depthwise_frames(name: str, plan: Plan, epilogue: Epilogue, shapes, masked: bool) -> tirx.PrimFunc:
    """The kernel (x, [residual], [mask], weight, constants, [curve], pad_value, out)."""
    arguments, (names, sizes) = frames_arguments(shapes, epilogue, masked), sizes_of(shapes)
    row = runs(plan.co, plan.isa.quads, plan.isa.natural)

    def write(*given):
        known = dict(zip(names, given, strict=False))
        samples, frames, places = (i64(known.get(d, d)) for d in sizes)
        buffers = dict(zip(arguments, given[len(names) :], strict=True))
        with (
            parallel_region(),
            unpacked(plan, buffers["weight"]) as weight,
            workspace(_window(plan) * row[0].width, "uint8") as window,
            workspace(4 * _window(plan) * row[0].width, "uint8") as quads,
            workspace(TOGETHER * row[0].width, "int32") as sums,
        ):
            buffers = _Buffers(**(buffers | {"weight": weight}), window=window, quads=quads, sums=sums)
            _Writer(plan, epilogue, row, buffers, frames, places).write(samples)

    return kernel(name, list(arguments.values()), write, names)


def _taps(plan: Plan) -> int:
    """Taps of a window, up to a multiple of four."""
    return -(-plan.kernel[0] // 4) * 4


def _window(plan: Plan) -> int:
    """Frames that the outputs of a piece read."""
    return (PLACES - 1) * plan.stride[0] + (_taps(plan) - 1) * plan.dilation[0] + 1


@dataclass(frozen=True)
class _Part:
    """The outputs from ``first`` to ``stop`` of a sample."""

    sample: object
    first: object
    stop: object


@dataclass(frozen=True)
class _Buffers:
    """The kernel's arguments, and what a thread works in."""

    x: object
    weight: object
    constants: object
    pad_value: object
    out: object
    window: object  # frames of one run of channels
    quads: object  # four frames each of them and those behind it, interleaved
    sums: object  # of the outputs that are in registers together
    residual: object = None
    mask: object = None
    curve: object = None


@dataclass(frozen=True)
class _Writer:
    """The sizes and buffers of one kernel, and the code over them."""

    plan: Plan
    epilogue: Epilogue
    row: list[Run]
    buffers: _Buffers
    frames: object
    places: object

    def write(self, samples) -> None:
        """A unit has a run of channels, of all frames or a part of them: of so many that threads have enough."""
        units = len(widest(self.row))
        parts = -(-UNITS // units)  # of a sample's frames
        pieces = T.Bind(((self.places + (PLACES - 1)) // PLACES + (parts - 1)) // parts)  # of a part
        with parallel(samples * parts * units) as unit:
            number = T.Bind(unit // units)
            sample, first = T.Bind(number // parts), T.Bind(number % parts * pieces * PLACES)
            part = _Part(sample, first, T.Bind(tirx.min(self.places, first + pieces * PLACES)))
            runs_of_unit(self.row, unit % units, self._run_bytes, self.epilogue, partial(self._run, part))

    def _run_bytes(self, run: Run) -> int:
        return run.width * (_taps(self.plan) if interleaves(self.plan, run) else self.plan.kernel[0])

    def _run(self, part: _Part, start, run: Run, weight_at, words_at) -> None:
        """The outputs of a part, one run of channels."""
        plan, buffers = self.plan, self.buffers
        start, weight_at = T.Bind(start), T.Bind(weight_at)
        values = self.epilogue.load(buffers, T.Bind(words_at), run, plan.isa)
        with serial((part.stop - part.first + (PLACES - 1)) // PLACES) as piece:
            first = T.Bind(part.first + piece * PLACES)
            count = T.Bind(tirx.min(i64(PLACES), part.stop - first))
            kept = T.Bind(tirx.Select(piece > 0, i64(self._kept), i64(0)))
            self._copy(part.sample, first, start, kept, run)
            target = T.Bind((part.sample * self.places + first) * plan.co + start)

            def finish(place, sums: Vector, target=target) -> None:
                at = T.Bind(target + place * plan.co)
                operands = (sums,)
                if buffers.residual is not None:
                    operands += (self.epilogue.residual_of(buffers.residual, at, run),)
                store(buffers.out, at, self.epilogue.apply(operands, values), run)

            if interleaves(plan, run):
                self._interleave(kept, run)
                self._sum_interleaved(run, weight_at, count, finish)
            else:
                self._sum_products(run, weight_at, count, finish)

    @property
    def _kept(self) -> int:
        """Frames that the next piece reads too."""
        return max(0, _window(self.plan) - PLACES * self.plan.stride[0])

    def _copy(self, sample, first, start, kept, run: Run) -> None:
        """The frames that the outputs from ``first`` on read: padding before, behind, and where the mask says so.

        The first ``kept`` of them are the last ones of the piece before.
        """
        plan, buffers, c = self.plan, self.buffers, self.plan.co
        pad = T.Bind(buffers.pad_value[ramp(start, run.width)])
        begin = T.Bind(first * plan.stride[0] - plan.padding[0])
        with serial(kept) as i:
            last = buffers.window[ramp((i + (_window(plan) - self._kept)) * run.width, run.width)]
            T.buffer_store(buffers.window, last, [ramp(i * run.width, run.width)])
        with serial(_window(plan) - kept) as j:
            i = T.Bind(kept + j)
            frame = T.Bind(begin + i)
            nearest = T.Bind(sample * self.frames + tirx.max(tirx.min(frame, self.frames - 1), i64(0)))
            inside = tirx.all(frame >= 0, frame < self.frames)
            if buffers.mask is not None:
                inside = tirx.all(inside, buffers.mask[nearest] != 0)
            inside = tirx.Broadcast(inside, run.width) if run.width > 1 else inside
            taken = tirx.Select(inside, buffers.x[ramp(nearest * c + start, run.width)], pad)
            T.buffer_store(buffers.window, taken, [ramp(i * run.width, run.width)])

    def _sum_products(self, run: Run, weight_at, count, finish) -> None:
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

    def _interleave(self, kept, run: Run) -> None:
        """Each frame with the three that are one, two and three taps behind it."""
        buffers, width, dilation = self.buffers, run.width, self.plan.dilation[0]
        quads = _window(self.plan) - 3 * dilation
        kept = T.Bind(tirx.max(kept - 3 * dilation, i64(0)))
        moved = max(0, self._kept - 3 * dilation)
        with serial(kept * 4) as i:
            last = buffers.quads[ramp((i + 4 * (quads - moved)) * width, width)]
            T.buffer_store(buffers.quads, last, [ramp(i * width, width)])
        with serial(quads - kept) as j:
            i = T.Bind(kept + j)
            four = [buffers.window[ramp((i + k * dilation) * width, width)] for k in range(4)]
            for k, quad in enumerate(interleave(four, width)):
                T.buffer_store(buffers.quads, quad, [ramp((4 * i + k) * width, width)])

    def _sum_interleaved(self, run: Run, weight_at, count, finish) -> None:
        """Some outputs at a time, four taps by four."""
        plan, buffers, width, lanes = self.plan, self.buffers, run.width, run.part_lanes
        with serial((count + (TOGETHER - 1)) // TOGETHER) as block:
            first = T.Bind(block * TOGETHER)
            with serial(4) as j:
                totals = [local(lanes, "int32") for _ in range(TOGETHER)]
                for total in totals:
                    T.buffer_store(total, splat(0, "int32", lanes), [ramp(0, lanes)])
                groups = _taps(plan) // 4
                with serial(groups // GROUPS) as chunk:
                    self._sum_groups(run, weight_at, first, j, chunk * GROUPS, GROUPS, totals)
                if groups % GROUPS:
                    at = groups // GROUPS * GROUPS
                    self._sum_groups(run, weight_at, first, j, i64(at), groups % GROUPS, totals)
                for p, total in enumerate(totals):
                    T.buffer_store(buffers.sums, total[ramp(0, lanes)], [ramp(p * width + j * lanes, lanes)])
            with serial(tirx.min(i64(TOGETHER), count - first)) as p:
                finish(first + p, accumulated(buffers.sums, p * width, run))

    def _sum_groups(self, run: Run, weight_at, first, j, group, count: int, totals: list) -> None:
        """Products of ``count`` times four taps: what several outputs read of the frames is loaded once for all."""
        plan, buffers, width, lanes = self.plan, self.buffers, run.width, run.part_lanes
        stride, dilation = plan.stride[0], plan.dilation[0]
        taps = [T.Bind(buffers.weight[ramp(weight_at + (4 * (group + g) + j) * width, width)]) for g in range(count)]
        base = T.Bind((4 * (first * stride + 4 * group * dilation) + j) * width)
        readers: dict[int, list[tuple[int, int]]] = {}
        for g in range(count):
            for p in range(len(totals)):
                readers.setdefault(p * stride + 4 * g * dilation, []).append((p, g))
        for frame in sorted(readers):
            quad = T.Bind(buffers.quads[ramp(base + 4 * frame * width, width)])
            for p, g in readers[frame]:
                place = ramp(0, lanes)
                total = tirx.call_llvm_pure_intrin(f"int32x{lanes}", PRODUCT[width], totals[p][place], quad, taps[g])
                T.buffer_store(totals[p], total, [place])
