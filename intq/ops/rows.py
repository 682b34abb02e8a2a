"""Reductions: pooling over a window of the image, LayerNorm over a row of channels, the mean over a text's tokens."""

from __future__ import annotations

import numpy as np

from intq.fixedpoint import isqrt, reciprocal, rescale
from intq.ops.op import Attrs, Constants, Op, Sample, expect, window_shape
from intq.value import Shape, Value


def _avg_pool2d(L, operands, constants: Constants, attrs: Attrs):
    """clamp(round(scale_x / scale_y * (sum over the window / count - zero_point_x)) + zero_point_y).

    The division by the count is part of the multiplier: one number, or one per output pixel (oh, ow, 1) where padding
    is not counted.
    """
    (total,) = operands
    return rescale(
        L, [(total, constants["multiplier"])], constants["offset"], constants["shift"], attrs["low"], attrs["high"]
    )


def _max_pool2d(L, operands, constants: Constants, attrs: Attrs):
    """The maximum over the window; scale and zero point stay."""
    return operands[0]


INVERSE_BITS = 46  # of 1 / deviation
LEAST_ROOT = 2**15 + 1  # of the deviation: its reciprocal is then an int32 (a deviation below one input unit is noise)
UNIT_BITS = 20  # fractional bits of a normalised value
UNIT_LIMIT = 2**27  # |x - mean| <= sqrt(size) * deviation, and rows have at most MOST_CHANNELS
MOST_CHANNELS = 2**13


def lift_of(size: int) -> int:
    """Bits by which ``size * deviation`` is lifted before its root is taken: to just below 2**31 for int16 rows."""
    return 15 - (size - 1).bit_length()


def inverse_deviation(L, total, squares, constants: Constants, attrs: Attrs):
    """floor(2**46 / (size * sqrt(variance + epsilon) * 2**lift)), from a row's sums of x and x**2: all exact.

    ``size**2 * variance = size * squares - total**2`` has no rounding at all; ``constants["epsilon"]`` is
    ``size**2 * epsilon / scale_x**2``, int64. The root is rounded once, downwards, and the reciprocal too.
    """
    size = attrs["size"]
    spread = squares * size - L.wide(total) * L.wide(total)
    spread = L.within(spread, 0, (size << 15) ** 2)  # Cauchy-Schwarz; an interval cannot see it
    root = isqrt(L, L.shift_left(spread + constants["epsilon"], 2 * lift_of(size)))
    return L.narrow(reciprocal(L, L.clamp(root, LEAST_ROOT, 2**31 - 1), INVERSE_BITS))


def normalised(L, x, total, inverse, constants: Constants, attrs: Attrs):
    """clamp(round(gamma / scale_y * (x - mean) / deviation + beta / scale_y) + zero_point)."""
    size = attrs["size"]
    unit = L.shift_right(L.wide(x * size - total) * L.wide(inverse), INVERSE_BITS - UNIT_BITS - lift_of(size))
    unit = L.narrow(L.within(unit, -UNIT_LIMIT, UNIT_LIMIT))
    terms = [(unit, constants["multiplier"])]
    return rescale(L, terms, constants["offset"], constants["shift"], attrs["low"], attrs["high"])


def _layernorm(L, operands, constants: Constants, attrs: Attrs):
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta over the last axis (Ba et al. 2016, eq. 3)."""
    (x,), size = operands, attrs["size"]
    total, squares = L.row_sum(x, size), L.row_sum(L.wide(x) * L.wide(x), size)
    inverse = inverse_deviation(L, total, squares, constants, attrs)
    return normalised(L, x, total, inverse, constants, attrs)


COUNT_BITS = 30


def share_of_token(L, count, constants: Constants, attrs: Attrs):
    """scale_x / scale_y / count as an int32 multiplier, by exact reciprocal."""
    quotient = reciprocal(L, L.wide(L.clamp(count, 1, attrs["longest"])), COUNT_BITS)
    return L.narrow(L.shift_right(quotient * L.wide(constants["multiplier"]), COUNT_BITS))


def shared(L, total, share, constants: Constants, attrs: Attrs):
    """clamp(round(total * share) + zero_point_y)."""
    return rescale(L, [(total, share)], constants["offset"], constants["shift"], attrs["low"], attrs["high"])


def _mean_tokens(L, operands, constants: Constants, attrs: Attrs):
    """clamp(round(scale_x / scale_y * sum(x) / count) + zero_point_y) over the tokens that the mask keeps."""
    total, count = operands  # (n, channels), (n, 1)
    return shared(L, total, share_of_token(L, count, constants, attrs), constants, attrs)


def _layernorm_shape(inputs: tuple[Value, ...], attrs: Attrs, constants: Constants) -> Shape:
    expect(len(inputs) == 1, f"takes one input, got {len(inputs)}")
    (x,), size = inputs, attrs["size"]
    expect(x.dtype == "int16", f"its rows must be int16, got {x.dtype}")
    expect(x.shape[-1] == size, f"size is {size}, but a row has {x.shape[-1]} channels")
    expect(1 < size <= MOST_CHANNELS, f"a row must have 2 to {MOST_CHANNELS} channels, got {size}")
    for key in ("multiplier", "offset", "shift"):
        expect(constants[key].shape == (size,), f"{key} must hold one value per channel, got {constants[key].shape}")
    epsilon = constants["epsilon"]
    expect(epsilon.shape == () and 0 <= int(epsilon) <= (size << 15) ** 2, f"epsilon is out of range: {epsilon}")
    return x.shape


def _mean_tokens_shape(inputs: tuple[Value, ...], attrs: Attrs, constants: Constants) -> Shape:
    expect(len(inputs) == 2, f"takes the tokens' vectors and a mask, got {len(inputs)} inputs")
    x, mask = inputs
    expect(len(x.shape) == 3, f"expects an (n, tokens, channels) input, got shape {x.shape}")
    expect(mask.shape == x.shape[:2], f"the mask must be {x.shape[:2]}, got {mask.shape}")
    expect((mask.low, mask.high) == (0, 1), f"the mask must be 0 or 1, got [{mask.low}, {mask.high}]")
    return (x.shape[0], x.shape[2])


def _layernorm_samples(rng: np.random.Generator) -> list[Sample]:
    samples = []
    for shape, dtype in [
        (("n", "s", 64), "uint8"),
        (("n", "s", 37), "int16"),
        (("n", 768), "int16"),
        (("n", 3, 24), "uint8"),
    ]:
        size, shift = shape[-1], 45 if dtype == "uint8" else 38
        constants = {
            "multiplier": rng.integers(-(2**31), 2**31, size).astype(np.int32),
            "offset": (rng.integers(0, 200, size) << shift) + (1 << (shift - 1)),
            "shift": np.full(size, shift, np.int32),
            "epsilon": np.int64(size * size * 9).reshape(()),
        }
        low, high = (0, 255) if dtype == "uint8" else (-(2**15), 2**15 - 1)
        x = Value("x", shape, "int16", -(2**15), 2**15 - 1)
        samples.append(Sample((x,), {"size": size, "low": low, "high": high}, constants, dtype))
    return samples


def _mean_tokens_samples(rng: np.random.Generator) -> list[Sample]:
    samples = []
    for channels, dtype, source in [(40, "int16", "int16"), (37, "int32", "uint8")]:
        low, high = (-(2**15), 2**15 - 1)
        least, most = (0, 255) if source == "uint8" else (low, high)
        x = Value("x", ("n", "s", channels), source, least, most, longest=512)
        constants = {
            "multiplier": rng.integers(2**30, 2**31, ()).astype(np.int32),
            "offset": np.int64(1 << 29).reshape(()),
            "shift": np.int32(30).reshape(()),
        }
        attrs = {"longest": 512, "low": low, "high": high}
        samples.append(Sample((x, Value("mask", ("n", "s"), "uint8", 0, 1, longest=512)), attrs, constants, dtype))
    return samples


def _pool_shape(inputs: tuple[Value, ...], attrs: Attrs, constants: Constants) -> Shape:
    expect(len(inputs) == 1, f"takes one input, got {len(inputs)}")
    (x,) = inputs
    expect(len(x.shape) == 4, f"expects an (n, h, w, c) input, got shape {x.shape}")
    if "pad_value" in constants:
        expect(constants["pad_value"].shape == (x.shape[3],), "pad_value must hold one value per channel")
    h, w = window_shape(x.shape[1:3], attrs["kernel"], attrs["stride"], attrs["padding"])
    return (x.shape[0], h, w, x.shape[3])


def _avg_pool2d_samples(rng: np.random.Generator) -> list[Sample]:
    samples = []
    for side, kernel, stride, padding, dtype, shift, per_pixel in [
        (7, (7, 7), (1, 1), (0, 0, 0, 0), "uint8", 36, False),  # global
        (8, (3, 3), (1, 1), (1, 1, 1, 1), "uint8", 34, False),
        (9, (2, 3), (2, 2), (0, 1, 1, 0), "int16", 31, True),
    ]:
        oh, ow = window_shape((side, side), kernel, stride, padding)
        shape = (oh, ow, 1) if per_pixel else ()
        low, high = (0, 255) if dtype == "uint8" else (-(2**15), 2**15 - 1)
        constants = {
            "pad_value": rng.integers(0, 256, 21).astype(np.uint8),
            "multiplier": rng.integers(2**30, 2**31, shape).astype(np.int32),
            "offset": np.full(shape, 1 << (shift - 1), np.int64),
            "shift": np.full(shape, shift, np.int32),
        }
        attrs = {"kernel": kernel, "stride": stride, "padding": padding, "low": low, "high": high}
        samples.append(Sample((Value("x", ("n", side, side, 21), "uint8", 0, 255),), attrs, constants, dtype))
    return samples


def _max_pool2d_samples(rng: np.random.Generator) -> list[Sample]:
    return [
        Sample(
            (Value("x", ("n", 9, 8, 21), dtype, low, high),),
            {"kernel": kernel, "stride": stride, "padding": padding},
            {},
            dtype,
        )
        for dtype, low, high, kernel, stride, padding in [
            ("uint8", 0, 255, (3, 3), (2, 2), (1, 1, 1, 1)),
            ("int16", -(2**15), 2**15 - 1, (2, 3), (1, 2), (0, 1, 0, 0)),
        ]
    ]


_WINDOW = frozenset({"kernel", "stride", "padding"})

OPS = (
    Op(
        "avg_pool2d",
        "sum2d",
        _avg_pool2d,
        _pool_shape,
        _avg_pool2d_samples,
        attrs=_WINDOW | {"low", "high"},
        constants=frozenset({"pad_value", "multiplier", "offset", "shift"}),
    ),
    Op(
        "layernorm",
        "rows",
        _layernorm,
        _layernorm_shape,
        _layernorm_samples,
        attrs=frozenset({"size", "low", "high"}),
        constants=frozenset({"multiplier", "offset", "shift", "epsilon"}),
    ),
    Op(
        "mean_tokens",
        "tokens",
        _mean_tokens,
        _mean_tokens_shape,
        _mean_tokens_samples,
        attrs=frozenset({"longest", "low", "high"}),
        constants=frozenset({"multiplier", "offset", "shift"}),
    ),
    Op("max_pool2d", "max2d", _max_pool2d, _pool_shape, _max_pool2d_samples, attrs=_WINDOW),
)
