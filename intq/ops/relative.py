"""What attention's scores gain by how far key and query are apart: the positions of Transformer-XL and Conformer.

    r[n, h, i, j] = (q[n, i, h] - 128) . table[h, L - 1 + j - i]            (Dai et al. 2019, appendix B)

``table`` holds a vector of each head for each distance j - i, from -(L - 1) to L - 1. The sums are rescaled to the unit
of the scores that they are added to (:mod:`intq.ops.attention`).
"""

from __future__ import annotations

import numpy as np

from intq.fixedpoint import rescale
from intq.ops.attention import ZERO_POINT
from intq.ops.op import Attrs, Constants, Op, Sample, expect
from intq.value import Shape, Value


def _relative(L, operands, constants: Constants, attrs: Attrs):
    """clamp(round(scale_q * scale_table / scale_y * sum)), in 32 bits."""
    terms = [(operands[0], constants["multiplier"])]
    return rescale(L, terms, constants["offset"], constants["shift"], attrs["low"], attrs["high"])


def longest(table) -> int:
    """The most tokens that a table, an array or a tensor, has distances for."""
    return (table.shape[1] + 1) // 2


def met(table, tokens: int):
    """The vectors of the distances that so many tokens meet, -(tokens - 1) to tokens - 1: of an array or a tensor."""
    most = longest(table)
    return table[:, most - tokens : most + tokens - 1]


def places(tokens: int) -> np.ndarray:
    """(query, key): the number of the distance between the two, among those that so many tokens meet."""
    at = np.arange(tokens)
    return tokens - 1 + at[None, :] - at[:, None]


def _shape(inputs: tuple[Value, ...], attrs: Attrs, constants: Constants) -> Shape:
    expect(len(inputs) == 1, f"takes one input, got {len(inputs)}")
    (q,), table = inputs, constants["distances"]
    expect(len(q.shape) == 3 and q.dtype == "uint8", f"expects uint8 (n, tokens, channels), got {q}")
    expect(q.zero_point == ZERO_POINT, f"the zero point of q must be {ZERO_POINT}, got {q.zero_point}")
    expect(table.ndim == 3 and table.shape[1] % 2, f"distances must be (heads, 2 L - 1, size), got {table.shape}")
    heads, _, size = table.shape
    expect(heads * size == q.channels, f"{heads} heads of {size} are not {q.shape}")
    most = longest(table)
    expect(attrs["longest"] == most, f"longest must be {most}, what distances are for, got {attrs['longest']}")
    tokens = q.shape[1]
    expect(isinstance(tokens, str) or tokens <= most, f"there are distances for {most} tokens, the input has {tokens}")
    return (q.shape[0], heads, tokens, tokens)


def _samples(rng: np.random.Generator) -> list[Sample]:
    samples = []
    for tokens, heads, size, most in [("s", 2, 44, 64), ("s", 1, 16, 40), (9, 3, 32, 9)]:
        q = Value("q", ("n", tokens, heads * size), "uint8", 0, 255, 0.05, ZERO_POINT, longest=most)
        constants = {
            "distances": rng.integers(-127, 128, (heads, 2 * most - 1, size)).astype(np.int8),
            "multiplier": rng.integers(2**30, 2**31, ()).astype(np.int32),
            "offset": np.int64(1 << 30).reshape(()),
            "shift": np.int32(31).reshape(()),
        }
        samples.append(Sample((q,), {"longest": most, "low": -(2**24), "high": 2**24}, constants, "int32"))
    return samples


OPS = (
    Op(
        "relative",
        "relative",
        _relative,
        _shape,
        _samples,
        attrs=frozenset({"longest", "low", "high"}),
        constants=frozenset({"distances", "multiplier", "offset", "shift"}),
    ),
)
