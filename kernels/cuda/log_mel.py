"""From samples to log-mel bands: a block for each frame, whose transform is in shared memory.

A stage of the transform is a barrier's work: every thread takes some groups of ``radix`` values that meet nobody else's
and puts the results in their places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import Vector
from intq.kernels.cuda.build import (
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
from intq.kernels.cuda.dialect import HeldDialect, tables
from intq.kernels.cuda.elements import Constants, Elements
from intq.ops.log_mel import butterfly, finished, guarded, logarithm, merged, power, stages, untangled, windowed

THREADS = 128

Tensor = tuple[tuple, str]


def log_mel(
    name: str, attrs: Mapping, constants: Constants, arguments: list[Tensor], source: Tensor, out: Tensor
) -> tirx.PrimFunc:
    """The kernel (samples, lengths, window, order, turn, bands, weights, guard, constants, curve, out).

    ``arguments``: what is between lengths and out, see :func:`intq.kernels.cuda.pack.log_mel_arrays`.
    """
    points, ((curve,), _), bands = arguments[0][0][0] // 4, arguments[-1], out[0][2]
    names = tuple(dict.fromkeys(d for d in (*source[0], *out[0]) if isinstance(d, str)))

    def write(*given):
        sizes = dict(zip(names, given, strict=False))
        x, lengths, window, order, turn, band, weight, guard, packed, coefficients, target = given[len(names) :]
        (n, samples), frames = (sizes.get(d, d) for d in source[0]), sizes.get(out[0][1], out[0][1])
        with blocks(THREADS, frames, n) as (frame, row, _, thread):
            transform = _Transform(attrs, points, turn, thread, shared(2 * points, "int32"))
            powers = shared(points + 1, "int64")
            end = T.Bind(tirx.min(lengths[row], samples))
            _load(transform, x, row * samples, frame, end, window, order)
            barrier()
            transform.run()
            _powers(transform, powers)
            barrier()
            number = tables(coefficients, curve // 3, 3)

            def finish(b):
                total = _band(b, band, weight, powers)
                values = constants.load(packed, [b]) | {"curve": number}
                level = Vector((T.Bind(guard[b]),), "int64")
                log = logarithm(HeldDialect, guarded(HeldDialect, total, level, attrs), values, attrs)
                result = finished(HeldDialect, log, values["offset"], values, attrs)
                Elements(target, n * frames * bands, 1).store((row * frames + frame) * bands + b, result)

            transform.share(bands, finish)

    return kernel(name, [source, (source[0][:1], "int32"), *arguments, out], write, names)


def _load(transform: _Transform, x, origin, frame, end, window, order) -> None:
    """The windowed samples of a frame as complex points; its row begins at ``origin`` and has ``end`` samples."""
    attrs, points = transform.attrs, transform.points
    hop = attrs["hop"]
    exists = T.Bind((frame + 1) * hop <= end + hop * attrs["extra_frame"])
    begin, origin = T.Bind(frame * hop - points), T.Bind(origin)

    def sample(place, inside) -> Vector:
        value = tirx.if_then_else(inside, x[origin + place], tirx.const(0, "int16"))
        return Vector((T.Bind(value.astype("int32")),), "int32")

    def load(point):
        parts = []
        for i in range(2):
            at = T.Bind(point * 2 + i)
            place = T.Bind(begin + at)
            if attrs["padding"] == "reflect":
                behind = tirx.Select(place >= end, (end - 1) - (place - (end - 1)), place)
                place = T.Bind(tirx.Select(place < 0, i32(0) - place, behind))
            inside = T.Bind(tirx.all(exists, place >= 0, place < end))
            now, before = sample(place, inside), sample(place - 1, tirx.all(inside, place > 0))
            weights = (Vector((T.Bind(window[at + first]),), "int32") for first in (0, 2 * points))
            parts.append(windowed(HeldDialect, now, before, *weights, attrs))
        transform.put(T.Bind(order[point]), parts)

    transform.share(points, load)


@dataclass(frozen=True)
class _Transform:
    """``points`` complex values of 32 bits in shared ``memory``, real parts first, and a block's threads over them."""

    attrs: Mapping
    points: int
    turns: object
    thread: object
    memory: object

    def share(self, count: int, body) -> None:
        """``body(i)`` for i < ``count``, by a thread each."""
        with T.serial(i32(0), i32(ceil_div(count, THREADS))) as turn:
            i = T.Bind(turn * THREADS + self.thread)
            with T.If(i < count), T.Then():
                body(i)

    def value(self, place) -> tuple[Vector, Vector]:
        return tuple(Vector((T.Bind(self.memory[place + part * self.points]),), "int32") for part in range(2))

    def put(self, place, value) -> None:
        for part, number in enumerate(value):
            store(self.memory, number.clamped().parts[0], place + part * self.points)

    def turn(self, index) -> tuple[Vector, Vector]:
        """exp(-2 pi i index / F)."""
        return tuple(Vector((T.Bind(self.turns[index * 2 + part]),), "int32") for part in range(2))

    def run(self) -> None:
        """Decimation in time, as :func:`intq.ops.log_mel.stages` says, each with a barrier behind it."""
        length = 1
        for radix in stages(self.points):
            self._stage(radix, length)
            length *= radix
            barrier()

    def _stage(self, radix: int, length: int) -> None:
        """``radix`` transforms of ``length`` points become one."""
        circle = 2 * self.points
        step = circle // (radix * length)

        def merge(group):
            j = T.Bind(remainder(group, length))
            at = [T.Bind(quotient(group, length) * (radix * length) + j + p * length) for p in range(radix)]
            values = [self.value(place) for place in at]
            if radix == 2:
                results = butterfly(HeldDialect, *values, self.turn(T.Bind(j * step)), self.attrs)
            else:
                results = [self._merged(values, T.Bind((j + q * length) * step)) for q in range(radix)]
            for place, result in zip(at, results, strict=True):
                self.put(place, result)

        self.share(self.points // radix, merge)

    def _merged(self, values: list, angle) -> tuple:
        turns = [self.turn(T.Bind(remainder(angle * p, 2 * self.points))) for p in range(1, len(values))]
        return merged(HeldDialect, values, turns, self.attrs)


def _powers(transform: _Transform, powers) -> None:
    """Of every bin."""
    points = transform.points

    def untangle(k):
        mirrored = T.Bind(tirx.Select(k.equal(0), k, points - k))
        ends = untangled(HeldDialect, transform.value(k), transform.value(mirrored), transform.turn(k), transform.attrs)
        for place, value in zip((points - k, k), reversed(ends), strict=True):  # of the middle the first one counts
            store(powers, power(HeldDialect, value, transform.attrs).clamped().parts[0], place)

    transform.share(points // 2 + 1, untangle)


def _band(b, band, weight, powers) -> Vector:
    """The sum of a band's weighted powers."""
    first, count, at = (T.Bind(band[b * 3 + i]) for i in range(3))
    total = registers(1, "int64")
    store(total, tirx.const(0, "int64"), 0)
    with T.serial(i32(0), count) as i:
        store(total, total[0] + powers[first + i] * weight[at + i].astype("int64"), 0)
    return Vector((T.Bind(total[0]),), "int64")
