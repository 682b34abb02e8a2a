"""Attention of several head sizes, masks, biases and scales, many in one network: it compiles once."""

import numpy as np

from intq.curves import fit
from intq.fixedpoint import dyadic, offset_of
from intq.graph import Graph, make_node
from intq.ops.attention import RECIPROCAL_BITS, SHARE_SHIFT
from intq.value import DTYPE_RANGE, Value, bind_shape

LONGEST = 512
UINT8 = ("uint8", 117, 1.3)  # the result's type, zero point, and units of it for one of v
INT16 = ("int16", 0, 200.0)


def attention(number, count, size, step=3e-3, tokens="s", masked=True, result=UINT8, curve="uint8", bias=0):
    """(inputs, node): ``count`` heads of ``size`` channels; a unit of a score is ``step`` in the exponent.

    ``curve``: the type that the exponential's coefficients are made for; those for "int16" do not fit in words.
    ``bias``: what every score's own is within, or 0 for none.
    """
    shape, (dtype, zero_point, ratio) = ("n", tokens, count * size), result
    inputs = tuple(Value(f"{x}{number}", shape, "uint8", 0, 255, 0.05, 128, longest=LONGEST) for x in "qkv")
    if bias:
        scores = ("n", count, tokens, tokens)
        inputs += (Value(f"bias{number}", scores, "int32", -bias, bias, longest=LONGEST),)
    if masked:
        inputs += (Value(f"mask{number}", shape[:2], "uint8", 0, 1, longest=LONGEST),)
    exponential = fit(lambda x: np.exp(-x), 0.0, 6.3, 1 / 255, dtype=curve)
    score, mean = dyadic(step / exponential.step), dyadic(ratio)
    shift = mean.shift + np.int32(RECIPROCAL_BITS - SHARE_SHIFT)
    constants = {
        "curve": exponential.coefficients,
        "score_multiplier": score.multiplier,
        "score_offset": offset_of(0.0, score.shift, 0),
        "score_shift": score.shift,
        "multiplier": mean.multiplier,
        "offset": offset_of(0.0, shift, zero_point),
        "shift": shift,
    }
    low, high = DTYPE_RANGE[dtype]
    attrs = {"heads": count, "size": size, "longest": LONGEST, "drop": exponential.drop, "low": low, "high": high}
    attrs |= {"bias": bias} if bias else {}
    return inputs, make_node("attention", f"y{number}", inputs, dtype=dtype, attrs=attrs, constants=constants)


def side_by_side(*parts) -> Graph:
    """One network of several attentions: it compiles once."""
    return Graph(tuple(x for xs, _ in parts for x in xs), tuple(n for _, n in parts), tuple(n.name for _, n in parts))


def drawn(graph: Graph, batch: int, tokens: int, rng: np.random.Generator, draw: str = "all") -> list[np.ndarray]:
    """Inputs; ``draw``: "all" of the range, only its "ends", or a mask that leaves "one" token (which may be none)."""
    arrays = []
    for value in graph.inputs:
        shape = bind_shape(value.shape, {"n": batch, "s": tokens})
        array = rng.integers(value.low, value.high, shape, endpoint=True)
        if draw == "ends":
            array = np.where(array > (value.low + value.high) // 2, value.high, value.low)
        if draw == "one" and value.name.startswith("mask"):
            array = np.arange(shape[1]) == rng.integers(-1, shape[1], (batch, 1))
        arrays.append(array.astype(value.dtype))
    return arrays
