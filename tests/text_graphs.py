"""Random small integer networks of token ids that use every operation of a text network, and sentences for them.

(tests/graphs.py makes those of images; scales are chosen alike.)
"""

from __future__ import annotations

import numpy as np
from graphs import SPREAD, Network, contraction, eight_bits, requantize

from intq.curves import fit
from intq.fixedpoint import dyadic_terms, offset_of
from intq.graph import Graph
from intq.ops.attention import LARGEST, RECIPROCAL_BITS, SHARE_SHIFT, ZERO_POINT
from intq.ops.embedding import NO_TOKEN
from intq.ops.rows import UNIT_BITS
from intq.value import DTYPE_RANGE, Value

VOCABULARY, LONGEST, PADDING, SEPARATOR = 60, 24, 1, 2
FUNCTIONS = {"silu": lambda x: x / (1 + np.exp(-x)), "tanh": np.tanh}


def _range(dtype: str) -> dict:
    return dict(zip(("low", "high"), DTYPE_RANGE[dtype], strict=True))


def _weight(net: Network, co: int, ci: int) -> np.ndarray:
    return np.clip(np.rint(net.rng.normal(0, 40, (co, ci))), -127, 127).astype(np.int8)


def embedding(net: Network, ids: Value, channels: int) -> Value:
    """Words of several magnitudes, positions, and segments in half of the networks."""
    positions, segments = net.one_of(("counted", 1), ("index", 2), ("index", 1))
    rows = LONGEST + (PADDING + 1 if positions == "counted" else 0)
    tables = {
        "word": net.rng.integers(-127, 128, (VOCABULARY, channels)).astype(np.int8),
        "position": net.rng.integers(-(2**15), 2**15, (rows, channels)).astype(np.int16),
        "segment": net.rng.integers(-(2**15), 2**15, (segments, channels)).astype(np.int16),
    }
    reals = [*net.rng.uniform(20, 120, VOCABULARY), 0.2, 0.1]
    multipliers, shift = dyadic_terms(reals)
    constants = tables | {
        "word_multiplier": multipliers[:-2],
        "position_multiplier": multipliers[-2],
        "segment_multiplier": multipliers[-1],
        "offset": offset_of(0.0, shift, 0),
        "shift": shift,
    }
    separator = SEPARATOR if segments > 1 else NO_TOKEN
    attrs = {"positions": positions, "padding": PADDING, "separator": separator, **_range("int16")}
    return net.emit("embedding", [ids], "int16", net.meaning("int16")[0], 0, attrs, constants)


def layernorm(net: Network, x: Value, dtype: str) -> Value:
    scale, zero_point = net.meaning(dtype)
    gamma = net.rng.uniform(0.3, 1.5, x.channels) * net.rng.choice([-1, 1], x.channels)
    (multiplier,), shift = dyadic_terms([gamma * SPREAD[dtype] / 2**UNIT_BITS])
    beta = net.rng.normal(0, 0.3 * SPREAD[dtype], x.channels)
    epsilon = round(x.channels**2 * 1e-5 / x.scale**2)
    constants = {
        "multiplier": multiplier,
        "offset": offset_of(beta, shift, zero_point),
        "shift": shift,
        "epsilon": epsilon,
    }
    return net.emit("layernorm", [x], dtype, scale, zero_point, {"size": x.channels, **_range(dtype)}, constants)


def linear(net: Network, x: Value, co: int, dtype: str = "uint8", residual=None, zero_point=None) -> Value:
    x = eight_bits(net, x)
    return contraction(net, "linear", x, _weight(net, co, x.channels), dtype, {}, residual, zero_point)


def curved_linear(net: Network, x: Value, co: int) -> Value:
    """A linear layer whose sums go through a function on [-6, 6] before they are rounded to the output's 8 bits."""
    x, name, dtype = eight_bits(net, x), net.one_of(*FUNCTIONS), "uint8"
    weight, scale, zero_point = _weight(net, co, x.channels), *net.meaning(dtype)
    made = fit(FUNCTIONS[name], -6.0, 6.0, scale, zero_point, dtype)
    spread = np.sqrt(x.channels) * 40 * SPREAD["uint8"]
    real = net.rng.uniform(1.0, 3.0, co) / made.step / spread
    (multiplier,), shift = dyadic_terms([real])
    bias = -real * weight.sum(1, dtype=np.int64) * x.zero_point
    offset = offset_of(bias - made.low / made.step, shift, 0)
    constants = {"weight": weight, "multiplier": multiplier, "offset": offset, "shift": shift}
    attrs = {"drop": made.drop, "function": name, **_range(dtype)}
    return net.emit("linear", [x], dtype, scale, zero_point, attrs, constants | {"curve": made.coefficients})


def curve(net: Network, x: Value) -> Value:
    """tanh of a 16-bit value, to 16 bits."""
    made = fit(np.tanh, -4.0, 4.0, 2.0**-15, 0, "int16")
    real = 2.0 / made.step / SPREAD[x.dtype]
    (multiplier,), shift = dyadic_terms([real])
    offset = offset_of(-made.low / made.step - real * x.zero_point, shift, 0)
    constants = {"multiplier": multiplier, "offset": offset, "shift": shift, "curve": made.coefficients}
    attrs = {"drop": made.drop, "function": "tanh", **_range("int16")}
    return net.emit("curve", [x], "int16", 2.0**-15, 0, attrs, constants)


def attention(net: Network, x: Value, mask: Value | None) -> Value:
    """Scores of a spread of 1 to 3, so that some sentences look at few tokens and some at all."""
    size = net.one_of(8, 12, 16)
    heads = net.one_of(2, 3)
    qkv = [linear(net, x, heads * size, zero_point=ZERO_POINT) for _ in range(3)]
    made = fit(lambda u: np.exp(-u), 0.0, 8.0, 1 / LARGEST)
    score = net.rng.uniform(1.0, 3.0) / (SPREAD["uint8"] ** 2 * np.sqrt(size))
    (score_multiplier,), score_shift = dyadic_terms([score / made.step])
    scale, zero_point = net.meaning("uint8")
    (multiplier,), shift = dyadic_terms([1.5 * 2.0 ** (SHARE_SHIFT - RECIPROCAL_BITS)])
    constants = {
        "curve": made.coefficients,
        "score_multiplier": score_multiplier,
        "score_offset": offset_of(0.0, score_shift, 0),
        "score_shift": score_shift,
        "multiplier": multiplier,
        "offset": offset_of(0.0, shift, zero_point),
        "shift": shift,
    }
    attrs = {"heads": heads, "size": size, "longest": LONGEST, "drop": made.drop, **_range("uint8")}
    inputs = [*qkv, mask] if mask else qkv
    return net.emit("attention", inputs, "uint8", scale, zero_point, attrs, constants)


def encoder(net: Network, x: Value, mask: Value | None) -> Value:
    """A layer of a transformer on an int16 residual stream, its norms before or after the branches."""
    before = net.rng.random() < 0.5
    normed = layernorm(net, x, "uint8") if before else x
    x = linear(net, attention(net, normed, mask), x.channels, "int16", residual=x)
    x = x if before else layernorm(net, x, "int16")
    normed = layernorm(net, x, "uint8") if before else x
    x = linear(net, curved_linear(net, normed, 2 * x.channels), x.channels, "int16", residual=x)
    return x if before else layernorm(net, x, "int16")


def halves(net: Network, x: Value) -> Value:
    """Two linear layers, one on top of the other's 32 bits: how a 16-bit activation is multiplied."""
    total = linear(net, x, x.channels, "int32")
    return linear(net, requantize(net, x, "uint8"), x.channels, "int16", residual=total)


def first_token(net: Network, x: Value) -> Value:
    attrs = {"axis": 1, "start": 0, "stop": 1, "step": 1}
    x = net.emit("slice", [x], x.dtype, x.scale, x.zero_point, attrs)
    return net.emit("reshape", [x], x.dtype, x.scale, x.zero_point, {"shape": ("n", x.channels)})


def mean_tokens(net: Network, x: Value, mask: Value) -> Value:
    dtype = net.one_of("int16", "uint8")
    scale, zero_point = net.meaning(dtype)
    (multiplier,), shift = dyadic_terms([2.0 * SPREAD[dtype] / SPREAD[x.dtype]])
    constants = {"multiplier": multiplier, "offset": offset_of(0.0, shift, zero_point), "shift": shift}
    attrs = {"longest": LONGEST, **_range(dtype)}
    return net.emit("mean_tokens", [x, mask], dtype, scale, zero_point, attrs, constants)


def random_text_graph(seed: int, layers: int = 2, masked: bool = True) -> Graph:
    """Token ids to 5 scores of 32 bits: of the first token (pooled by tanh), of the mean, or of every token."""
    net = Network(np.random.default_rng(seed))
    ids = Value("ids", ("n", "s"), "int32", 0, VOCABULARY - 1, longest=LONGEST)
    mask = net.emit("differs", [ids], "uint8", 1.0, 0, {"value": PADDING}) if masked else None
    x = embedding(net, ids, net.one_of(24, 32, 37))
    x = layernorm(net, x, "int16")
    for _ in range(layers):
        x = encoder(net, x, mask)
    if net.rng.random() < 0.5:
        x = halves(net, x)
    head = net.one_of("first", "mean", "tokens") if masked else net.one_of("first", "tokens")
    if head == "first":
        x = curve(net, linear(net, first_token(net, x), x.channels, "int16"))
    elif head == "mean":
        x = mean_tokens(net, x, mask)
    scores = linear(net, x, 5, "int32")
    return Graph((ids,), tuple(net.nodes), (scores.name,), {"name": f"random text {seed}"})


def sentences(batch: int, tokens: int, seed: int = 0) -> np.ndarray:
    """Token ids (batch, tokens): one sentence fills its row, the others are shorter and padded at their end."""
    rng = np.random.default_rng(seed)
    words = [i for i in range(VOCABULARY) if i != PADDING]
    ids = rng.choice(words, (batch, tokens)).astype(np.int32)
    for row, length in zip(ids[1:], rng.integers(1, tokens, max(0, batch - 1), endpoint=True), strict=True):
        row[length:] = PADDING
    return ids
