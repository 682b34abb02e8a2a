"""From samples to log-mel bands: as many frames at a time as a vector has 32-bit lanes, in a buffer in the first cache.

The buffer's row k holds the real and the imaginary part of a value of the transform, for all lanes, and later the power
of bin k as int64 in its place. Two stages of two values are one pass over it. Frames that lie inside their row are read
from the samples themselves; the others are copied first, with what is beyond the ends.

    floor((h 2**15 + l + 2**(s - 1)) / 2**s)  =  floor((h + floor(l / 2**15) + 2**(s - 16)) / 2**(s - 15))

makes a windowed sample of two int32 sums: of the high halves of the window's weights, and of the low ones.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import TvmDialect, Vector, lanes, reinterpret, splat, vector_type
from intq.kernels.build import i64, kernel, ramp, symbolic
from intq.kernels.cpu.build import local, parallel, parallel_region, serial, workspace
from intq.kernels.cpu.frames import SPLIT_BITS, Spectrum
from intq.kernels.cpu.isa import Isa
from intq.kernels.cpu.lanes import tables
from intq.kernels.cpu.shuffle import shuffle, transpose
from intq.ops.log_mel import butterfly, finished, guarded, logarithm, merged, power, stages, untangled

PAIR_PRODUCTS = {  # int32 lanes -> the instruction that multiplies twice as many words and adds neighbours
    16: "llvm.x86.avx512.pmaddw.d.512",
    8: "llvm.x86.avx2.pmadd.wd",
}


class FrameDialect(TvmDialect):
    """What is used more than once is computed once, and the place of a first one is an instruction."""

    @staticmethod
    def wide(x: Vector) -> Vector:
        return _bound(TvmDialect.wide(x))

    @staticmethod
    def narrow(x: Vector) -> Vector:
        return _bound(TvmDialect.narrow(x))

    @staticmethod
    def leading(x: Vector) -> tuple[Vector, Vector]:
        def zeros(part):
            kind = vector_type("int64", lanes(part))
            return T.Bind(tirx.call_llvm_pure_intrin(kind, "llvm.ctlz", part, tirx.const(1, "bool")))

        x = _bound(x)
        free = Vector(tuple(map(zeros, x.parts)), "int64", x.paired)
        moved = tuple(p << (f - splat(2, "int64", lanes(p))) for p, f in zip(x.parts, free.parts, strict=True))
        place = tuple(splat(63, "int64", lanes(f)) - f for f in free.parts)
        return Vector(place, "int64", x.paired), Vector(moved, "int64", x.paired)


def _bound(x: Vector) -> Vector:
    return Vector(tuple(map(T.Bind, x.clamped().parts)), x.dtype, x.paired)


def log_mel(name: str, isa: Isa, spectrum: Spectrum, attrs, base: int, arguments, source, output) -> tirx.PrimFunc:
    """The kernel (samples, lengths, window, order, turn, bands, weights, guard and offset, scalars, curve, out).

    ``arguments``: (shape, dtype) of what is between lengths and out; ``base``: of its rescale.
    """
    (n, samples), (_, frames, bands) = source[0], output[0]
    names = tuple(dict.fromkeys((*symbolic(source[0]), *symbolic(output[0]))))

    def write(*rest):
        sizes = dict(zip(names, rest, strict=False))
        x, lengths, window, order, turn, band, weight, level, scalar, curve, out = rest[len(names) :]
        with parallel_region(), ExitStack() as stack:
            rows, width = spectrum.points + 2, spectrum.lanes
            blocks = -(-bands // width)
            writer = _Writer(
                spectrum,
                isa,
                attrs,
                base,
                x,
                window,
                order,
                turn,
                z=stack.enter_context(workspace(rows * 2 * width, "int32")),
                edges=stack.enter_context(workspace(2 * width * spectrum.span, "int16")),
                results=stack.enter_context(workspace(blocks * width * width, "int32")),
            )
            coefficients = tables(curve, isa)
            multiplier, shift = (T.Bind(scalar[i64(i)]) for i in range(2))
            many, per_row = i64(sizes.get(frames, frames)), i64(sizes.get(samples, samples))
            groups = T.Bind((many + (width - 1)) // width)
            with parallel(i64(sizes.get(n, n)) * groups) as unit:
                row, first = T.Bind(unit // groups), T.Bind(unit % groups * width)
                end = T.Bind(tirx.min(lengths[row].astype("int64"), per_row))
                writer.load(T.Bind(row * per_row), first, end)
                writer.transform()
                writer.powers()
                writer.bands(band, weight, level, multiplier, shift, coefficients, bands)
                writer.store(out, T.Bind((row * many + first) * bands), T.Bind(many - first), bands)

    return kernel(name, [source, ((n,), "int32"), *arguments, output], write, names)


@dataclass(frozen=True)
class _Writer:
    """The buffers of one kernel and the code over them."""

    spectrum: Spectrum
    isa: Isa
    attrs: dict
    base: int
    samples: object
    window: object
    order: object
    turn: object
    z: object  # (row, real and imaginary, lane)
    edges: object  # (lane, even and odd points, pair) of frames that reach beyond the ends of their row
    results: object  # (band, lane)

    @property
    def lanes(self) -> int:
        return self.spectrum.lanes

    # ---- vectors ---------------------------------------------------------------------------------------------

    @property
    def _paired(self) -> bool:
        return bool(self.isa.quads)

    def _wide(self, parts) -> Vector:
        return Vector(tuple(parts), "int64", self._paired)

    def _everywhere(self, scalar) -> Vector:
        count = 2 if self._paired else 1
        return self._wide([splat(scalar, "int64", self.lanes // count)] * count)

    def _row(self, row) -> tuple[Vector, Vector]:
        """A value of the transform."""
        at = T.Bind(row * (2 * self.lanes))
        places = (ramp(at + i * self.lanes, self.lanes) for i in range(2))
        return tuple(Vector((T.Bind(self.z[place]),), "int32", self._paired) for place in places)

    def _put(self, row, value) -> None:
        at = T.Bind(row * (2 * self.lanes))
        for i, part in enumerate(value):
            T.buffer_store(self.z, part.clamped().parts[0], [ramp(at + i * self.lanes, self.lanes)])

    def _turn(self, index) -> tuple[Vector, Vector]:
        """exp(-2 pi i index / F), in every lane."""
        return tuple(self._everywhere(T.Bind(self.turn[index * 2 + i].astype("int64"))) for i in range(2))

    # ---- samples ---------------------------------------------------------------------------------------------

    def load(self, origin, first, end) -> None:
        """The windowed samples of the frames from ``first`` on, of the row whose samples lie in [origin, origin + end).

        All rows are written: zeros where the window is none.
        """
        spectrum, hop = self.spectrum, self.attrs["hop"]
        own = T.Bind(end + hop * self.attrs["extra_frame"])  # frame f is one of the row's if (f + 1) hop <= own
        begin = T.Bind(first * hop + (2 * spectrum.first - spectrum.points))  # of the first frame's window
        last = self.lanes - 1
        inside = tirx.all(begin >= 1, begin + (last * hop + spectrum.span) <= end, (first + self.lanes) * hop <= own)
        self._clear()
        with T.If(inside):
            with T.Then():
                step = i64(hop)
                self._window(self.samples, lambda lane, odd: origin + begin + lane * step + (odd - 1))
            with T.Else():
                with serial(self.lanes) as lane:
                    self._edge(lane, origin, begin + lane * hop, end, (first + lane + 1) * hop <= own)
                span = spectrum.span
                self._window(self.edges, lambda lane, odd: (odd + 2 * lane) * span)

    def _clear(self) -> None:
        """Zeros in the rows that the window does not reach."""
        reached, rows = self.lanes * self.spectrum.blocks, self.order.shape[0]
        with serial(rows - reached) as i:
            at = T.Bind(self.order[i + reached].astype("int64") * (2 * self.lanes))
            T.buffer_store(self.z, splat(0, "int32", 2 * self.lanes), [ramp(at, 2 * self.lanes)])

    def _edge(self, lane, origin, begin, end, exists) -> None:
        """The pairs of samples of one frame, with what is beyond the row's ends."""
        span, width = self.spectrum.span, 2 * self.lanes
        at = T.Bind(lane * (2 * span))
        with T.If(exists):
            with T.Then(), serial(span) as j:
                place = T.Bind(begin + j)
                if self.attrs["padding"] == "reflect":
                    behind = tirx.Select(place >= end, (end - 1) * 2 - place, place)
                    place = T.Bind(tirx.Select(place < 0, 0 - place, behind))
                there = T.Bind(at + (j % 2) * span + j // 2 * 2)
                for i in range(2):
                    T.buffer_store(self.edges, tirx.const(0, "int16"), [there + i])
                with T.If(tirx.all(place >= 0, place < end)), T.Then():
                    T.buffer_store(self.edges, self.samples[origin + place], [there + 1])
                    with T.If(place > 0), T.Then():
                        T.buffer_store(self.edges, self.samples[origin + place - 1], [there])
            with T.Else(), serial(2 * span // width) as j:
                T.buffer_store(self.edges, splat(0, "int16", width), [ramp(at + j * width, width)])

    def _window(self, source, start) -> None:
        """Windowed samples of all lanes; ``start(lane, odd)``: where a frame's pairs of even or odd points begin."""
        width = 2 * self.lanes
        with serial(self.spectrum.blocks) as block, serial(2) as odd:
            at = T.Bind(block * 4 + odd * 2)
            weights = [T.Bind(self.window[ramp((at + half) * width, width)]) for half in range(2)]
            frames = [
                self._windowed(source[ramp(start(lane, odd) + block * width, width)], weights)
                for lane in range(self.lanes)
            ]
            for i, points in enumerate(transpose(frames)):
                row = T.Bind(self.order[block * self.lanes + i].astype("int64"))
                T.buffer_store(self.z, points, [ramp(row * width + odd * self.lanes, self.lanes)])

    def _windowed(self, pairs, weights):
        """:func:`intq.ops.log_mel.windowed` in int32, see above."""
        pairs, shift = T.Bind(pairs), self.attrs["window_shift"] - SPLIT_BITS
        high, low = (self._pair_products(pairs, weight) for weight in weights)
        places, half = (splat(v, "int32", self.lanes) for v in (SPLIT_BITS, 1 << (shift - 1)))
        return T.Bind((high + (low >> places) + half) >> splat(shift, "int32", self.lanes))

    def _pair_products(self, pairs, weights):
        if self._paired:
            return tirx.call_llvm_pure_intrin(f"int32x{self.lanes}", PAIR_PRODUCTS[self.lanes], pairs, weights)
        wide = [v.astype(f"int32x{2 * self.lanes}") for v in (pairs, weights)]
        product = T.Bind(wide[0] * wide[1])
        return shuffle([product], range(0, 2 * self.lanes, 2)) + shuffle([product], range(1, 2 * self.lanes, 2))

    # ---- the transform ---------------------------------------------------------------------------------------

    def transform(self) -> None:
        """Decimation in time: stages of five and three values, then of two, two at a time; a single one is last."""
        points, half = self.spectrum.points, 1
        for radix in stages(points):
            if radix > 2:
                with serial(half) as j:
                    self._merge(half, j, radix)
                half *= radix
        while half < points:
            count = 2 if 4 * half <= points else 1
            write = self._pass if count == 2 else self._stage
            write(half, i64(0), trivial=True)
            if half > 1:
                with serial(half - 1) as j:
                    write(half, j + 1, trivial=False)
            half <<= count

    def _merge(self, part: int, j, radix: int) -> None:
        """The stage after which transforms have ``radix * part`` points: the values j of every one of them."""
        circle = 2 * self.spectrum.points
        step = circle // (radix * part)
        turns = [[self._turn(p * (j + q * part) * step % circle) for p in range(1, radix)] for q in range(radix)]
        with serial(self.spectrum.points // (radix * part)) as group:
            at = [T.Bind(group * (radix * part) + j + p * part) for p in range(radix)]
            values = list(map(self._row, at))
            results = [merged(FrameDialect, values, each, self.attrs) for each in turns]
            for row, value in zip(at, results, strict=True):
                self._put(row, value)

    def _stage(self, half: int, j, trivial: bool) -> None:
        points = self.spectrum.points
        turn = None if trivial else self._turn(j * (points // half))
        with serial(points // (2 * half)) as group:
            at = T.Bind(group * (2 * half) + j)
            upper, lower = self._butterfly(self._row(at), self._row(at + half), turn)
            self._put(at, upper)
            self._put(at + half, lower)

    def _pass(self, half: int, j, trivial: bool) -> None:
        """The stages ``half`` and ``2 * half`` of four values, the same of every group."""
        points = self.spectrum.points
        quarter, step = points // 2, points // (2 * half)
        first = None if trivial else self._turn(j * (2 * step))
        second = None if trivial else self._turn(j * step)
        third = "-i" if trivial else self._turn(j * step + quarter)
        with serial(points // (4 * half)) as group:
            at = [T.Bind(group * (4 * half) + j + i * half) for i in range(4)]
            a, b, c, d = map(self._row, at)
            a, b = self._butterfly(a, b, first)
            c, d = self._butterfly(c, d, first)
            a, c = self._butterfly(a, c, second)
            b, d = self._butterfly(b, d, third)
            for row, value in zip(at, (a, b, c, d), strict=True):
                self._put(row, value)

    def _butterfly(self, a, b, turn) -> tuple:
        """:func:`intq.ops.log_mel.butterfly`; by 1 (None) and by -i nothing is multiplied nor rounded."""
        if turn is None or turn == "-i":
            br, bi = b if turn is None else (b[1], b[0] * -1)
            pairs = ((a[0] + br, a[1] + bi), (a[0] - br, a[1] - bi))
        else:
            pairs = butterfly(FrameDialect, a, b, turn, self.attrs)
        return tuple(tuple(map(_bound, pair)) for pair in pairs)

    def powers(self) -> None:
        """Of every bin, in the place of the transform's values."""
        points = self.spectrum.points
        with serial(points // 2 + 1) as k:
            mirrored = T.Bind(tirx.Select(k == 0, k, points - k))
            ends = untangled(FrameDialect, self._row(k), self._row(mirrored), self._turn(k), self.attrs)
            for row, value in zip((points - k, k), reversed(ends), strict=True):  # of the middle the first one counts
                self._put_wide(row, power(FrameDialect, value, self.attrs))

    def _put_wide(self, row, value: Vector) -> None:
        width = 2 * self.lanes // len(value.parts)
        for i, part in enumerate(value.parts):
            T.buffer_store(
                self.z, reinterpret(part, f"int32x{width}"), [ramp(row * (2 * self.lanes) + i * width, width)]
            )

    def _wide_row(self, row) -> Vector:
        count = 2 if self._paired else 1
        width = 2 * self.lanes // count
        at = T.Bind(row * (2 * self.lanes))
        parts = (self.z[ramp(at + i * width, width)] for i in range(count))
        return self._wide(reinterpret(part, f"int64x{width // 2}") for part in parts)

    # ---- bands -----------------------------------------------------------------------------------------------

    def bands(self, band, weight, level, multiplier, shift, coefficients, count: int) -> None:
        """The results of every band in every lane."""
        zero = self._everywhere(0)
        width = lanes(zero.parts[0])
        constants = {"multiplier": self._everywhere(multiplier), "curve": coefficients}
        constants["shift"] = self._shift(shift)
        taken, sums = local(1, "int64"), [local(width, "int64") for _ in zero.parts]
        T.buffer_store(taken, i64(0), [i64(0)])
        with serial(count) as b:
            first, many = (T.Bind(band[b * 2 + i].astype("int64")) for i in range(2))
            at = T.Bind(taken[i64(0)])
            for total, part in zip(sums, zero.parts, strict=True):
                T.buffer_store(total, part, [ramp(0, width)])
            with serial(many) as i:
                more = self._wide_row(first + i) * weight[at + i].astype("int64")
                for total, part in zip(sums, more.parts, strict=True):
                    T.buffer_store(total, total[ramp(0, width)] + part, [ramp(0, width)])
            T.buffer_store(taken, at + many, [i64(0)])
            guard, offset = (self._everywhere(T.Bind(level[b * 2 + i])) for i in range(2))
            x = guarded(FrameDialect, self._wide(total[ramp(0, width)] for total in sums), guard, self.attrs)
            log = _bound(logarithm(FrameDialect, x, constants, self.attrs))
            result = FrameDialect.narrow(finished(FrameDialect, log, offset, constants, self.attrs))
            T.buffer_store(self.results, result.parts[0], [ramp(b * self.lanes, self.lanes)])

    def _shift(self, shift) -> Vector:
        if not self.base:
            return self._everywhere(shift)
        return Vector((splat(shift.astype("int32"), "int32", self.lanes),), "int32", self._paired)

    def store(self, out, at, left, bands: int) -> None:
        """The frames that there are, ``left`` of them or all lanes, to out[at ...]."""
        width = self.lanes
        with serial(-(-bands // width)) as block:
            rows = [T.Bind(self.results[ramp((block * width + i) * width, width)]) for i in range(width)]
            for i, frame in enumerate(transpose(rows)):
                T.buffer_store(self.results, frame, [ramp((block * width + i) * width, width)])
        with serial(tirx.min(left, i64(width))) as lane:
            for block in range(bands // width):
                frame = self.results[ramp(block * width * width + lane * width, width)]
                T.buffer_store(out, frame.astype(f"int16x{width}"), [ramp(at + lane * bands + block * width, width)])
            for band in range(bands // width * width, bands):
                one = self.results[bands // width * width * width + lane * width + band % width]
                T.buffer_store(out, one.astype("int16"), [at + lane * bands + band])
