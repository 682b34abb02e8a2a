"""Operations over frames: which of them there are, and their normalisation over them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import TvmDialect, Vector, held, splat
from intq.kernels.build import i64, kernel, ramp, symbolic
from intq.kernels.cpu.build import local, parallel, parallel_region, serial, workspace
from intq.kernels.cpu.constants import Channelwise, everywhere
from intq.kernels.cpu.frames import CHANNELS
from intq.kernels.cpu.lanes import load, store
from intq.kernels.cpu.runs import Run, runs
from intq.kernels.rescale import Rescale
from intq.ops.frames import mean_bits, normalised, statistics

ALL = Run(0, CHANNELS, False)
SLICES = 16  # of a row's frames


class StatisticsDialect(TvmDialect):
    """What a bound is proven of is used many times: it is computed once."""

    @staticmethod
    def within(x: Vector, low: int, high: int) -> Vector:
        return held(x)


def normalize_frames(name: str, attrs, rescale: Rescale, source, mask, output) -> tirx.PrimFunc:
    """The kernel (x, mask, constants, epsilon (1,), deviation_epsilon (1,), out). ``source``...: (shape, dtype).

    Frame after frame, as they lie in memory: a row is cut into SLICES of frames, whose sums are taken one by one, then
    added up for 16 channels at a time, and then the slices are normalised. (A thread that walked along a few channels
    of all frames took six times as long with 512 channels: every frame is on another page, and nothing is prefetched.)
    """
    channels, names, bits = output[0][-1], symbolic(source[0]), mean_bits(attrs["longest"])
    layout, every = Channelwise(rescale.fields, rescale.base), tuple(runs(output[0][-1], (), CHANNELS))
    pieces = -(-channels // CHANNELS)
    width = pieces * CHANNELS  # of the sums: the numbers between are computed for 16 channels even where fewer are left

    def write(*rest):
        sizes = dict(zip(names, rest, strict=False))
        x, mask, packed, epsilon, deviation_epsilon, out = rest[len(names) :]
        rows, frames = (i64(sizes.get(d, d)) for d in source[0][:2])
        shared = [(rows * (SLICES * 2 * width), "int64"), (rows * SLICES, "int32"), (rows * (2 * width), "int32")]
        with ExitStack() as stack:
            sums, counts, found = (stack.enter_context(workspace(*each)) for each in shared)
            with parallel_region():
                with parallel(rows * SLICES, barrier=True) as unit:
                    add_up(unit, frames, x, mask, sums, counts)
                with parallel(rows * pieces, barrier=True) as unit:
                    row, piece = T.Bind(unit // pieces), T.Bind(unit % pieces)
                    settle(row, piece, sums, counts, found, epsilon, deviation_epsilon)
                with parallel(rows * SLICES) as unit:
                    normalise(unit, frames, x, mask, packed, found, out)

    def slice_of(unit, frames):
        """(row, the slice's first frame of all rows', how many it has)"""
        row, part = T.Bind(unit // SLICES), T.Bind(unit % SLICES)
        start = T.Bind(part * frames // SLICES)
        return row, T.Bind(row * frames + start), T.Bind((part + 1) * frames // SLICES - start)

    def add_up(unit, frames, x, mask, sums, counts) -> None:
        _, first, many = slice_of(unit, frames)
        own = T.Bind(unit * (2 * width))
        with serial(2 * pieces) as piece:
            T.buffer_store(sums, splat(0, "int64", CHANNELS), [ramp(own + piece * CHANNELS, CHANNELS)])
        T.buffer_store(counts, 0, [unit])
        with serial(many) as frame, T.If(mask[first + frame] != 0), T.Then():
            T.buffer_store(counts, counts[unit] + 1, [unit])

            def add(run: Run, start) -> None:
                values = load(x, (first + frame) * channels + start, run)
                for i, more in enumerate((values, values * values)):  # a square is 2**30 at most
                    place = ramp(own + i * width + start, run.width)
                    T.buffer_store(sums, sums[place] + TvmDialect.wide(more).parts[0], [place])

            _along(every, add)

    def settle(row, piece, sums, counts, found, epsilon, deviation_epsilon) -> None:
        totals, count = [local(CHANNELS, "int64") for _ in range(2)], local(1, "int32")
        for total in totals:
            T.buffer_store(total, splat(0, "int64", CHANNELS), [ramp(0, CHANNELS)])
        T.buffer_store(count, 0, [i64(0)])
        with serial(SLICES) as part:
            T.buffer_store(count, count[i64(0)] + counts[row * SLICES + part], [i64(0)])
            for i, total in enumerate(totals):
                more = sums[ramp((row * SLICES + part) * (2 * width) + i * width + piece * CHANNELS, CHANNELS)]
                T.buffer_store(total, total[ramp(0, CHANNELS)] + more, [ramp(0, CHANNELS)])
        margins = {"epsilon": epsilon, "deviation_epsilon": deviation_epsilon}
        margins = {key: Vector((splat(v[i64(0)], "int64", CHANNELS),), "int64") for key, v in margins.items()}
        total, squares = (Vector((total[ramp(0, CHANNELS)],), "int64") for total in totals)
        kept = everywhere(T.Bind(count[i64(0)]), ALL)
        for i, value in enumerate(statistics(StatisticsDialect, total, squares, kept, margins, attrs)):
            place = ramp((row * 2 + i) * width + piece * CHANNELS, CHANNELS)
            T.buffer_store(found, value.clamped().parts[0], [place])

    def normalise(unit, frames, x, mask, packed, found, out) -> None:
        row, first, many = slice_of(unit, frames)

        def of_frame(at, run: Run, start) -> None:
            values = layout.load(packed, start * (len(rescale.fields) + 1), run)
            numbers = (found[ramp((row * 2 + i) * width + start, run.width)] for i in range(2))
            mean, inverse = (Vector((T.Bind(number),), "int32") for number in numbers)
            apart = TvmDialect.shift_left(load(x, at + start, run), bits) - mean
            store(out, at + start, normalised(TvmDialect, apart, inverse, values, attrs), run)

        with serial(many) as frame:
            at = T.Bind((first + frame) * channels)
            with T.If(mask[first + frame] != 0):
                with T.Then():
                    _along(every, lambda run, start: of_frame(at, run, start))
                with T.Else():
                    zero = attrs["zero_point"]
                    _along(every, lambda run, start: store(out, at + start, everywhere(zero, run), run))

    arguments = [source, mask, ((layout.words(every),), "int64"), ((1,), "int64"), ((1,), "int64"), output]
    return kernel(name, arguments, write, names)


def _along(every: tuple[Run, ...], body: Callable) -> None:
    """``body(run, its first channel)`` of the runs of a frame, those of 16 channels in a loop."""
    whole = sum(run.width == CHANNELS for run in every)
    if whole:
        with serial(whole) as piece:
            body(ALL, T.Bind(piece * CHANNELS))
    for run in every[whole:]:
        body(run, i64(run.start))


def frame_mask(name: str, body, attrs, source, output) -> tirx.PrimFunc:
    """The kernel (x, lengths, out); of x only the shape counts."""
    names = tuple(dict.fromkeys((*symbolic(source[0]), *symbolic(output[0]))))

    def write(*rest):
        sizes, (_, lengths, out) = dict(zip(names, rest, strict=False)), rest[len(names) :]
        rows, many = (i64(sizes.get(d, d)) for d in output[0])
        with parallel_region(), parallel(rows) as row:
            length = Vector((T.Bind(lengths[row]),), "int32")
            with serial(many) as frame:
                number = Vector(((frame + 1).astype("int32"),), "int32")
                result = body(TvmDialect, (length, number), {}, attrs).clamped().parts[0]
                T.buffer_store(out, result.astype("uint8"), [row * many + frame])

    return kernel(name, [source, (output[0][:1], "int32"), output], write, names)
