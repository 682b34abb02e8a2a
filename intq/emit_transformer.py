"""What :mod:`intq.emit` writes for a transformer's operations.

Each function is ``take(e, node) -> (value, order of the float axes)`` like those in :mod:`intq.emit`.
"""

from __future__ import annotations

import numpy as np
import torch

from intq.curves import fit
from intq.errors import IntqError
from intq.fixedpoint import dyadic_terms, offset_of
from intq.floatgraph import FloatNode
from intq.functions import FUNCTIONS
from intq.ops.attention import LARGEST, RECIPROCAL_BITS, SHARE_SHIFT
from intq.ops.embedding import NO_TOKEN
from intq.ops.relative import longest as tokens_of
from intq.ops.relative import met
from intq.ops.rows import UNIT_BITS
from intq.plan import limits

WORD_LIMIT, ROW_LIMIT = 127, 2**15 - 1
# exp(-NOTHING) * 255 rounds to 0: further below its row's maximum a score has no weight.
NOTHING = 6.3


def mask(e, node: FloatNode):
    ids, order = e.at[node.inputs[0]]
    attrs = {"value": node.attrs["padding"]}
    return e.add("differs", node.name, [ids], e.quants[node.name], node, attrs), order


def embedding(e, node: FloatNode):
    ids, _ = e.at[node.inputs[0]]
    quant, tables = e.quants[node.name], {k: t.double().numpy() for k, t in node.parameters.items()}
    channels = node.shape[-1]
    word = tables["word"]
    word_scale = np.maximum(np.abs(word).max(1), 1e-30) / WORD_LIMIT
    constants: dict[str, np.ndarray] = {"word": np.rint(word / word_scale[:, None]).astype(np.int8)}
    reals = [word_scale.max() / quant.scale]
    for name in ("position", "segment"):
        table = tables.get(name, np.zeros((1, channels)))
        if name == "position" and name not in tables:
            table = np.zeros((e.inputs[0].longest, channels))
        scale = max(np.abs(table).max(), 1e-30) / ROW_LIMIT
        constants[name] = np.rint(table / scale).astype(np.int16)
        reals.append(scale / quant.scale)
    (_, position, segment), shift = dyadic_terms(reals)
    multiplier = np.rint(np.ldexp(word_scale / quant.scale, int(shift))).astype(np.int32)
    constants |= {"word_multiplier": multiplier, "position_multiplier": position, "segment_multiplier": segment}
    constants |= {"offset": offset_of(0.0, shift, quant.zero_point), "shift": shift}
    attrs = {
        "positions": node.attrs.get("positions", "index"),
        "padding": node.attrs.get("padding", NO_TOKEN),
        "separator": node.attrs.get("separator", NO_TOKEN),
    }
    return e.add("embedding", node.name, [ids], quant, node, attrs | limits(node, quant), constants), (0, 1, 2)


def layer_norm(e, node: FloatNode):
    order = tuple(range(len(node.shape)))
    x, has, quant = e.in_order(node.inputs[0], order), e.quants[node.inputs[0]], e.quants[node.name]
    gamma, beta = (node.parameters[k].double().numpy() for k in ("weight", "bias"))
    size = len(gamma)
    (multiplier,), shift = dyadic_terms([gamma / (quant.scale * 2.0**UNIT_BITS)])
    epsilon = min(round(size * size * node.attrs["epsilon"] / has.scale**2), (size << 15) ** 2)
    constants = {
        "multiplier": multiplier,
        "offset": offset_of(beta / quant.scale, shift, quant.zero_point),
        "shift": shift,
        "epsilon": np.array(epsilon, np.int64),
    }
    return e.add("layernorm", node.name, [x], quant, node, {"size": size, **limits(node, quant)}, constants), order


def attention(e, node: FloatNode):
    order, quant = (0, 1, 2), e.quants[node.name]
    inputs = [e.in_order(name, order) for name in node.inputs[:3]]
    inputs += [e.at[name][0] for name in node.inputs[3:]] + e.kept(node.inputs[1], node)
    biased = {"bias": max(-inputs[3].low, inputs[3].high)} if node.attrs.get("biased") else {}
    q, k, v = (e.quants[name].scale for name in node.inputs[:3])
    exponential = FUNCTIONS[node.attrs.get("exponential", "exp")]

    def weight(x: np.ndarray) -> np.ndarray:
        return exponential(-torch.from_numpy(x)).numpy()

    curve = fit(weight, 0.0, NOTHING, 1 / LARGEST)
    (score,), score_shift = dyadic_terms([q * k * node.attrs["scale"] / curve.step])
    (multiplier,), shift = dyadic_terms([v / quant.scale])
    shift = shift + np.int32(RECIPROCAL_BITS - SHARE_SHIFT)
    constants = {
        "curve": curve.coefficients,
        "score_multiplier": score,
        "score_offset": offset_of(0.0, score_shift, 0),
        "score_shift": score_shift,
        "multiplier": multiplier,
        "offset": offset_of(0.0, shift, quant.zero_point),
        "shift": shift,
    }
    heads, channels = node.attrs["heads"], node.shape[-1]
    attrs = {"heads": heads, "size": channels // heads, "longest": e.most(node.shape[1]), "drop": curve.drop} | biased
    return e.add("attention", node.name, inputs, quant, node, attrs | limits(node, quant), constants), order


def relative(e, node: FloatNode):
    """The vectors of distances in 8 bits, as many as the longest input has."""
    x, quant = e.in_order(node.inputs[0], (0, 1, 2), 8), e.quants[node.name]
    table, longest = node.parameters["table"].double().numpy(), e.most(node.shape[2])
    if longest > tokens_of(table):
        raise IntqError(
            f"{node.module}: its table has positions for {tokens_of(table)} tokens or frames, but the longest input "
            f"makes {longest}; quantize it with a smaller `longest`"
        )
    table = met(table, longest)
    step = np.abs(table).max() / WORD_LIMIT or 1.0
    (multiplier,), shift = dyadic_terms(
        [e.plan.as_read(node.inputs[0]).scale * step * node.attrs["scale"] / quant.scale]
    )
    constants = {
        "distances": np.rint(table / step).astype(np.int8),
        "multiplier": multiplier,
        "offset": offset_of(0.0, shift, 0),
        "shift": shift,
    }
    attrs = {"longest": longest, **limits(node, quant)}
    return e.add("relative", node.name, [x], quant, node, attrs, constants), (0, 1, 2, 3)


def mean_tokens(e, node: FloatNode):
    x = e.in_order(node.inputs[0], (0, 1, 2))
    (keep,) = [e.at[name][0] for name in node.inputs[1:]] or e.kept(node.inputs[0], node)
    has, quant = e.quants[node.inputs[0]], e.quants[node.name]
    (multiplier,), shift = dyadic_terms([has.scale / quant.scale])
    constants = {"multiplier": multiplier, "offset": offset_of(0.0, shift, quant.zero_point), "shift": shift}
    attrs = {"longest": e.most(x.shape[1]), **limits(node, quant)}
    return e.add("mean_tokens", node.name, [x, keep], quant, node, attrs, constants), (0, 1)


def shift(e, node: FloatNode):
    """A constant per token and channel: tokens and channels are one axis of so many channels meanwhile."""
    order = (0, 1, 2)
    x, has, quant = e.in_order(node.inputs[0], order), e.quants[node.inputs[0]], e.quants[node.name]
    table = node.parameters["table"].double().numpy().ravel()
    flat, whole = ("n", table.size), tuple(x.shape)
    x = e.add("reshape", f"{node.name}.flat", [x], has, node, {"shape": flat})
    y = e.requantize(f"{node.name}.sum", x, has, quant, node, np.ones(table.size), table, (node.low, node.high))
    return e.add("reshape", node.name, [y], quant, node, {"shape": whole}), order


EMIT = {
    "mask": mask,
    "embedding": embedding,
    "layer_norm": layer_norm,
    "attention": attention,
    "relative": relative,
    "mean_tokens": mean_tokens,
    "shift": shift,
}
