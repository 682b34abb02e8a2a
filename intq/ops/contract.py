"""Contractions: sums of products in int32, finished by one rescale that holds bias, residual and activation.

    y = clamp(round(scale_x * scale_w / scale_y * sum w * (x - zero_point_x) + bias / scale_y) + zero_point_y)

A linear layer or a conv1d may end in a *curve* (:mod:`intq.curves`): its sums are then rescaled to 15 bits and the
curve, a GELU or a tanh, gives the 8 or 16 bits of the output, ``y = clamp(f(sum w x))``: nothing is rounded to 8 bits
in between.
With ``lift`` channel c has a scale of its own, ``2**-lift[c]`` of the output's, which the next layer's weights absorb.

A convolution may take a mask of frames as its last input, of an image one of its rows: what it leaves out counts as
padding, so that an utterance in a padded batch is computed as alone.

Weights are int8 within 127, or with ``weight_bits`` of 4 or 2 within 7 or 1, which artifacts and kernels keep packed.

The input's zero point, the bias, the output's zero point and the rounding half are folded exactly into ``offset``
(:func:`intq.fixedpoint.offset_of`), so what runs is ``clamp((sum w * x * multiplier + offset) >> shift)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from intq.curves import MAX_LIFT, TOP, curve, fit
from intq.dims import Dim, floor_divided
from intq.fixedpoint import rescale
from intq.ops.op import Attrs, Constants, Op, Sample, expect, window_shape
from intq.value import DTYPE_RANGE, Shape, Value

WEIGHT_BITS = (8, 4, 2)


def _epilogue(L, operands, constants: Constants, attrs: Attrs):
    """clamp(round(sums * multiplier + residual * its multiplier + offset)), or a curve of that."""
    accumulator, *residual = operands
    terms = [(accumulator, constants["multiplier"])]
    if residual:
        terms.append((residual[0], constants["residual_multiplier"]))
    if "curve" not in constants:
        return rescale(L, terms, constants["offset"], constants["shift"], attrs["low"], attrs["high"])
    x = L.narrow(rescale(L, terms, constants["offset"], constants["shift"], 0, TOP))
    lift, level = constants.get("lift"), attrs.get("level", 0)
    return curve(L, x, constants["curve"], attrs["drop"], attrs["low"], attrs["high"], lift, level)


def masked(inputs: Sequence, constants: Constants) -> bool:
    """Whether the last input of a contraction is a mask, behind the residual that its constants tell of."""
    return len(inputs) > 1 + ("residual_multiplier" in constants)


def _check_epilogue(inputs: tuple[Value, ...], constants: Constants, shape: Shape) -> None:
    for key in ("multiplier", "offset", "shift", "residual_multiplier"):
        if key in constants:
            found = constants[key].shape
            expect(found == shape[-1:], f"constant {key} must hold one value per output channel, got shape {found}")
    expect(len(inputs) <= 2, f"takes an input and at most one residual, got {len(inputs)} inputs")
    has = "residual_multiplier" in constants
    expect(has == (len(inputs) == 2), "a residual input and the constant residual_multiplier go together")
    if has:
        expect(inputs[1].shape == shape, f"the residual's shape must be {shape}, got {inputs[1].shape}")


def _conv2d_shape(inputs: tuple[Value, ...], attrs: Attrs, constants: Constants) -> Shape:
    x, weight, groups = inputs[0], constants["weight"], attrs["groups"]
    expect(len(x.shape) == 4, f"expects an (n, h, w, c) input, got shape {x.shape}")
    expect(weight.ndim == 4, f"expects a (co, kh, kw, ci/groups) weight, got shape {weight.shape}")
    co, kh, kw, ci = weight.shape
    expect(x.shape[3] == ci * groups, f"expects {ci * groups} input channels, got {x.shape[3]}")
    expect(co % groups == 0, f"{co} output channels do not split into {groups} groups")
    expect(constants["pad_value"].shape == (x.shape[3],), "pad_value must hold one value per input channel")
    height, stride, padding, dilation = x.shape[1], attrs["stride"], attrs["padding"], attrs["dilation"]
    enough = height if isinstance(height, int) else dilation[0] * kh  # rows of frames: as many as a window has
    h, w = window_shape((enough, x.shape[2]), (kh, kw), stride, padding, dilation)
    if isinstance(height, str):
        h = windows(height, kh, stride[0], padding[::2], dilation[0])
    shape = (x.shape[0], h, w, co)
    _check_epilogue(_unmasked(inputs, constants), constants, shape)
    _check_weight(attrs, weight)
    return shape


def _conv1d_shape(inputs: tuple[Value, ...], attrs: Attrs, constants: Constants) -> Shape:
    (x, *_), weight, groups = inputs, constants["weight"], attrs["groups"]
    expect(len(x.shape) == 3, f"expects an (n, frames, c) input, got shape {x.shape}")
    expect(weight.ndim == 3, f"expects a (co, k, ci/groups) weight, got shape {weight.shape}")
    co, k, ci = weight.shape
    expect(x.shape[2] == ci * groups, f"expects {ci * groups} input channels, got {x.shape[2]}")
    expect(co % groups == 0, f"{co} output channels do not split into {groups} groups")
    expect(constants["pad_value"].shape == (x.shape[2],), "pad_value must hold one value per input channel")
    stride, dilation, (before, after) = attrs["stride"], attrs["dilation"], attrs["padding"]
    expect(min(stride, dilation, k) >= 1, f"kernel, stride and dilation must be positive: {k}, {stride}, {dilation}")
    expect(min(before, after) >= 0, f"padding must not be negative, got {(before, after)}")
    frames = windows(x.shape[1], k, stride, (before, after), dilation)
    expect(isinstance(frames, str) or frames > 0, f"{x.shape[1]} frames are too few for a window of {k}")
    shape = (x.shape[0], frames, co)
    _check_epilogue(_unmasked(inputs, constants), constants, shape)
    _check_curve(attrs, constants, shape)
    _check_weight(attrs, weight)
    return shape


def _unmasked(inputs: tuple[Value, ...], constants: Constants) -> tuple[Value, ...]:
    """The inputs without the mask of frames, if there is one, which must fit."""
    if not masked(inputs, constants):
        return inputs
    x, mask = inputs[0], inputs[-1]
    expect(mask.shape == x.shape[:2], f"the mask must be {x.shape[:2]}, got {mask.shape}")
    expect((mask.low, mask.high) == (0, 1), f"the mask must be 0 or 1, got [{mask.low}, {mask.high}]")
    return inputs[:-1]


def windows(frames: Dim, kernel: int, stride: int, padding: tuple[int, int], dilation: int) -> Dim:
    """How many places a window has over so many frames."""
    return floor_divided(frames, sum(padding) - dilation * (kernel - 1) - 1 + stride, stride)


def _linear_shape(inputs: tuple[Value, ...], attrs: Attrs, constants: Constants) -> Shape:
    x, weight = inputs[0], constants["weight"]
    expect(weight.ndim == 2, f"expects a (co, k) weight, got shape {weight.shape}")
    expect(x.shape[-1] == weight.shape[1], f"expects a last axis of {weight.shape[1]}, got {x.shape}")
    shape = (*x.shape[:-1], weight.shape[0])
    _check_epilogue(inputs, constants, shape)
    _check_curve(attrs, constants, shape)
    _check_weight(attrs, weight)
    return shape


def weight_bits(attrs: Attrs) -> int:
    """How wide a contraction's weights are: 8, or what ``weight_bits`` says."""
    return attrs.get("weight_bits", 8)


def weight_limit(bits: int) -> int:
    """The largest weight of so many bits: the range is narrow, as far below 0 as above."""
    return 2 ** (bits - 1) - 1


def _check_weight(attrs: Attrs, weight: np.ndarray) -> None:
    bits = weight_bits(attrs)
    expect(bits in WEIGHT_BITS, f"weight_bits must be one of {', '.join(map(str, WEIGHT_BITS))}, got {bits!r}")
    if bits < 8 and weight.size:
        most = max(int(weight.max()), -int(weight.min()))
        expect(most <= weight_limit(bits), f"weights of {bits} bits must lie within {weight_limit(bits)}, found {most}")


def _check_curve(attrs: Attrs, constants: Constants, shape: Shape) -> None:
    expect(("curve" in constants) == ("drop" in attrs), "the constant curve and the attribute drop go together")
    expect(("lift" in constants) == ("level" in attrs), "the constant lift and the attribute level go together")
    if "lift" in constants:
        expect("curve" in constants, "lift scales a curve's channels, and there is none")
        lift = constants["lift"]
        expect(lift.shape == shape[-1:], f"lift must hold one value per output channel, got shape {lift.shape}")
        expect(lift.min() >= 0 and lift.max() <= MAX_LIFT, f"lift must lie in [0, {MAX_LIFT}]")


def _epilogue_constants(rng: np.random.Generator, weight: np.ndarray, dtype: str, residual: bool) -> dict:
    """Multipliers that spread random accumulators over the output's range, so that clamping and rounding both occur."""
    co = weight.shape[0]
    spread = 2.0**14 * max(1.0, weight.size / co) ** 0.5  # of sum w * x for random w and x
    target = {"uint8": 2.0**8, "int16": 2.0**15, "int32": 2.0**24}[dtype]
    shift = np.clip(np.round(30 - np.log2(target / spread) + rng.integers(-1, 2, co)), 1, 62).astype(np.int32)
    half = np.left_shift(np.int64(1), shift.astype(np.int64) - 1)
    zero = rng.integers(0, 128, co) if dtype == "uint8" else rng.integers(-100, 100, co)
    constants = {
        "multiplier": rng.integers(2**30, 2**31, co).astype(np.int32),
        "offset": half + np.left_shift(zero.astype(np.int64), shift.astype(np.int64)),
        "shift": shift,
    }
    if residual:
        constants["residual_multiplier"] = rng.integers(-(2**31), 2**31, co).astype(np.int32)
    return constants


def _output_attrs(rng: np.random.Generator, dtype: str) -> dict:
    if dtype == "uint8":
        return {"low": int(rng.choice([0, 0, 3])), "high": int(rng.choice([255, 255, 190]))}
    return {"int16": {"low": -(2**15), "high": 2**15 - 1}, "int32": {"low": -(2**31), "high": 2**31 - 1}}[dtype]


def _end_in_curve(constants: dict, function: Callable, dtype: str) -> dict:
    """The attributes of a curve on [-6, 6], which is put into the constants."""
    made = fit(function, -6.0, 6.0, 8 / DTYPE_RANGE[dtype][1], 0, dtype)
    constants["curve"] = made.coefficients
    middle = np.left_shift(np.int64(2**14), constants["shift"].astype(np.int64))
    constants["offset"] = constants["offset"] + middle
    low, high = DTYPE_RANGE[dtype]
    return {"low": low, "high": high, "drop": made.drop, "function": "sample"}


def _conv2d_samples(rng: np.random.Generator) -> list[Sample]:
    samples = []
    # (h, w, ci, co, kernel, stride, padding, dilation, groups, dtype, residual dtype)
    cases = [
        (5, 6, 3, 16, 3, (2, 2), (1, 1, 1, 1), (1, 1), 1, "uint8", None),  # the first layer of an image network
        (7, 7, 64, 48, 1, (1, 1), (0, 0, 0, 0), (1, 1), 1, "uint8", None),
        (6, 5, 32, 33, 1, (2, 2), (0, 0, 0, 0), (1, 1), 1, "uint8", "uint8"),
        (7, 9, 16, 20, 3, (1, 1), (1, 1, 1, 1), (1, 1), 1, "uint8", "int16"),
        (9, 8, 5, 7, (1, 7), (1, 2), (0, 3, 0, 3), (1, 1), 1, "int16", "int16"),
        (9, 9, 12, 8, 3, (1, 1), (2, 2, 2, 2), (2, 2), 1, "int32", None),
        (8, 8, 16, 24, 3, (1, 1), (0, 1, 1, 0), (1, 1), 4, "uint8", "uint8"),  # grouped, uneven padding
        (9, 7, 40, 40, 3, (1, 1), (1, 1, 1, 1), (1, 1), 40, "uint8", None),  # depthwise
        (9, 8, 72, 72, 3, (2, 2), (0, 0, 1, 1), (1, 1), 72, "uint8", None),
        (6, 6, 17, 34, 5, (1, 1), (2, 2, 2, 2), (1, 1), 17, "int16", None),  # depthwise with a channel multiplier
        (1, 1, 130, 10, 1, (1, 1), (0, 0, 0, 0), (1, 1), 1, "int32", None),
        ("s", 20, 1, 24, 3, (2, 2), (1, 1, 1, 1), (1, 1), 1, "uint8", None),  # over frames and bands
        ("s", 9, 32, 40, 3, (1, 2), (1, 1, 1, 1), (1, 1), 1, "uint8", None),
        ("s", 6, 16, 16, 3, (2, 2), (1, 1, 1, 1), (1, 1), 16, "int16", None),
    ]
    for h, w, ci, co, kernel, stride, padding, dilation, groups, dtype, residual in cases:
        kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
        weight = rng.integers(-127, 128, (co, kh, kw, ci // groups)).astype(np.int8)
        constants = {
            "weight": weight,
            "pad_value": rng.integers(0, 256, ci).astype(np.uint8),
            **_epilogue_constants(rng, weight, dtype, residual is not None),
        }
        attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        attrs |= _output_attrs(rng, dtype)
        inputs = (Value("x", ("n", h, w, ci), "uint8", 0, 255),)
        if residual:
            shape = ("n", *window_shape((h, w), (kh, kw), stride, padding, dilation), co)
            low, high = (0, 255) if residual == "uint8" else (-(2**15), 2**15 - 1)
            inputs += (Value("r", shape, residual, low, high),)
        if h == "s":
            inputs += (Value("mask", ("n", "s"), "uint8", 0, 1),)
        samples.append(Sample(inputs, attrs, constants, dtype))
    return samples


def _conv1d_samples(rng: np.random.Generator) -> list[Sample]:
    samples = []
    # (frames, ci, co, kernel, stride, padding, dilation, groups, dtype, residual dtype, masked)
    cases = [
        ("s", 80, 80, 11, 1, (5, 5), 1, 80, "uint8", None, True),  # depthwise
        ("s", 200, 200, 7, 2, (3, 3), 1, 200, "int16", None, False),
        ("s", 37, 37, 5, 1, (4, 4), 2, 37, "uint8", None, True),
        ("s", 64, 48, 5, 2, (2, 2), 1, 1, "uint8", None, True),  # the first layer over features
        ("s", 96, 70, 3, 1, (2, 2), 2, 1, "uint8", "uint8", True),
        ("s", 12, 40, 3, 1, (1, 1), 1, 1, "int32", None, False),
        ("s", 64, 64, 4, 1, (2, 1), 1, 4, "int16", "int16", True),  # groups
        (50, 1, 32, 10, 5, (0, 0), 1, 1, "uint8", None, False),  # samples
        (6, 33, 33, 1, 2, (0, 0), 1, 1, "uint8", None, False),
        ("s", 80, 80, 5, 1, (2, 2), 1, 80, "curve", None, True),
        ("s", 32, 48, 3, 2, (1, 1), 1, 1, "curve", None, True),
    ]
    for frames, ci, co, k, stride, padding, dilation, groups, dtype, residual, with_mask in cases:
        weight = rng.integers(-127, 128, (co, k, ci // groups)).astype(np.int8)
        constants = {
            "weight": weight,
            "pad_value": rng.integers(0, 256, ci).astype(np.uint8),
            **_epilogue_constants(rng, weight, "int16" if dtype == "curve" else dtype, residual is not None),
        }
        attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        attrs |= _end_in_curve(constants, lambda x: x / (1 + np.exp(-x)), "uint8") if dtype == "curve" else {}
        dtype = "uint8" if dtype == "curve" else dtype
        attrs = _output_attrs(rng, dtype) | attrs
        inputs = (Value("x", ("n", frames, ci), "uint8", 0, 255),)
        if residual:
            shape = ("n", windows(frames, k, stride, padding, dilation), co)
            inputs += (Value("r", shape, residual, *((0, 255) if residual == "uint8" else (-(2**15), 2**15 - 1))),)
        if with_mask:
            inputs += (Value("mask", ("n", frames), "uint8", 0, 1),)
        samples.append(Sample(inputs, attrs, constants, dtype))
    return samples


def _linear_samples(rng: np.random.Generator) -> list[Sample]:
    samples = []
    for shape, co, dtype, residual, function in [
        (("n", 37), 11, "int32", None, None),
        (("n", 64), 64, "uint8", "uint8", None),
        (("n", 5, 96), 80, "int16", None, None),
        (("n", "s", 64), 96, "int16", "int16", None),
        (("n", "s", 48), 72, "int16", "int32", None),
        (("n", "s", 96), 80, "uint8", None, lambda x: x / (1 + np.exp(-x))),
        (("n", 40), 21, "int16", None, np.tanh),
    ]:
        weight = rng.integers(-127, 128, (co, shape[-1])).astype(np.int8)
        constants = {"weight": weight, **_epilogue_constants(rng, weight, "int16" if function else dtype, residual)}
        inputs = (Value("x", shape, "uint8", 0, 255),)
        if residual:
            low, high = (0, 255) if residual == "uint8" else (-(2**15), 2**15 - 1)
            inputs += (Value("r", (*shape[:-1], co), residual, low, high),)
        attrs = _output_attrs(rng, dtype)
        if function:
            attrs = _end_in_curve(constants, function, dtype)
            if dtype == "uint8":
                constants["lift"] = rng.integers(0, MAX_LIFT + 1, co).astype(np.int32)
                attrs["level"] = (9 << attrs["drop"]) + (1 << attrs["drop"] >> 1)
        samples.append(Sample(inputs, attrs, constants, dtype))
    return samples


def _with_narrow(samples: Callable, narrow: Mapping[int, tuple[int, int]]) -> Callable:
    """Samples, and some of them again with other widths: {index: (bits of weights, bits of the input)}."""

    def both(rng: np.random.Generator) -> list[Sample]:
        made = samples(rng)
        return made + [_narrowed(made[i], *widths) for i, widths in narrow.items()]

    return both


def _narrowed(sample: Sample, bits: int, input_bits: int) -> Sample:
    """The same with fewer bits: sums are smaller, and the rescale's shifts with them."""
    constants, most, fewer = dict(sample.constants), 2**input_bits - 1, 16 - bits - input_bits
    constants["weight"] = np.rint(constants["weight"] * (weight_limit(bits) / 127)).astype(np.int8)
    constants["shift"] = constants["shift"] - np.int32(fewer)
    for name in ("offset", "residual_multiplier", "pad_value"):
        if name in constants:
            places = 8 - input_bits if name == "pad_value" else fewer
            constants[name] = (constants[name] >> places).astype(constants[name].dtype)
    x, *further = sample.inputs
    attrs = {**sample.attrs, "weight_bits": bits}
    return replace(sample, inputs=(replace(x, high=most), *further), attrs=attrs, constants=constants)


_CURVED = frozenset({"residual_multiplier", "curve", "drop", "function", "lift", "level", "weight_bits"})
_CONSTANTS = frozenset({"weight", "multiplier", "offset", "shift"})

OPS = (
    Op(
        "conv2d",
        "conv2d",
        _epilogue,
        _conv2d_shape,
        _with_narrow(
            _conv2d_samples, {0: (4, 8), 1: (4, 4), 2: (2, 8), 3: (4, 4), 6: (4, 8), 7: (4, 8), 8: (2, 4), 9: (4, 4)}
        ),
        attrs=frozenset({"stride", "padding", "dilation", "groups", "low", "high"}),
        constants=_CONSTANTS | {"pad_value"},
        optional=frozenset({"residual_multiplier", "weight_bits"}),
    ),
    Op(
        "conv1d",
        "conv1d",
        _epilogue,
        _conv1d_shape,
        _with_narrow(_conv1d_samples, {0: (4, 8), 2: (2, 8), 4: (4, 4), 6: (2, 8), 10: (4, 8)}),
        attrs=frozenset({"stride", "padding", "dilation", "groups", "low", "high"}),
        constants=_CONSTANTS | {"pad_value"},
        optional=_CURVED,
    ),
    Op(
        "linear",
        "linear",
        _epilogue,
        _linear_shape,
        _with_narrow(_linear_samples, {0: (4, 8), 1: (4, 4), 3: (2, 8), 5: (4, 8)}),
        attrs=frozenset({"low", "high"}),
        constants=_CONSTANTS,
        optional=_CURVED,
    ),
)
