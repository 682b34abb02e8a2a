"""Operations over frames: which of them there are, and their normalisation, some channels of a row at a time."""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import TvmDialect, Vector, held, splat
from intq.kernels.cpu.build import i64, kernel, local, parallel, parallel_region, ramp, serial, symbolic
from intq.kernels.cpu.constants import Channelwise, everywhere
from intq.kernels.cpu.frames import CHANNELS
from intq.kernels.cpu.isa import Isa
from intq.kernels.cpu.lanes import load, store
from intq.kernels.cpu.runs import Run, runs
from intq.kernels.cpu.sweep import row_runs
from intq.kernels.pack import Rescale
from intq.ops.frames import MEAN_BITS, normalised, statistics

NATURAL = Isa("", 0, 0, 0, (), CHANNELS, ())  # runs in natural order: four times as many channels as in a quad's vector


class StatisticsDialect(TvmDialect):
    """What a bound is proven of is used many times: it is computed once."""

    @staticmethod
    def within(x: Vector, low: int, high: int) -> Vector:
        return held(x)


def normalize_frames(name: str, attrs, rescale: Rescale, source, mask, output) -> tirx.PrimFunc:
    """The kernel (x, mask, constants, epsilon (1,), deviation_epsilon (1,), out). ``source``...: (shape, dtype)."""
    channels = output[0][-1]
    layout = Channelwise(rescale.fields, rescale.base)
    words = layout.words(tuple(runs(channels, (), CHANNELS)))
    names = symbolic(source[0])

    def write(*rest):
        sizes, (x, mask, packed, epsilon, deviation_epsilon, out) = (
            dict(zip(names, rest, strict=False)),
            rest[len(names) :],
        )
        n, frames = (i64(sizes.get(d, d)) for d in source[0][:2])

        def normalise(sample, start, run: Run):
            place = ramp(0, run.width)
            first = T.Bind(sample * frames)
            sums = [local(run.width, "int64") for _ in range(2)]
            count = local(1, "int32")
            for buffer in (*sums, count):
                size = buffer.shape[0]
                T.buffer_store(buffer, splat(0, str(buffer.dtype), int(size)), [ramp(0, int(size))])
            with serial(frames) as frame, T.If(mask[first + frame] != 0), T.Then():
                T.buffer_store(count, count[i64(0)] + 1, [i64(0)])
                values = TvmDialect.wide(load(x, T.Bind((first + frame) * channels + start), run))
                for buffer, more in zip(sums, (values, values * values), strict=True):
                    T.buffer_store(buffer, buffer[place] + more.parts[0], [place])
            total, squares = (Vector((buffer[place],), "int64") for buffer in sums)
            margins = (("epsilon", epsilon), ("deviation_epsilon", deviation_epsilon))
            constants = {key: Vector((splat(value[i64(0)], "int64", run.width),), "int64") for key, value in margins}
            kept = everywhere(T.Bind(count[i64(0)]), run)
            found = statistics(StatisticsDialect, total, squares, kept, constants, attrs)
            mean, inverse = (Vector((T.Bind(v.clamped().parts[0]),), "int32") for v in found)
            values = layout.load(packed, T.Bind(start * (len(rescale.fields) + 1)), run)
            zero = everywhere(attrs["zero_point"], run)
            with serial(frames) as frame:
                at = T.Bind((first + frame) * channels + start)
                with T.If(mask[first + frame] != 0):
                    with T.Then():
                        apart = TvmDialect.shift_left(load(x, at, run), MEAN_BITS) - mean
                        store(out, at, normalised(TvmDialect, apart, inverse, values, attrs), run)
                    with T.Else():
                        store(out, at, zero, run)

        with parallel_region():
            row_runs(n, channels, NATURAL, CHANNELS, normalise)

    arguments = [source, mask, ((words,), "int64"), ((1,), "int64"), ((1,), "int64"), output]
    return kernel(name, arguments, write, names)


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
