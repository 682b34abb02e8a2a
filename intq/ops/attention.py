"""Attention in one operation: both products, the mask and the softmax between them.

    y = softmax((q k^T + bias) / sqrt(d) + mask) v        (Vaswani et al. 2017, eq. 1; per head of d channels)

Probabilities are never rounded to 8 bits. What multiplies ``v`` are weights ``e = round(255 exp(score - max))``,
the largest of which is always 255, and the division by their sum comes after the product, once a row. So a row of
512 equal scores loses nothing, where probabilities of 1/512 would all round to the same 0 or 1 of 255.

A bias is 32 bits wide and in the unit of the products, such as :mod:`intq.ops.relative` makes of relative positions;
the attribute ``bias`` says how large it can be.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from intq.curves import TOP, curve, fit
from intq.fixedpoint import reciprocal, rescale
from intq.ops.op import Attrs, Constants, Op, Sample, expect
from intq.value import Shape, Value

ZERO_POINT = 128  # of q, k and v: uint8 whose distance from it is an int8
LARGEST = 255  # weight of a row's largest score
FAR = 2**30  # what a masked score lies below the others
RECIPROCAL_BITS = 38  # of the sum, which is 255 at least: the quotient is an int32
SHARE_SHIFT = 31  # reciprocal (int32) times multiplier (int32) -> int32


def weight_of(L, below, constants: Constants, attrs: Attrs):
    """round(255 exp(-scale * below)) of how far a score lies below its row's maximum, in 0..255."""
    rounded = rescale(
        L, [(below, constants["score_multiplier"])], constants["score_offset"], constants["score_shift"], 0, TOP
    )
    return curve(L, L.narrow(rounded), constants["curve"], attrs["drop"], 0, LARGEST)


def share_of(L, total, constants: Constants, attrs: Attrs):
    """scale_v / scale_y / total as an int32 multiplier; ``total`` (a row's sum of weights) by exact reciprocal."""
    total = L.within(total, LARGEST, LARGEST * attrs["longest"])  # the largest weight is 255
    quotient = reciprocal(L, L.wide(total), RECIPROCAL_BITS)
    return L.narrow(L.shift_right(quotient * L.wide(constants["multiplier"]), SHARE_SHIFT))


def mean_of(L, products, share, constants: Constants, attrs: Attrs):
    """clamp(round(products * share)): a row of sum_j e_j v_j, divided and brought to the output's scale."""
    return rescale(L, [(products, share)], constants["offset"], constants["shift"], attrs["low"], attrs["high"])


def _attention(L, operands, constants: Constants, attrs: Attrs):
    """q, k, v: (batch, head, token, d), zero points taken off; bias: (batch, head, query, key), in units of q k^T;
    mask: (batch, 1, 1, key), 0 where a key is left out."""
    q, k, v, *more = operands
    scores = L.matmul(q, L.swap(k), attrs["size"])  # (batch, head, query, key)
    if "bias" in attrs:
        scores = scores + more.pop(0)
    if more:
        scores = scores + (more[0] - 1) * FAR
    weights = weight_of(L, L.row_max(scores) - scores, constants, attrs)
    share = share_of(L, L.row_sum(weights, attrs["longest"]), constants, attrs)
    return mean_of(L, L.matmul(weights, v, attrs["longest"]), share, constants, attrs)


def _shape(inputs: tuple[Value, ...], attrs: Attrs, constants: Constants) -> Shape:
    expect(len(inputs) >= 3, f"takes q, k, v and maybe a bias and a mask, got {len(inputs)} inputs")
    q = inputs[0]
    expect(len(q.shape) == 3, f"expects (n, tokens, channels) inputs, got shape {q.shape}")
    for x in inputs[:3]:
        expect(x.shape == q.shape, f"q, k and v must have one shape, got {q.shape} and {x.shape}")
        expect(x.dtype == "uint8", f"q, k and v must be uint8, got {x.dtype}")
        expect(x.zero_point == ZERO_POINT, f"the zero point of q, k and v must be {ZERO_POINT}, got {x.zero_point}")
    expect(attrs["heads"] * attrs["size"] == q.channels, f"{attrs['heads']} heads of {attrs['size']} are not {q.shape}")
    tokens = q.shape[1]
    if isinstance(tokens, int):
        expect(tokens <= attrs["longest"], f"longest is {attrs['longest']}, the input has {tokens} tokens")
    bias, mask = split(inputs, attrs)[1:]
    for x in bias:
        expect(x.shape == (q.shape[0], attrs["heads"], tokens, tokens), f"the bias must fit the scores, got {x.shape}")
        expect(
            -attrs["bias"] <= x.low <= x.high <= attrs["bias"], f"the bias is said to be within {attrs['bias']}: {x}"
        )
    expect(len(mask) < 2, f"takes q, k, v and maybe a bias and a mask, got {len(inputs)} inputs")
    for x in mask:
        expect(x.shape == q.shape[:2], f"the mask must be {q.shape[:2]}, got {x.shape}")
        expect((x.low, x.high) == (0, 1), f"the mask must be 0 or 1, got [{x.low}, {x.high}]")
    return q.shape


def split(inputs: Sequence, attrs: Attrs) -> tuple[tuple, tuple, tuple]:
    """(q, k, v), the bias and the mask, each of these if there is one."""
    count = 3 + ("bias" in attrs)
    return tuple(inputs[:3]), tuple(inputs[3:count]), tuple(inputs[count:])


def _samples(rng: np.random.Generator) -> list[Sample]:
    exponential = fit(lambda x: np.exp(-x), 0.0, 6.3, 1 / LARGEST)
    samples = []
    for tokens, heads, size, masked, spread, biased in [
        ("s", 2, 64, True, 12, False),
        ("s", 3, 32, False, 14, False),
        (19, 1, 16, False, 9, False),
        ("s", 2, 44, True, 12, True),
        (21, 1, 32, False, 12, True),
    ]:
        shape = ("n", tokens, heads * size)
        inputs = tuple(Value(x, shape, "uint8", 0, 255, 0.05, ZERO_POINT, longest=512) for x in "qkv")
        if biased:
            inputs += (Value("bias", ("n", heads, tokens, tokens), "int32", -(2**19), 2**19, longest=512),)
        if masked:
            inputs += (Value("mask", shape[:2], "uint8", 0, 1, longest=512),)
        shift = 30 + spread + 8 - 15  # scores that differ by 2**(spread + 8) reach the curve's end
        constants = {
            "curve": exponential.coefficients,
            "score_multiplier": rng.integers(2**30, 2**31, ()).astype(np.int32),
            "score_offset": np.int64(1 << (shift - 1)).reshape(()),
            "score_shift": np.int32(shift).reshape(()),
            "multiplier": rng.integers(2**30, 2**31, ()).astype(np.int32),
            "offset": np.int64((100 << 36) + (1 << 35)).reshape(()),
            "shift": np.int32(36).reshape(()),
        }
        attrs = {"heads": heads, "size": size, "longest": 512, "drop": exponential.drop, "low": 0, "high": 255}
        attrs |= {"bias": 2**19} if biased else {}
        samples.append(Sample(inputs, attrs, constants, "uint8"))
    return samples


OPS = (
    Op(
        "attention",
        "attention",
        _attention,
        _shape,
        _samples,
        attrs=frozenset({"heads", "size", "longest", "drop", "low", "high"}),
        optional=frozenset({"bias"}),
        constants=frozenset(
            {"curve", "score_multiplier", "score_offset", "score_shift", "multiplier", "offset", "shift"}
        ),
    ),
)
