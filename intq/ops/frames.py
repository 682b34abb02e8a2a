"""Operations on frames, a signal's steps in time: which of them a row has, and their normalisation over time.

    mask[n, f] = 1 where f < floor((lengths[n] + add) / divide)
    y[n, f, c] = gamma[c] (x - mean) / (sqrt(variance + epsilon) + deviation_epsilon) + beta[c]    where the mask is 1

Mean and variance are those of a channel over the frames that the mask keeps; the sum of squares is divided by their
number less ``correction``. Other frames become 0. With ``epsilon`` in the root this is GroupNorm with a group for each
channel (Wu and He 2018, eq. 1-2), without it and with ``correction`` 1 it is how NeMo normalises features.
"""

from __future__ import annotations

import numpy as np

from intq import dims
from intq.fixedpoint import dyadic, isqrt, offset_of, quotient, reciprocal, rescale
from intq.ops.log_mel import expect_lengths
from intq.ops.op import Attrs, Constants, Op, Sample, expect
from intq.ops.rows import INVERSE_BITS, LEAST_ROOT, UNIT_BITS
from intq.value import DTYPE_RANGE, Shape, Value

MOST_FRAMES = 2**20  # of samples a minute at 16 kHz
MEAN_BITS = 7  # fractional bits of a mean, at most
ROOT_BITS = 15  # of a deviation: LEAST_ROOT is a deviation of one input unit, what is below it is noise
UNIT_LIMIT = 2**31 - 1  # |x - mean| <= sqrt(frames) * deviation <= 2**10 deviations; rounding makes it less than 2**11
EPSILON_LIMIT = 2**60


def _frame_mask(L, operands, constants: Constants, attrs: Attrs):
    """1 where a frame's number, counted from 1, times ``divide`` is at most the row's length plus ``add``, else 0."""
    lengths, numbers = operands  # (n, 1), (1, frames)
    return L.clamp(L.wide(lengths) - L.wide(numbers) * attrs["divide"] + (attrs["add"] + 1), 0, 1)


def mean_bits(longest: int) -> int:
    """Fractional bits of the mean of up to ``longest`` frames: 7 up to 2**17 of them, 5 for 2**20.

    As many as let the sum of squares, (2**(15 + bits))**2 for each frame, fit 62 bits.
    """
    return min(MEAN_BITS, (31 - (longest - 1).bit_length()) // 2)


def statistics(L, total, squares, count, constants: Constants, attrs: Attrs):
    """(mean * 2**bits, 2**46 / (deviation * 2**15)), int32, from a channel's sums of x and of x**2, int64.

    ``bits``: :func:`mean_bits`. The mean is rounded to the nearest, which adds at most 4**-(bits + 1) to the variance;
    the sum of squares about it is exact, divided and its root taken with one rounding each, downwards. ``constants``:
    ``epsilon`` in units of the variance's 2**-30, ``deviation_epsilon`` in units of the deviation's 2**-15.
    """
    longest, bits = attrs["longest"], mean_bits(attrs["longest"])
    one = L.clamp(count, 1, longest)
    lifted = L.shift_left(total, bits) + L.wide(one) * 2 ** (15 + bits) + L.wide(L.shift_right(one, 1))
    lifted = L.within(lifted, 0, longest << (17 + bits))  # x >= -2**15
    mean = quotient(L, lifted, L.wide(one), (longest << (17 + bits)).bit_length())
    mean = L.narrow(L.within(mean, 0, 2 ** (16 + bits))) - 2 ** (15 + bits)
    # In units of 2**-bits: sum (x - m)**2 = sum x**2 - m (2 sum x - count m), at most (2**(15 + bits))**2 for each x,
    # by the mean's being in the middle of what lies in [-2**15, 2**15) (Popoviciu), and 1/4 for its rounding
    rest = L.shift_left(total, bits + 1) - L.wide(count) * L.wide(mean)
    rest = L.within(rest, -(longest << (16 + bits)), longest << (16 + bits))
    spread = L.shift_left(squares, 2 * bits) - L.wide(mean) * rest
    most = longest * (2 ** (30 + 2 * bits) + 1)
    spread = L.within(spread, 0, most)
    variance = quotient(L, spread, L.wide(L.clamp(count - attrs["correction"], 1, longest)), most.bit_length())
    variance = L.within(variance, 0, 2 ** (31 + 2 * bits) + 2)  # two frames less one
    root = isqrt(L, L.shift_left(variance, 2 * (ROOT_BITS - bits)) + constants["epsilon"])
    root = L.clamp(root + constants["deviation_epsilon"], LEAST_ROOT, 2**31 - 1)
    return mean, L.narrow(reciprocal(L, root, INVERSE_BITS))


def normalised(L, apart, inverse, constants: Constants, attrs: Attrs):
    """clamp(round(gamma / scale_y * (x - mean) / deviation + beta / scale_y) + zero_point).

    ``apart``: (x - mean) * 2**bits.
    """
    bits = mean_bits(attrs["longest"])
    unit = L.shift_right(L.wide(apart) * L.wide(inverse), INVERSE_BITS - ROOT_BITS + bits - UNIT_BITS)
    unit = L.narrow(L.within(unit, -UNIT_LIMIT, UNIT_LIMIT))
    terms = [(unit, constants["multiplier"])]
    return rescale(L, terms, constants["offset"], constants["shift"], attrs["low"], attrs["high"])


def _normalize_frames(L, operands, constants: Constants, attrs: Attrs):
    """gamma * (x - mean) / (sqrt(variance + epsilon) + deviation_epsilon) + beta over the frames of the mask."""
    x, mask = operands  # (n, frames, channels), (n, frames, 1)
    kept, longest = L.wide(x * mask), attrs["longest"]
    total, squares, count = (L.frame_sum(v, longest) for v in (kept, kept * kept, mask))
    mean, inverse = statistics(L, total, squares, count, constants, attrs)
    apart = (L.shift_left(x, mean_bits(longest)) - mean) * mask
    zero = attrs["zero_point"]
    return (normalised(L, apart, inverse, constants, attrs) - zero) * L.wide(mask) + zero


def normalize_parts(
    x_scale: float,
    gamma: np.ndarray,
    beta: np.ndarray,
    scale: float,
    zero_point: int,
    dtype: str,
    *,
    longest: int,
    correction: int = 0,
    epsilon: float = 0.0,
    deviation_epsilon: float = 0.0,
) -> tuple[dict, dict]:
    """(attributes, constants) of ``normalize_frames`` from real numbers: the result is ``scale * (y - zero_point)``.

    ``gamma``, ``beta``: one for each channel. Raises IntqError when they do not fit the scale.
    """
    multiplier = dyadic(np.asarray(gamma, np.float64) / scale / 2**UNIT_BITS)
    constants = {
        "multiplier": multiplier.multiplier,
        "offset": offset_of(np.asarray(beta, np.float64) / scale, multiplier.shift, zero_point),
        "shift": multiplier.shift,
        "epsilon": np.array(round(epsilon / x_scale**2 * 4**ROOT_BITS), np.int64),
        "deviation_epsilon": np.array(round(deviation_epsilon / x_scale * 2**ROOT_BITS), np.int64),
    }
    low, high = DTYPE_RANGE[dtype]
    attrs = {"correction": correction, "zero_point": zero_point, "longest": longest, "low": low, "high": high}
    return attrs, constants


def _mask_shape(inputs: tuple[Value, ...], attrs: Attrs, constants: Constants) -> Shape:
    expect(len(inputs) == 2, f"takes a signal and the lengths of its rows, got {len(inputs)} inputs")
    x, lengths = inputs
    expect(len(x.shape) >= 2, f"expects an (n, samples, ...) input, got shape {x.shape}")
    expect_lengths(lengths, x)
    add, divide = attrs["add"], attrs["divide"]
    expect(abs(add) < 2**31 and 0 < divide < 2**31, f"add and divide must be int32, divide positive: {add}, {divide}")
    return (x.shape[0], dims.floor_divided(x.shape[1], add, divide))


def _normalize_shape(inputs: tuple[Value, ...], attrs: Attrs, constants: Constants) -> Shape:
    expect(len(inputs) == 2, f"takes frames and a mask, got {len(inputs)} inputs")
    x, mask = inputs
    expect(len(x.shape) == 3 and x.dtype == "int16", f"expects int16 (n, frames, channels), got {x}")
    expect(mask.shape == x.shape[:2], f"the mask must be {x.shape[:2]}, got {mask.shape}")
    expect((mask.low, mask.high) == (0, 1), f"the mask must be 0 or 1, got [{mask.low}, {mask.high}]")
    expect(attrs["correction"] in (0, 1), f"correction must be 0 or 1, got {attrs['correction']}")
    expect(0 < attrs["longest"] <= MOST_FRAMES, f"longest must lie in [1, {MOST_FRAMES}], got {attrs['longest']}")
    frames = x.shape[1]
    if isinstance(frames, int):
        expect(frames <= attrs["longest"], f"longest is {attrs['longest']}, the input has {frames} frames")
    for key in ("multiplier", "offset", "shift"):
        expect(constants[key].shape == (x.channels,), f"{key} must hold one value per channel: {constants[key].shape}")
    for key in ("epsilon", "deviation_epsilon"):
        value = constants[key]
        expect(value.shape == () and 0 <= int(value) <= EPSILON_LIMIT, f"{key} is out of range: {value}")
    return x.shape


def _mask_samples(rng: np.random.Generator) -> list[Sample]:
    samples = []
    for rest, add, divide in [((), 1, 1), ((3,), 5, 4), ((), 30, 7)]:
        x = Value("x", ("n", "s", *rest), "int16", *DTYPE_RANGE["int16"], longest=512)
        for high in (20, 2**31 - 1):
            rows = Value("lengths", ("n",), "int32", 0, high)
            samples.append(Sample((x, rows), {"add": add, "divide": divide}, {}, "uint8"))
    return samples


def _normalize_samples(rng: np.random.Generator) -> list[Sample]:
    samples = []
    for channels, dtype, correction, zero, longest in [(32, "uint8", 1, 128, 512), (21, "int16", 0, 0, MOST_FRAMES)]:
        shift = 45 if dtype == "uint8" else 38
        level = rng.integers(-20, 20, channels)
        constants = {
            "multiplier": rng.integers(-(2**31), 2**31, channels).astype(np.int32),
            "offset": ((zero + level) << shift) + (1 << (shift - 1)),
            "shift": np.full(channels, shift, np.int32),
            "epsilon": np.int64((1 - correction) * rng.integers(1, 2**40)).reshape(()),
            "deviation_epsilon": np.int64(correction * rng.integers(1, 2**20)).reshape(()),
        }
        low, high = DTYPE_RANGE[dtype]
        attrs = {"correction": correction, "zero_point": zero, "longest": longest, "low": low, "high": high}
        x = Value("x", ("n", "s", channels), "int16", *DTYPE_RANGE["int16"], longest=512)
        samples.append(Sample((x, Value("mask", ("n", "s"), "uint8", 0, 1, longest=512)), attrs, constants, dtype))
    return samples


OPS = (
    Op("frame_mask", "mask", _frame_mask, _mask_shape, _mask_samples, attrs=frozenset({"add", "divide"})),
    Op(
        "normalize_frames",
        "frames",
        _normalize_frames,
        _normalize_shape,
        _normalize_samples,
        attrs=frozenset({"correction", "zero_point", "longest", "low", "high"}),
        constants=frozenset({"multiplier", "offset", "shift", "epsilon", "deviation_epsilon"}),
    ),
)
