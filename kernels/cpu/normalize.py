"""Operations over frames: which of them there are, and their normalisation, some channels of a row at a time."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import TvmDialect, Vector, held, splat
from intq.kernels.cpu.build import i64, kernel, local, parallel, parallel_region, ramp, serial, symbolic
from intq.kernels.cpu.constants import Channelwise, everywhere
from intq.kernels.cpu.frames import CHANNELS
from intq.kernels.cpu.lanes import load, store
from intq.kernels.cpu.runs import Run, runs
from intq.kernels.pack import Rescale
from intq.ops.frames import mean_bits, normalised, statistics

ALL = Run(0, CHANNELS, False)


class StatisticsDialect(TvmDialect):
    """What a bound is proven of is used many times: it is computed once."""

    @staticmethod
    def within(x: Vector, low: int, high: int) -> Vector:
        return held(x)


def normalize_frames(name: str, attrs, rescale: Rescale, source, mask, output) -> tirx.PrimFunc:
    """The kernel (x, mask, constants, epsilon (1,), deviation_epsilon (1,), out). ``source``...: (shape, dtype).

    A thread takes 16 channels of a row through both passes: their sums over the frames, then the frames themselves. The
    numbers between are computed for 16 channels even where fewer are left: their code is long.
    """
    channels, names = output[0][-1], symbolic(source[0])
    layout = Channelwise(rescale.fields, rescale.base)
    pieces = -(-channels // CHANNELS)
    words = layout.words(tuple(runs(channels, (), CHANNELS)))

    def write(*rest):
        sizes = dict(zip(names, rest, strict=False))
        x, mask, packed, epsilon, deviation_epsilon, out = rest[len(names) :]
        rows, frames = (i64(sizes.get(d, d)) for d in source[0][:2])
        with parallel_region(), parallel(rows * pieces) as unit:
            first, piece = T.Bind(unit // pieces * frames), T.Bind(unit % pieces)
            sums, count = [local(CHANNELS, "int64") for _ in range(2)], local(1, "int32")
            for total in sums:
                T.buffer_store(total, splat(0, "int64", CHANNELS), [ramp(0, CHANNELS)])
            T.buffer_store(count, 0, [i64(0)])
            with serial(frames) as frame:
                T.buffer_store(count, count[i64(0)] + mask[first + frame].astype("int32"), [i64(0)])

            def add(run: Run) -> None:
                place = ramp(run.start, run.width)
                with serial(frames) as frame, T.If(mask[first + frame] != 0), T.Then():
                    at = T.Bind((first + frame) * channels + piece * CHANNELS + run.start)
                    values = TvmDialect.wide(load(x, at, run))
                    for total, more in zip(sums, (values, values * values), strict=True):
                        T.buffer_store(total, total[place] + more.parts[0], [place])

            _over(piece, channels, add)
            total, squares = (Vector((total[ramp(0, CHANNELS)],), "int64") for total in sums)
            margins = {"epsilon": epsilon, "deviation_epsilon": deviation_epsilon}
            margins = {key: Vector((splat(v[i64(0)], "int64", CHANNELS),), "int64") for key, v in margins.items()}
            kept = everywhere(T.Bind(count[i64(0)]), ALL)
            found = [local(CHANNELS, "int32") for _ in range(2)]
            for buffer, value in zip(
                found, statistics(StatisticsDialect, total, squares, kept, margins, attrs), strict=True
            ):
                T.buffer_store(buffer, value.clamped().parts[0], [ramp(0, CHANNELS)])

            def normalise(run: Run) -> None:
                start = T.Bind(piece * CHANNELS + run.start)
                values = layout.load(packed, T.Bind(start * (len(rescale.fields) + 1)), run)
                mean, inverse = (Vector((T.Bind(b[ramp(run.start, run.width)]),), "int32") for b in found)
                with serial(frames) as frame:
                    at = T.Bind((first + frame) * channels + start)
                    with T.If(mask[first + frame] != 0):
                        with T.Then():
                            apart = TvmDialect.shift_left(load(x, at, run), mean_bits(attrs["longest"])) - mean
                            store(out, at, normalised(TvmDialect, apart, inverse, values, attrs), run)
                        with T.Else():
                            store(out, at, everywhere(attrs["zero_point"], run), run)

            _over(piece, channels, normalise)

    arguments = [source, mask, ((words,), "int64"), ((1,), "int64"), ((1,), "int64"), output]
    return kernel(name, arguments, write, names)


def _over(piece, channels: int, body: Callable[[Run], None]) -> None:
    """``body(run)`` for the runs of a piece of 16 channels; the last piece may have fewer."""
    pieces = -(-channels // CHANNELS)
    last = runs(channels - (pieces - 1) * CHANNELS, (), CHANNELS)
    if pieces == 1 or last == [ALL]:
        for run in last:
            body(run)
        return
    with T.If(piece < pieces - 1):
        with T.Then():
            body(ALL)
        with T.Else():
            for run in last:
                body(run)


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
