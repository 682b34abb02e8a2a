"""Operations over frames: which of them there are, and their normalisation over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import Vector, low_words
from intq.kernels.cuda.build import (
    WARP,
    barrier,
    blocks,
    ceil_div,
    i32,
    kernel,
    quotient,
    registers,
    remainder,
    shared,
    store,
)
from intq.kernels.cuda.dialect import CudaDialect, HeldDialect, everywhere
from intq.kernels.cuda.elements import Constants, Elements, width_of
from intq.kernels.cuda.reduce import over_warps, warp_sum
from intq.kernels.cuda.sweep import each
from intq.ops.frames import mean_bits, normalised, statistics

WARPS = 16
CHANNELS = 16  # of a block: 32 bytes of a frame

Tensor = tuple[tuple, str]


def normalize_frames(
    name: str, attrs: Mapping, constants: Constants, source: Tensor, mask: Tensor, out: Tensor
) -> tirx.PrimFunc:
    """The kernel (x, mask, constants, epsilon (1,), deviation_epsilon (1,), out).

    A block takes CHANNELS channels of all frames of a row, twice: their sums, then, with a lane for each channel's
    mean and inverse deviation between, themselves.
    """
    channels, names = out[0][-1], tuple(dict.fromkeys(d for d in source[0] if isinstance(d, str)))
    width = width_of(channels, source[1], out[1])
    across, bits = CHANNELS // width, mean_bits(attrs["longest"])
    together = WARPS * WARP // across  # frames at a time

    def write(*given):
        sizes, (x, kept, packed, *margins, target) = dict(zip(names, given, strict=False)), given[len(names) :]
        rows, frames = (sizes.get(d, d) for d in source[0][:2])
        size = rows * frames * channels
        elements, ends = Elements(x, size, width), Elements(target, size, width)
        with blocks(WARPS * WARP, ceil_div(channels, CHANNELS), rows) as (bx, row, _, thread):
            slot, first = T.Bind(remainder(thread, across) * width), T.Bind(quotient(thread, across))
            channel = T.Bind(bx * CHANNELS + slot)

            def over_frames(body: Callable) -> None:
                """``body(place, its mask)`` of every frame that is this thread's."""
                with T.serial(i32(0), ceil_div(frames - first, together)) as turn:
                    at = T.Bind(row * frames + turn * together + first)
                    body(at, T.Bind(kept[at].astype("int32")))

            found = _sums(over_frames, elements, channels, channel, width)
            totals, squares = (shared(WARPS * CHANNELS, "int64") for _ in range(2))
            counts, settled = shared(WARPS, "int32"), [shared(CHANNELS, "int32") for _ in range(2)]
            warp, lane = T.Bind(quotient(thread, WARP)), T.Bind(remainder(thread, WARP))
            sums = [[warp_sum(memory[i], across) for i in range(width)] for memory in found[:2]]
            count = warp_sum(found[2][0], across)
            with T.If(lane < across), T.Then():
                for memory, values in zip((totals, squares), sums, strict=True):
                    for i, value in enumerate(values):
                        store(memory, value, warp * CHANNELS + slot + i)
            with T.If(lane.equal(0)), T.Then():
                store(counts, count, warp)
            barrier()
            with T.If(thread < CHANNELS), T.Then():
                sums = [over_warps(memory, WARPS, CHANNELS, thread) for memory in (totals, squares)]
                sums.append(over_warps(counts, WARPS, 1))
                values = {key: T.Bind(memory[i32(0)]) for key, memory in zip(MARGINS, margins, strict=True)}
                values = {key: Vector((value,), "int64") for key, value in values.items()}
                for memory, value in zip(settled, statistics(HeldDialect, *sums, values, attrs), strict=True):
                    store(memory, value.clamped().parts[0], thread)
            barrier()
            with T.If(channel < channels), T.Then():
                own = [Vector(tuple(T.Bind(memory[slot + i]) for i in range(width)), "int32") for memory in settled]
                values = constants.load(packed, [channel + i for i in range(width)])

                def normalise(at, keeps) -> None:
                    at = T.Bind(at * channels + channel)
                    apart = (CudaDialect.shift_left(elements.load(at), bits) - own[0]) * everywhere(keeps, width)
                    result = low_words(normalised(CudaDialect, apart, own[1], values, attrs).clamped())
                    kept_ = everywhere(keeps, width) >= 1
                    ends.store(at, CudaDialect.where(kept_, result, everywhere(i32(attrs["zero_point"]), width)))

                over_frames(normalise)

    arguments = [source, mask, ((constants.size,), "int32"), *[((1,), "int64")] * len(MARGINS), out]
    return kernel(name, arguments, write, names)


MARGINS = ("epsilon", "deviation_epsilon")


def _sums(over_frames: Callable, elements: Elements, channels: int, channel, width: int) -> tuple:
    """(sums of x, sums of x**2, count) of the frames that the mask keeps and are this thread's, in registers."""
    totals, squares, count = registers(width, "int64"), registers(width, "int64"), registers(1, "int32")
    for memory, size in ((totals, width), (squares, width), (count, 1)):
        for i in range(size):
            store(memory, tirx.const(0, str(memory.dtype)), i)

    def add(at, keeps) -> None:
        store(count, count[0] + keeps, 0)
        with T.If(channel < channels), T.Then():
            for i, part in enumerate(elements.load(T.Bind(at * channels + channel)).parts):
                wide = T.Bind((part * keeps).astype("int64"))
                store(totals, totals[i] + wide, i)
                store(squares, squares[i] + wide * wide, i)

    over_frames(add)
    return totals, squares, count


def frame_mask(name: str, body: Callable, attrs: Mapping, source: Tensor, out: Tensor) -> tirx.PrimFunc:
    """The kernel (x, lengths, out); of x only the shape counts."""
    names = tuple(dict.fromkeys(d for d in (*source[0], *out[0]) if isinstance(d, str)))

    def write(*given):
        sizes, (_, lengths, target) = dict(zip(names, given, strict=False)), given[len(names) :]
        rows, frames = (sizes.get(d, d) for d in out[0])

        def element(row, frame):
            operands = (Vector((value,), "int32") for value in (T.Bind(lengths[row]), frame + 1))
            result = body(CudaDialect, tuple(operands), {}, attrs)
            Elements(target, rows * frames, 1).store(row * frames + frame, result)

        each(rows, frames, element)

    return kernel(name, [source, (out[0][:1], "int32"), out], write, names)
