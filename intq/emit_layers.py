"""What :mod:`intq.emit` writes for contractions: 8 or 16 bits go in, a residual and a curve may follow their sums.

A layer that reads 16 bits is two of 8, by ``x = 256 * (high - 128) + low``: that of the high bytes keeps its sums as
they are, int32, and that of the low bytes adds 256 times these, as it would a residual. In the same way weights of 16
bits are two of 8, ``w = 254 * coarse + fine``, each an int8 within 127. Of the four products of both, that of the low
bytes and the fine weights is below what a sum of 16 bits shows: its mean alone is taken, in the bias.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from intq.curves import Curve, fit
from intq.emit_moves import channel_last
from intq.fixedpoint import rescaling
from intq.floatgraph import FloatNode, evaluate
from intq.plan import LEVELS, Quant, Weights, limits
from intq.rewriter import unlimited
from intq.value import DTYPE_RANGE, Value

BYTE, MIDDLE = 2**8, 2**7  # the values of a byte, and which of them stands for 0 in the high byte of an int16
COARSE = 254  # of what a fine weight is, from -127 to 127, a coarse one
FINE_BITS = 12  # of sums that wait for a residual, below a step of the result


@dataclass(frozen=True)
class Term:
    """``real * (value - zero)`` in units of the result's scale; numbers, or one for each channel."""

    value: Value
    real: np.ndarray | float
    zero: np.ndarray | int


@dataclass(frozen=True)
class Layer:
    """A contraction before it is rescaled: the operation, its geometry and weights, and the terms that it sums.

    Of the first term's value it takes the products with the weights; ``mask`` is that of the first term's frames.
    """

    op: str
    geometry: Mapping
    weights: Mapping[str, np.ndarray]
    terms: list[Term]
    mask: list[Value]

    @property
    def inputs(self) -> list[Value]:
        return [*(term.value for term in self.terms), *self.mask]


def contraction(e, node: FloatNode, function: FloatNode | None = None, scaled: FloatNode | None = None):
    """With ``function``: a layer that ends in its curve, and whose own quant is the curve's argument.
    With ``scaled``: the affine that gives the curve's channels their own scales."""
    quant, order = e.quants[node.name], channel_last(len(node.shape))
    if len(node.inputs) == 1:
        layer = _layer(e, node, node.name, quant)
        return _written(e, node, layer, node.name, quant, function, scaled), order
    if e.plan.bits_read(node) <= 8 and e.plan.weights[node.name].bits <= 8:
        layer = _layer(e, node, node.name, quant)
        layer = replace(layer, terms=[*layer.terms, _residual(e, node, quant)])
        return _written(e, node, layer, node.name, quant), order
    # its bytes are two terms already, and an operation sums no more
    name, fine = f"{node.name}.layer", finer(quant)
    layer = _layer(e, node, name, fine)
    sums = _written(e, unlimited(node), layer, name, fine)
    return e.sum(node, Term(sums, fine.scale / quant.scale, 0), _residual(e, node, quant)), order


def _written(
    e,
    node: FloatNode,
    layer: Layer,
    name: str,
    quant: Quant,
    function: FloatNode | None = None,
    scaled: FloatNode | None = None,
) -> Value:
    """The integer node of a layer: its terms, its bias, and the curve at its end."""
    bias = e.plan.weights[node.name].bias.double().numpy() / quant.scale
    if function is None:
        return _summed(e, node, layer, name, quant, bias)
    constants = _constants(layer, bias, quant)
    end = scaled or function
    quant = e.quants[end.name]
    curve = curve_of(function, e.quants[node.name].interval, quant, scaled)
    constants["curve"] = curve.coefficients
    low, high = quant.limits(-math.inf, math.inf)
    attrs = {"drop": curve.drop, "function": function.attrs["function"], "low": low, "high": high}
    if scaled is not None:
        constants["lift"] = torch.log2(scaled.parameters["scale"]).round().numpy().astype(np.int32)
        attrs["level"] = (int(quant.zero_point) << curve.drop) + (1 << curve.drop >> 1)
    return e.add(layer.op, end.name, layer.inputs, quant, function, attrs | layer.geometry, constants)


def _constants(layer: Layer, bias: np.ndarray, quant: Quant) -> dict[str, np.ndarray]:
    """The weights, and the sum of the terms and ``bias`` in units of ``quant``."""
    reals, zeros = [term.real for term in layer.terms], [term.zero for term in layer.terms]
    multipliers, offset, shift = rescaling(reals, zeros, bias, quant.zero_point)
    constants = {"multiplier": multipliers[0], "offset": offset, "shift": shift, **layer.weights}
    return constants | ({"residual_multiplier": multipliers[1]} if len(layer.terms) > 1 else {})


def _layer(e, node: FloatNode, name: str, quant: Quant) -> Layer:
    """The products of a contraction, called ``name``, in units of ``quant``; their bias and residual come later."""
    bits = e.plan.bits_read(node)
    x = e.in_order(node.inputs[0], channel_last(len(node.shape)), bits)
    has = e.plan.as_read(node.inputs[0], bits)
    real = has.scale * e.plan.weights[node.name].scale.double().numpy() / quant.scale
    coarse, fine = bytes_of(e.plan.weights[node.name])
    op, geometry, _ = laid_out(node, coarse)
    if e.plan.weights[node.name].bits < 8:
        geometry |= {"weight_bits": e.plan.weights[node.name].bits}
    mask = e.kept(node.inputs[0], node) if op != "linear" and reaches_beyond(node) else []
    pad = None if op == "linear" else padding_of(node, has, x.channels)

    def layer(q: np.ndarray, pad: np.ndarray | None, *terms: Term) -> Layer:
        weights = {"weight": laid_out(node, q)[2]} | ({} if pad is None else {"pad_value": pad.astype(np.uint8)})
        return Layer(op, geometry, weights, list(terms), mask)

    if bits <= 8:
        whole = Term(x, real, has.zero_point * _sums(coarse))
        if fine is None:
            return layer(coarse, pad, whole)
        of_coarse = _plain(e, node, f"{name}.coarse", layer(coarse, pad, whole))
        rest = Term(x, real, has.zero_point * _sums(fine))
        return layer(fine, pad, rest, Term(of_coarse, COARSE * real, whole.zero))
    high, low = halves(e, node, x)
    low_pad, high_pad = (None, None) if pad is None else (pad % BYTE, pad // BYTE + MIDDLE)
    top, nothing = MIDDLE * _sums(coarse), 0 * _sums(coarse)
    of_high = _plain(e, node, f"{name}.high", layer(coarse, high_pad, Term(high, 1.0, top)))
    if fine is None:
        return layer(coarse, low_pad, Term(low, real, nothing), Term(of_high, BYTE * real, top))
    unit = finer(quant)
    share = BYTE * real * quant.scale / unit.scale
    both = layer(fine, high_pad, Term(high, share, MIDDLE * _sums(fine)), Term(of_high, COARSE * share, top))
    left_out = (BYTE - 1) / 2 / BYTE * share * _sums(fine)
    of_both = _summed(e, unlimited(node), both, f"{name}.fine", unit, left_out)
    return layer(coarse, low_pad, Term(low, COARSE * real, nothing), Term(of_both, unit.scale / quant.scale, 0))


def bytes_of(weights: Weights) -> tuple[np.ndarray, np.ndarray | None]:
    """(coarse, fine), int8, with ``q = 254 * coarse + fine``; fine is None where 8 bits are all."""
    q = weights.q.numpy()
    if weights.bits <= 8:
        return q.astype(np.int8), None
    coarse = np.rint(q / COARSE).astype(np.int16)
    return coarse.astype(np.int8), (q - COARSE * coarse).astype(np.int8)


def _sums(q: np.ndarray) -> np.ndarray:
    """int64 (co,): of each output's weights."""
    return q.reshape(len(q), -1).sum(1, dtype=np.int64)


def _summed(e, node: FloatNode, layer: Layer, name: str, quant: Quant, bias: np.ndarray) -> Value:
    """The integer node of a layer's terms and a bias in units of ``quant``."""
    attrs = limits(node, quant) | layer.geometry
    return e.add(layer.op, name, layer.inputs, quant, node, attrs, _constants(layer, bias, quant))


def _plain(e, node: FloatNode, name: str, layer: Layer) -> Value:
    """The sums of a layer's products as they are, int32, its zero points in them."""
    co = len(layer.weights["weight"])
    constants = {**layer.weights, "multiplier": np.full(co, 2**30, np.int32)}
    constants |= {"offset": np.zeros(co, np.int64), "shift": np.full(co, 30, np.int32)}
    attrs = {**layer.geometry, **dict(zip(("low", "high"), DTYPE_RANGE["int32"], strict=True))}
    return e.add(layer.op, name, layer.inputs, Quant("int32", 1.0, 0), node, attrs, constants)


def finer(quant: Quant) -> Quant:
    """The unit of sums that come to others before they are rounded to ``quant``; scores are as fine already."""
    return quant if quant.dtype == "int32" else Quant("int32", quant.scale / 2**FINE_BITS, 0)


def _residual(e, node: FloatNode, quant: Quant) -> Term:
    """What a contraction adds to its sums, in units of ``quant``; equalization may have given it units of its own."""
    has, units = e.quants[node.inputs[1]], node.parameters.get("residual_scale", torch.ones(()))
    value = e.in_order(node.inputs[1], channel_last(len(node.shape)))
    return Term(value, units.double().numpy() * (has.scale / quant.scale), has.zero_point)


def laid_out(node: FloatNode, q: np.ndarray) -> tuple[str, dict, np.ndarray]:
    """The integer operation of a contraction, its geometry, and its weights ``q``, given in torch's layout.

    A convolution over frames of a single one is a linear layer.
    """
    if node.op == "linear":
        return "linear", {}, np.ascontiguousarray(q)
    geometry = {key: node.attrs[key] for key in ("stride", "padding", "dilation", "groups")}
    one_frame = node.op == "conv1d" and q.shape[2] == geometry["stride"] == geometry["groups"] == 1
    if one_frame and not any(geometry["padding"]):
        return "linear", {}, np.ascontiguousarray(q[:, :, 0])
    return node.op, geometry, np.ascontiguousarray(q.transpose(0, *range(2, q.ndim), 1))


def padding_of(node: FloatNode, has: Quant, channels: int) -> np.ndarray:
    """int64 (channels,): what pads a convolution's input, in the integers that this ``has``."""
    pad = node.parameters.get("pad", torch.zeros(channels)).double().numpy()
    return np.clip(np.rint(pad / has.scale) + has.zero_point, *LEVELS[has.dtype]).astype(np.int64)


def reaches_beyond(node: FloatNode) -> bool:
    """Whether windows of a convolution reach beyond the last frame."""
    return node.attrs["padding"][1 if node.op == "conv1d" else 2] > 0


def curve_of(node: FloatNode, domain: tuple[float, float], quant: Quant, scaled: FloatNode | None) -> Curve:
    """The polynomials of a function node on an interval, in the integers of its result; for channels with a scale of
    their own (``scaled``), without the zero point and the half, which come after that."""

    def function(x: np.ndarray) -> np.ndarray:
        return evaluate(node, torch.from_numpy(x).reshape(-1, 1)).reshape(x.shape).numpy()

    zero_point = quant.zero_point if scaled is None else 0
    return fit(function, *domain, quant.scale, zero_point, quant.storage, half=scaled is None)


# ---- 16 bits -----------------------------------------------------------------------------------------------------


def halves(e, node: FloatNode, x: Value) -> tuple[Value, Value]:
    """(high, low) with ``x = 256 * (high - 128) + low``: an int16 as two uint8, which contractions take."""
    key = (x.name, "halves")
    if key not in e.made:
        whole = {"low": 0, "high": BYTE - 1}
        constants = {
            "multiplier": np.array(2**30, np.int32),
            "offset": np.array(MIDDLE << 38, np.int64),
            "shift": np.array(38, np.int32),
        }
        meaning = Quant("uint8", x.scale * BYTE, MIDDLE)
        high = e.add("requantize", f"{x.name}.high_byte", [x], meaning, node, whole, constants)
        constants = {
            "multiplier_a": np.array(2**22, np.int32),
            "multiplier_b": np.array(-(2**30), np.int32),
            "offset": np.array(MIDDLE << 30, np.int64),
            "shift": np.array(22, np.int32),
        }
        low = e.add("add", f"{x.name}.low_byte", [x, high], Quant("uint8", x.scale, 0), node, whole, constants)
        e.made[key] = (high, low)
    return e.made[key]


EMIT = {"conv1d": contraction, "conv2d": contraction, "linear": contraction}
