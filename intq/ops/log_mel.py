"""From samples to the logarithm of the power in each mel band, frame by frame, in one operation.

    y[n, f, b] = log(sum_k filters[b, k] |X[n, f, k]|**2 + guard)
    X[n, f, k] = sum_j window[j] (x[i] - preemphasis x[i - 1]) exp(-2 pi i j k / F),   i = f hop + j - F / 2

One operation, because what is between is wide (32-bit spectra, 64-bit powers) and never leaves the first cache. The
spectrum of F real points is that of N = F / 2 complex ones, by decimation in time (Cooley and Tukey 1965) in 32 bits
with products of 64, a stage for each prime factor of N, and then untangled. Nothing is scaled on the way: whatever the
samples, no value on the way is larger than the sum of the magnitudes that go in, ``reach`` below, and the window is
rounded so far that this is an int32 with a bit to spare. The powers are summed by band in 64 bits; of their sum the
logarithm to base 2 is the place of the first one, and a curve (:mod:`intq.curves`) of the fifteen bits behind it.

**Proof of reach.** A value v on the way is a sum of inputs, each turned by factors w with |w| = 1, so that in exact
arithmetic |v| <= sum |z| = S over all inputs z. Table entries are off by at most 3/2 * 2**-30 in each part, which makes
|w| an error of less than 3 * 2**-30 and a product w b one of less than 3 (|b| < 2**30); rounding adds less than 1. A
stage adds r values, r - 1 of them turned: an error e of each grows to at most r e + 3 (r - 1) + 1 <= r e + 4 (r - 1),
and to less than 4 (N - 1) after all stages of N points; untangling makes at most 2 e + 4 of it. So everything is within
S + 8 N = S + 4 F =: reach. What a stage adds up before it rounds is such a value in units of 2**-30, or fewer of its
terms, which are as well bounded by the inputs that they came from: within 2 reach 2**30.
"""

from __future__ import annotations

import math

import numpy as np

from intq import dims
from intq.curves import curve, fit
from intq.errors import IntqError
from intq.fixedpoint import dyadic, leading, offset_of, rescale
from intq.ops.op import Attrs, Constants, Op, Sample, expect
from intq.value import DTYPE_RANGE, Shape, Value

PADDINGS, GUARDS = ("constant", "reflect"), ("add", "clamp")
FFT_LIMITS, RADICES = (16, 2048), (5, 3, 2)
WINDOW_ONE = 2**30 - 2**18  # the window's largest value, a little less than 2**30: kernels split it in two int16
WINDOW_SHIFTS = range(16, 31)
TURN_BITS = 30  # fractional bits of sines and cosines
REACH_LIMIT = 2**30  # so that the sum of two values is an int32
WEIGHTS_OF_BAND = 2**15 - 1  # the sum of a band's weights
POWER_BITS = 62  # of a band's power, which is less than 2 to that
FFT_RULE = "a multiple of 4 from {} to {} without other prime factors than 2, 3 and 5".format(*FFT_LIMITS)
LOG_BITS = 15  # fractional bits of a logarithm
LEAST_GUARD = 2**6  # in the units of a band's power: an error of 2**-7 where there is nothing else


# ---- the arithmetic, which kernels share -----------------------------------------------------------------------


def windowed(L, now, before, weight_now, weight_before, attrs: Attrs):
    """round(window[j] x[i] - window[j] preemphasis x[i - 1]), int32 with ``30 - window_shift`` fractional bits."""
    shift = attrs["window_shift"]
    total = L.wide(now) * L.wide(weight_now) + L.wide(before) * L.wide(weight_before)
    return L.narrow(L.shift_right(total + (1 << (shift - 1)), shift))


def butterfly(L, a, b, turn, attrs: Attrs):
    """(a + w b, a - w b) for complex int32 (real, imaginary) and ``w = turn`` in units of 2**-30, each rounded."""
    (ar, ai), reach = a, attrs["reach"]
    tr, ti = turned(L, b, turn)
    sums = ar + tr, ai + ti
    differences = ar - tr, ai - ti
    return tuple(tuple(L.within(v, -reach, reach) for v in pair) for pair in (sums, differences))


def merged(L, values, turns, attrs: Attrs):
    """b[0] + sum_p w[p] b[p], p = 1, 2..., rounded once: an output of a stage of more than two. ``turns``: all w[p]."""
    (first, *others), reach = values, attrs["reach"]
    totals = [L.shift_left(L.wide(part), TURN_BITS) for part in first]
    for value, turn in zip(others, turns, strict=True):
        (br, bi), (wr, wi) = (tuple(map(L.wide, pair)) for pair in (value, turn))
        products = br * wr - bi * wi, br * wi + bi * wr
        most = reach << (TURN_BITS + 1)
        totals = [L.within(total + product, -most, most) for total, product in zip(totals, products, strict=True)]
    half = 1 << (TURN_BITS - 1)
    return tuple(L.within(L.narrow(L.shift_right(t + half, TURN_BITS)), -reach, reach) for t in totals)


def turned(L, b, turn):
    """w b, rounded to integers."""
    (br, bi), (wr, wi) = (tuple(map(L.wide, pair)) for pair in (b, turn))
    half = 1 << (TURN_BITS - 1)
    return tuple(
        L.narrow(L.shift_right(product + half, TURN_BITS)) for product in (br * wr - bi * wi, br * wi + bi * wr)
    )


def untangled(L, z, mirrored, turn, attrs: Attrs):
    """X[k] and X[N - k], k = 0..N / 2, of the real points whose even ones were real parts and odd ones imaginary.

    ``z``, ``mirrored``: Z[k] and Z[N - k]; ``turn``: w = exp(-2 pi i k / F). With the spectra E and O of the even and
    the odd points, 2 E = Z[k] + conj Z[N - k] and 2 O = -i (Z[k] - conj Z[N - k]):

        X[k] = E + w O,    X[N - k] = conj(E - w O)                                       each part rounded once
    """
    (zr, zi), (mr, mi), (wr, wi) = z, mirrored, map(L.wide, turn)
    even = tuple(L.shift_left(L.wide(v), TURN_BITS) for v in (zr + mr, zi - mi))
    odd_r, odd_i = L.wide(zi + mi), L.wide(mr - zr)
    odd = odd_r * wr - odd_i * wi, odd_r * wi + odd_i * wr
    sums = even[0] + odd[0], even[1] + odd[1]
    differences = even[0] - odd[0], odd[1] - even[1]
    half, reach = 1 << TURN_BITS, attrs["reach"]
    rounded = lambda v: L.narrow(L.within(L.shift_right(v + half, TURN_BITS + 1), -reach, reach))  # noqa: E731
    return tuple(map(rounded, sums)), tuple(map(rounded, differences))


def power(L, value, attrs: Attrs):
    """round(|X|**2 / 2**power_shift), int64."""
    re, im = map(L.wide, value)
    whole = L.within(re * re + im * im, 0, attrs["reach"] ** 2)
    shift = attrs["power_shift"]
    return L.shift_right(whole + (1 << shift >> 1), shift) if shift else whole


def guarded(L, total, guard, attrs: Attrs):
    """The power of a band, int64, and at least 1."""
    if attrs["guard_kind"] == "add":
        return total + guard
    return L.clamp(total - guard, 0, 2**POWER_BITS) + guard


def logarithm(L, x, constants: Constants, attrs: Attrs):
    """log2(x) in int32 with 15 fractional bits, 1 <= x < 2**62: off by less than 2**-14."""
    place, x = leading(L, x)
    behind = L.low_bits(L.narrow(L.shift_right(x, 61 - LOG_BITS)), LOG_BITS)
    fraction = curve(L, behind, constants["curve"], attrs["drop"], 0, (1 << LOG_BITS) - 1)
    return L.shift_left(L.narrow(place), LOG_BITS) + fraction


def finished(L, log, offset, constants: Constants, attrs: Attrs):
    """clamp(round((log 2 log2(M) - log unit) / scale)), ``offset`` being the band's."""
    terms = [(log, constants["multiplier"])]
    return rescale(L, terms, offset, constants["shift"], attrs["low"], attrs["high"])


def _log_mel(L, operands, constants: Constants, attrs: Attrs):
    """log(filters |F(window * (x - preemphasis * x before))|**2 + guard) of samples (point, n, frame)."""
    points = windowed(L, *operands, *(weights.reshape(-1, 1, 1) for weights in constants["window"]), attrs)
    powers = power(L, _spectrum(L, points, constants["turn"], attrs), attrs)
    totals, at = [], 0
    for first, count in zip(constants["band_first"].tolist(), constants["band_count"].tolist(), strict=True):
        weights = constants["band_weight"][at : at + count].tolist()
        totals.append(sum(powers[first + i : first + i + 1] * weight for i, weight in enumerate(weights)))
        at += count
    x = guarded(L, L.concat(totals, 0), constants["guard"].reshape(-1, 1, 1), attrs)
    return finished(L, logarithm(L, x, constants, attrs), constants["offset"].reshape(-1, 1, 1), constants, attrs)


def _spectrum(L, points, turn, attrs: Attrs):
    """X[k], k = 0..F / 2, of F real points; points and k are the first axis."""
    circle = turn.shape[1]
    size = circle // 2
    turns = lambda index: tuple(part[index % circle].reshape(-1, 1, 1) for part in turn)  # noqa: E731
    at = lambda index: tuple(part[index] for part in z)  # noqa: E731
    z, place = (points[0::2], points[1::2]), input_order(size)  # place: where in z each value lies
    length = 1  # of the transforms so far, one behind the other
    for radix in stages(size):
        first = np.flatnonzero(np.arange(size) // length % radix == 0)
        members = [first + p * length for p in range(radix)]  # of a transform of radix * length points
        values, step = [at(place[member]) for member in members], circle // (radix * length)
        if radix == 2:
            results = butterfly(L, *values, turns(first % length * step), attrs)
        else:
            angles = [(first % length + q * length) * step for q in range(radix)]
            results = [merged(L, values, [turns(p * a) for p in range(1, radix)], attrs) for a in angles]
        z = tuple(L.concat(parts, 0) for parts in zip(*results, strict=True))
        place[np.concatenate(members)] = np.arange(size)
        length *= radix
    k, rest = np.arange(size // 2 + 1), np.arange(size // 2 - 1, -1, -1)
    ends = untangled(L, at(place[k]), at(place[-k]), turns(k), attrs)
    return tuple(L.concat((low, high[rest]), 0) for low, high in zip(*ends, strict=True))


def stages(size: int) -> tuple[int, ...]:
    """How many values each stage of a transform of ``size`` points merges, the first stage first.

    Raises IntqError for a size that has other prime factors than 2, 3 and 5.
    """
    rest, found = size, []
    for radix in RADICES:
        while rest % radix == 0:
            rest //= radix
            found.append(radix)
    if rest > 1:
        raise IntqError(f"a transform's size must have no other prime factors than 2, 3 and 5, found {size}")
    return tuple(found)


def is_fft_size(points: int) -> bool:
    """Whether the operation has a transform of so many real points: a multiple of 4, see :data:`FFT_LIMITS`."""
    least, most = FFT_LIMITS
    return least <= points <= most and points % 4 == 0 and 60**11 % points == 0


def input_order(size: int) -> np.ndarray:
    """(size,) which point stands at each place before the first stage: those of a later transform together."""
    order = np.zeros(1, np.int64)
    for radix in stages(size):
        order = np.concatenate([radix * order + p for p in range(radix)])
    return order


# ---- constants -------------------------------------------------------------------------------------------------


def log_mel_parts(
    window: np.ndarray,
    filters: np.ndarray,
    preemphasis: float,
    guard: float,
    scale: float,
    *,
    hop: int,
    padding: str = "constant",
    extra_frame: bool = False,
    guard_kind: str = "add",
) -> tuple[dict, dict]:
    """(attributes, constants) of the operation from real numbers.

    ``window`` (F,); ``filters`` (bands, F / 2 + 1), not negative; ``guard``: a power as of samples in [-1, 1),
    1 at most; ``scale``: the unit of the result. Raises IntqError for a guard of less than LEAST_GUARD units of a
    band's sum.
    """
    peak = np.abs(window).max() / WINDOW_ONE
    weights = np.rint(np.stack([window, -preemphasis * window]) / peak).astype(np.int32)
    window_shift = next(shift for shift in WINDOW_SHIFTS if reach_of(weights, shift) < REACH_LIMIT)
    reach, each = reach_of(weights, window_shift), WEIGHTS_OF_BAND / filters.sum(1)
    bands = [(int(np.flatnonzero(row)[0]), np.trim_zeros(row)) for row in np.rint(filters * each[:, None])]
    heaviest = max(int(row.sum()) for _, row in bands)

    def units(power_shift: int) -> np.ndarray:  # of a band's sum in a power of 1
        return (2.0 ** (15 - window_shift) / peak) ** 2 / 2.0**power_shift * each

    def most(power_shift: int) -> int:
        return ((reach**2 >> power_shift) + 1) * heaviest + math.ceil(guard * units(power_shift).max())

    power_shift = next(shift for shift in range(POWER_BITS) if most(shift) < 2**POWER_BITS)
    unit = units(power_shift)
    guards = np.rint(guard * unit)
    if guards.min() < LEAST_GUARD:
        raise IntqError(
            f"a log-mel's guard must be at least {LEAST_GUARD / unit.min():.2g}, found {guard:.2g}; raise it"
        )
    logarithms = fit(np.log2, 1 + 0.5 ** (LOG_BITS + 1), 2 - 0.5 ** (LOG_BITS + 1), 0.5**LOG_BITS, dtype="int16")
    multiplier = dyadic(math.log(2) / scale / 2**LOG_BITS)
    attrs = {
        "hop": hop,
        "padding": padding,
        "extra_frame": extra_frame,
        "guard_kind": guard_kind,
        "window_shift": window_shift,
        "power_shift": power_shift,
        "reach": reach,
        "drop": logarithms.drop,
        **dict(zip(("low", "high"), DTYPE_RANGE["int16"], strict=True)),
    }
    constants = {
        "window": weights,
        "turn": turns_of(len(window)),
        "band_first": np.array([first for first, _ in bands], np.int32),
        "band_count": np.array([len(row) for _, row in bands], np.int32),
        "band_weight": np.concatenate([row for _, row in bands]).astype(np.int16),
        "guard": guards.astype(np.int64),
        "curve": logarithms.coefficients,
        "multiplier": multiplier.multiplier,
        "offset": offset_of(-np.log(unit) / scale, multiplier.shift, 0),
        "shift": multiplier.shift,
    }
    return attrs, constants


def reach_of(weights: np.ndarray, window_shift: int) -> int:
    """What no value of the transform exceeds in magnitude, see above. ``weights``: the constant ``window``."""
    largest = (np.abs(weights.astype(np.int64)).sum(0) << 15) + (1 << (window_shift - 1))
    return int((largest >> window_shift).sum()) + 4 * weights.shape[1]


def turns_of(fft: int) -> np.ndarray:
    """(2, F) int32: real and imaginary parts of exp(-2 pi i j / F)."""
    angles = -2 * np.pi * np.arange(fft) / fft
    return np.rint(np.stack([np.cos(angles), np.sin(angles)]) * 2.0**TURN_BITS).astype(np.int32)


# ---- the operation ---------------------------------------------------------------------------------------------


def frame_count(samples: dims.Dim, attrs: Attrs) -> dims.Dim:
    """The frames of so many samples."""
    return dims.floor_divided(samples, attrs["hop"] * attrs["extra_frame"], attrs["hop"])


def _shape(inputs: tuple[Value, ...], attrs: Attrs, constants: Constants) -> Shape:
    expect(len(inputs) == 2, f"takes samples and their lengths, got {len(inputs)} inputs")
    x, lengths = inputs
    expect(len(x.shape) == 2 and x.dtype == "int16", f"samples must be int16 (n, samples), got {x}")
    expect_lengths(lengths, x)
    weights, turn, first, count = (constants[k] for k in ("window", "turn", "band_first", "band_count"))
    fft, bands = weights.shape[-1], len(first)
    fits = weights.shape == (2, fft) and is_fft_size(fft)
    expect(fits, f"the window must be (2, F), F {FFT_RULE}, got {weights.shape}")
    exact = turns_of(fft).astype(np.int64)
    expect(turn.shape == exact.shape, f"turn must be {exact.shape}, got {turn.shape}")
    expect(np.abs(turn - exact).max() <= 1, "turn must be cosines and sines, each off by one unit at most")
    quarters = slice(None, None, fft // 4)  # 1 and -i, by which nobody multiplies
    expect((turn[:, quarters] == exact[:, quarters]).all(), "turn must be exact where it is 1 and -i")
    expect(attrs["window_shift"] in WINDOW_SHIFTS, f"window_shift must lie in [16, 30], got {attrs['window_shift']}")
    heaviest = int(np.abs(weights.astype(np.int64)).sum(0).max())
    expect(heaviest <= 2 * WINDOW_ONE, f"the window's two weights of a point must be at most 2**31 - 2**19: {heaviest}")
    expect(0 <= attrs["power_shift"] < POWER_BITS, f"power_shift is out of range: {attrs['power_shift']}")
    reach = reach_of(weights, attrs["window_shift"])
    expect(reach <= attrs["reach"] < REACH_LIMIT, f"reach must lie in [{reach}, 2**30), got {attrs['reach']}")
    expect(attrs["hop"] > 0, f"hop must be positive, got {attrs['hop']}")
    expect(attrs["padding"] in PADDINGS, f"padding must be one of {', '.join(PADDINGS)}, got {attrs['padding']!r}")
    expect(attrs["guard_kind"] in GUARDS, f"guard_kind must be one of {', '.join(GUARDS)}, got {attrs['guard_kind']!r}")
    per_band = (count, constants["guard"], constants["offset"])
    expect(bands > 0 and all(c.shape == (bands,) for c in per_band), f"there must be {bands} of each band's constants")
    fits = count.min() > 0 and first.min() >= 0 and (first + count).max() <= fft // 2 + 1
    expect(fits and int(count.sum()) == len(constants["band_weight"]), "bands must lie within the spectrum")
    expect(constants["band_weight"].min() >= 0, "the weights of a band must not be negative")
    expect(constants["guard"].min() > 0, "a guard must be positive")
    return (x.shape[0], frame_count(x.shape[1], attrs), bands)


def expect_lengths(lengths: Value, x: Value) -> None:
    """That ``lengths`` holds how much there is of each row of ``x``."""
    fits = lengths.shape == x.shape[:1] and lengths.dtype == "int32"
    expect(fits and lengths.low >= 0, f"lengths must be int32 {x.shape[:1]}, not negative, got {lengths}")


def _samples(rng: np.random.Generator) -> list[Sample]:
    samples = []
    for fft, bands, own in [
        (16, 3, {"hop": 5, "padding": "reflect", "extra_frame": True}),
        (32, 9, {"hop": 1, "guard_kind": "clamp"}),
        (60, 9, {"hop": 7, "extra_frame": True}),
    ]:
        window = np.zeros(fft)
        window[2:-2] = rng.uniform(-0.2, 1, fft - 4)
        filters = rng.uniform(0, 0.3, (bands, fft // 2 + 1))
        for i, row in enumerate(filters):
            row[: i // 2] = row[i // 2 + 4 :] = 0
        attrs, constants = log_mel_parts(window, filters, rng.uniform(0, 1), 2.0**-24, 2.0**-10, **own)
        x = Value("x", ("n", "s"), "int16", *DTYPE_RANGE["int16"], longest=512)
        samples.append(Sample((x, Value("lengths", ("n",), "int32", 1, 50)), attrs, constants, "int16"))
    return samples


OPS = (
    Op(
        "log_mel",
        "spectrum",
        _log_mel,
        _shape,
        _samples,
        attrs=frozenset(
            {
                "hop",
                "padding",
                "extra_frame",
                "guard_kind",
                "window_shift",
                "power_shift",
                "reach",
                "drop",
                "low",
                "high",
            }
        ),
        constants=frozenset(
            {
                "window",
                "turn",
                "band_first",
                "band_count",
                "band_weight",
                "guard",
                "curve",
                "multiplier",
                "offset",
                "shift",
            }
        ),
    ),
)
