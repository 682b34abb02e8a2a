"""Operations that look at one element of each input at a time."""

from __future__ import annotations

import numpy as np

from intq.curves import TOP, curve, fit
from intq.fixedpoint import rescale
from intq.ops.op import Attrs, Constants, Op, Sample, expect
from intq.value import DTYPE_RANGE, Shape, Value


def _requantize(L, operands, constants: Constants, attrs: Attrs):
    """clamp(round(scale_x / scale_y * (x - zero_point_x)) + zero_point_y): another scale, width or range."""
    (x,) = operands
    return rescale(
        L, [(x, constants["multiplier"])], constants["offset"], constants["shift"], attrs["low"], attrs["high"]
    )


def _add(L, operands, constants: Constants, attrs: Attrs):
    """clamp(round(scale_a / scale_y * a + scale_b / scale_y * b)): both branches in one int64 sum, rounded once."""
    a, b = operands
    terms = [(a, constants["multiplier_a"]), (b, constants["multiplier_b"])]
    return rescale(L, terms, constants["offset"], constants["shift"], attrs["low"], attrs["high"])


def _mul(L, operands, constants: Constants, attrs: Attrs):
    """clamp(round(scale_a * scale_b / scale_y * (a - zero_point_a) * (b - zero_point_b)) + zero_point_y)."""
    a, b = operands
    product = (a - attrs["zero_point_a"]) * (b - attrs["zero_point_b"])
    return rescale(
        L, [(product, constants["multiplier"])], constants["offset"], constants["shift"], attrs["low"], attrs["high"]
    )


def _lookup(L, operands, constants: Constants, attrs: Attrs):
    """table[x]: any function of an 8-bit value, correctly rounded because each entry is computed from the real one."""
    (x,) = operands
    return L.lookup(constants["table"], x)


def _curve(L, operands, constants: Constants, attrs: Attrs):
    """clamp(round(f(x))): any function of a wide value, by polynomials (:mod:`intq.curves`)."""
    (x,) = operands
    terms = [(x, constants["multiplier"])]
    x = L.narrow(rescale(L, terms, constants["offset"], constants["shift"], 0, TOP))
    return curve(L, x, constants["curve"], attrs["drop"], attrs["low"], attrs["high"])


def _differs(L, operands, constants: Constants, attrs: Attrs):
    """1 where x is not ``value``, 0 where it is: which tokens are not padding."""
    sign = L.clamp(operands[0] - attrs["value"], -1, 1)
    return L.clamp(sign * sign, 0, 1)


def _same_shape(inputs: tuple[Value, ...], attrs: Attrs, constants: Constants) -> Shape:
    expect(len(inputs) == 1, f"takes one input, got {len(inputs)}")
    return inputs[0].shape


def _lookup_shape(inputs: tuple[Value, ...], attrs: Attrs, constants: Constants) -> Shape:
    expect(inputs[0].dtype == "uint8", f"a table is indexed by uint8, got {inputs[0].dtype}")
    expect(constants["table"].shape == (256,), f"the table must have 256 entries, got {constants['table'].shape}")
    return _same_shape(inputs, attrs, constants)


def _add_shape(inputs: tuple[Value, ...], attrs: Attrs, constants: Constants) -> Shape:
    expect(len(inputs) == 2, f"takes two inputs, got {len(inputs)}")
    expect(inputs[0].shape == inputs[1].shape, f"shapes must agree, got {inputs[0].shape} and {inputs[1].shape}")
    return inputs[0].shape


def _mul_shape(inputs: tuple[Value, ...], attrs: Attrs, constants: Constants) -> Shape:
    expect(len(inputs) == 2, f"takes two inputs, got {len(inputs)}")
    a, b = inputs[0].shape, inputs[1].shape
    fits = len(a) == len(b) and all(q in (p, 1) for p, q in zip(a, b, strict=True))
    expect(fits, f"the second shape must equal the first or be 1 where it does not, got {a} and {b}")
    return a


def _rescale_constants(rng: np.random.Generator, names: tuple[str, ...], shift: int, zero: int, shape=()) -> dict:
    shifts = np.full(shape, shift, np.int32)
    constants = {name: rng.integers(2**30, 2**31, shape).astype(np.int32) for name in names}
    offset = np.full(shape, (zero << shift) + (1 << (shift - 1)), np.int64)
    return constants | {"offset": offset, "shift": shifts}


def _value(name: str, dtype: str, channels: int = 19, side: int = 4) -> Value:
    low, high = DTYPE_RANGE[dtype]
    return Value(name, ("n", side, side + 1, channels), dtype, low, high)


def _requantize_samples(rng: np.random.Generator) -> list[Sample]:
    cases = [("int16", "uint8", 38, 128, ()), ("uint8", "int16", 24, 0, ()), ("int32", "int16", 46, 0, (19,))]
    return [
        Sample(
            (_value("x", source),),
            dict(zip(("low", "high"), DTYPE_RANGE[dtype], strict=True)),
            _rescale_constants(rng, ("multiplier",), shift, zero, shape),
            dtype,
        )
        for source, dtype, shift, zero, shape in cases
    ]


def _add_samples(rng: np.random.Generator) -> list[Sample]:
    cases = [
        ("uint8", "uint8", "uint8", 32, 0),
        ("int16", "uint8", "int16", 31, 0),
        ("int16", "int16", "uint8", 39, 90),
    ]
    return [
        Sample(
            (_value("a", a), _value("b", b)),
            dict(zip(("low", "high"), DTYPE_RANGE[dtype], strict=True)),
            _rescale_constants(rng, ("multiplier_a", "multiplier_b"), shift, zero),
            dtype,
        )
        for a, b, dtype, shift, zero in cases
    ]


def _mul_samples(rng: np.random.Generator) -> list[Sample]:
    gate = Value("b", ("n", 1, 1, 19), "uint8", 0, 255)
    samples = []
    for b in (gate, _value("b", "uint8")):
        attrs = {"zero_point_a": int(rng.integers(0, 200)), "zero_point_b": int(rng.integers(0, 9))}
        constants = _rescale_constants(rng, ("multiplier",), 38, 77)
        samples.append(Sample((_value("a", "uint8"), b), {"low": 0, "high": 255, **attrs}, constants, "uint8"))
    return samples


def _curve_samples(rng: np.random.Generator) -> list[Sample]:
    samples = []
    for source, dtype, shift, function in [("int16", "uint8", 31, np.tanh), ("uint8", "int16", 24, np.sin)]:
        made = fit(function, -5.0, 5.0, 1 / DTYPE_RANGE[dtype][1], 0, dtype)
        constants = _rescale_constants(rng, ("multiplier",), shift, 2**14 if source == "int16" else 0)
        attrs = dict(zip(("low", "high"), DTYPE_RANGE[dtype], strict=True)) | {"drop": made.drop, "function": "sample"}
        samples.append(Sample((_value("x", source),), attrs, constants | {"curve": made.coefficients}, dtype))
    return samples


def _differs_samples(rng: np.random.Generator) -> list[Sample]:
    return [Sample((Value("ids", ("n", "s"), "int32", 0, 5, longest=64),), {"value": 1}, {}, "uint8")]


def _lookup_samples(rng: np.random.Generator) -> list[Sample]:
    return [
        Sample(
            (_value("x", "uint8"),),
            {"function": "random"},
            {"table": rng.integers(*DTYPE_RANGE[dtype], 256, endpoint=True).astype(dtype)},
            dtype,
        )
        for dtype in ("uint8", "int16")
    ]


_RANGE = frozenset({"low", "high"})
_RESCALE = frozenset({"multiplier", "offset", "shift"})

OPS = (
    Op("requantize", "pointwise", _requantize, _same_shape, _requantize_samples, _RANGE, _RESCALE),
    Op(
        "add",
        "pointwise",
        _add,
        _add_shape,
        _add_samples,
        _RANGE,
        frozenset({"multiplier_a", "multiplier_b", "offset", "shift"}),
    ),
    Op("mul", "pointwise", _mul, _mul_shape, _mul_samples, _RANGE | {"zero_point_a", "zero_point_b"}, _RESCALE),
    Op("lookup", "pointwise", _lookup, _lookup_shape, _lookup_samples, frozenset({"function"}), frozenset({"table"})),
    Op(
        "curve",
        "pointwise",
        _curve,
        _same_shape,
        _curve_samples,
        _RANGE | {"drop", "function"},
        _RESCALE | {"curve"},
    ),
    Op("differs", "pointwise", _differs, _same_shape, _differs_samples, frozenset({"value"})),
)
