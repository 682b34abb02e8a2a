"""LayerNorm, attention and the mean of tokens against real arithmetic: how far their integers are from it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intq.backends import reference
from intq.curves import fit
from intq.fixedpoint import dyadic, offset_of
from intq.graph import Node, make_node
from intq.ops.attention import LARGEST, RECIPROCAL_BITS, SHARE_SHIFT, ZERO_POINT
from intq.ops.rows import MOST_CHANNELS, UNIT_BITS
from intq.value import DTYPE_RANGE, Value


def arrays(**constants) -> dict[str, np.ndarray]:
    return {key: np.asarray(value) for key, value in constants.items()}


def limits(dtype: str) -> dict[str, int]:
    return dict(zip(("low", "high"), DTYPE_RANGE[dtype], strict=True))


# ---- LayerNorm -------------------------------------------------------------------------------------------------


def layernorm(gamma, beta, epsilon: float, dtype: str, scale: float, zero_point: int = 0) -> Node:
    """Rows of int16 whose scale is 1; gamma, beta and epsilon are real."""
    size = len(gamma)
    d = dyadic(gamma / scale / 2**UNIT_BITS)
    constants = arrays(
        multiplier=d.multiplier,
        offset=offset_of(beta / scale, d.shift, zero_point),
        shift=d.shift,
        epsilon=np.int64(round(size**2 * epsilon)),
    )
    x = Value("x", ("n", size), "int16", *DTYPE_RANGE["int16"])
    return make_node("layernorm", "y", [x], dtype=dtype, attrs={"size": size, **limits(dtype)}, constants=constants)


def rows_of(kind: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """16 rows of a kind that makes a LayerNorm difficult."""
    x = rng.normal(0, 3000, (16, size))
    if kind == "outlier":  # one channel a hundred times the others, as trained transformers have
        x = rng.normal(0, 250, (16, size))
        x[:, rng.integers(size)] = rng.choice([-30000, 30000], 16)
    elif kind == "small":
        x = rng.normal(0, 8, (16, size))
    elif kind == "shifted":
        x = rng.normal(31000, 900, (16, size))
    elif kind == "ends":
        x = rng.choice([-(2**15), 2**15 - 1], (16, size))
    elif kind == "single":  # every channel but one at one end: the largest normalised value there is
        x = np.full((16, size), -(2**15))
        x[:, rng.integers(size)] = 2**15 - 1
    return np.clip(np.rint(x), -(2**15), 2**15 - 1).astype(np.int16)


KINDS = ("normal", "outlier", "small", "shifted", "ends", "single")


@pytest.mark.parametrize("size", [2, 37, 384, 768, 1024])
@pytest.mark.parametrize(("dtype", "apart"), [("uint8", 0.51), ("int16", 1.0)])
def test_layernorm_is_the_real_one_to_a_unit(size, dtype, apart):
    """Half a step is the result's rounding; the rest is that of the root, 2**-31 of the deviation, and of units."""
    rng = np.random.default_rng(size)
    gamma, beta = rng.uniform(0.2, 1.5, size) * rng.choice([-1, 1], size), rng.normal(0, 0.5, size)
    epsilon, zero_point = 1.0, 120 if dtype == "uint8" else 0  # epsilon: a squared unit, so every row counts
    scale = 4.0 / 100 if dtype == "uint8" else 4.0 / 20000
    node = layernorm(gamma, beta, epsilon, dtype, scale, zero_point)
    for kind in KINDS:
        x = rows_of(kind, size, rng)
        y, real = reference.run_node(node, [x]), x.astype(np.longdouble)
        centred = real - real.mean(1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(1, keepdims=True) + epsilon)
        wanted = (centred / deviation * gamma + beta) / scale + zero_point
        low, high = DTYPE_RANGE[dtype]
        assert np.abs(y - np.clip(wanted, low, high)).max() <= apart, kind


@pytest.mark.parametrize("value", [-(2**15), -1, 0, 777, 2**15 - 1])
def test_a_constant_row_is_beta(value):
    beta = np.linspace(-1, 1, 48)
    node = layernorm(np.full(48, 5.0), beta, 0.0, "int16", 1e-4)
    y = reference.run_node(node, [np.full((3, 48), value, np.int16)])
    np.testing.assert_array_equal(y, np.broadcast_to(np.rint(beta / 1e-4), (3, 48)))


@settings(max_examples=60)
@given(
    st.sampled_from([2, 3, 64, 255, 256, 257, 1000, 4096, MOST_CHANNELS]),
    st.sampled_from(KINDS),
    st.sampled_from([0.0, 1e-3, 1.0, 1e6]),
    st.integers(0, 2**32 - 1),
)
def test_what_is_proven_on_paper_holds_in_every_row(size, kind, epsilon, seed):
    """The reference checks `within`: spread by Cauchy-Schwarz, and normalised values of sqrt(size) at most."""
    node = layernorm(np.ones(size), np.zeros(size), epsilon, "int16", 1e-3)
    reference.run_node(node, [rows_of(kind, size, np.random.default_rng(seed))])


# ---- attention -------------------------------------------------------------------------------------------------


def attention(heads: int, size: int, spread: float, masked: bool, scale: float = 1.0, longest: int = 512) -> Node:
    """q, k, v in units of one; their scores are multiplied by ``spread``, results are in steps of ``scale``."""
    made = fit(lambda x: np.exp(-x), 0.0, 6.3, 1 / LARGEST)
    score, share = dyadic(spread / made.step), dyadic(2.0 ** (SHARE_SHIFT - RECIPROCAL_BITS) / scale)
    constants = arrays(
        curve=made.coefficients,
        score_multiplier=score.multiplier,
        score_offset=offset_of(0.0, score.shift, 0),
        score_shift=score.shift,
        multiplier=share.multiplier,
        offset=offset_of(0.0, share.shift, 128),
        shift=share.shift,
    )
    shape = ("n", "s", heads * size)
    inputs = [Value(x, shape, "uint8", 0, 255, zero_point=ZERO_POINT, longest=longest) for x in "qkv"]
    if masked:
        inputs.append(Value("mask", ("n", "s"), "uint8", 0, 1, longest=longest))
    attrs = {"heads": heads, "size": size, "longest": longest, "drop": made.drop, **limits("uint8")}
    return make_node(
        "attention", "y", inputs, dtype="uint8", scale=scale, zero_point=128, attrs=attrs, constants=constants
    )


def softmax_attention(node: Node, q, k, v, mask, spread: float) -> np.ndarray:
    """In float64, in steps of the result."""
    heads, size = node.attrs["heads"], node.attrs["size"]
    q, k, v = (x.reshape(*x.shape[:2], heads, size).transpose(0, 2, 1, 3) - 128.0 for x in (q, k, v))
    scores = q @ k.swapaxes(-1, -2) * spread + np.where(mask, 0, -np.inf)[:, None, None]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = weights / weights.sum(-1, keepdims=True) @ v
    return mixed.transpose(0, 2, 1, 3).reshape(*mask.shape, -1) / node.output.scale + 128


def qkv(rng, batch: int, tokens: int, channels: int, deviation: float = 40.0) -> list[np.ndarray]:
    x = rng.normal(128, deviation, (3, batch, tokens, channels))
    return list(np.clip(np.rint(x), 0, 255).astype(np.uint8))


@pytest.mark.parametrize("tokens", [1, 2, 16, 128, 384])
@pytest.mark.parametrize(("spread", "most", "mean"), [(0.1, 0.55, 0.26), (1.0, 1.5, 0.27), (4.0, 5.0, 0.36)])
def test_attention_is_that_of_the_real_softmax(tokens, spread, most, mean):
    """In steps of v's own 8 bits, for rows of even and of peaked scores. Rounding the result is 0.5 at most and 0.25 on
    average; the rest is that of the weights to 1/255 of the largest, which cuts a peaked row's long tail off.
    """
    rng, spread = np.random.default_rng(tokens), spread / (40.0**2 * 8)  # scores deviate by `spread`
    node = attention(2, 64, spread, masked=True)
    x, mask = qkv(rng, 2, tokens, 128), np.ones((2, tokens), np.uint8)
    mask[1, (tokens + 1) // 2 :] = 0
    apart = np.abs(reference.run_node(node, [*x, mask]) - softmax_attention(node, *x, mask, spread))
    assert apart.max() <= most and apart.mean() <= mean


def test_512_equal_scores_keep_the_mean():
    """Where probabilities of 1 / 512 would round to 0 or to twice themselves in 8 bits: the mean is exact."""
    rng, node = np.random.default_rng(0), attention(1, 16, 1e-4, masked=False, scale=0.25)
    (_, _, v), same = qkv(rng, 1, 512, 16), np.full((1, 512, 16), 128, np.uint8)
    y = reference.run_node(node, [same, same, v])
    np.testing.assert_array_equal(y[0], np.broadcast_to(np.floor((v[0] - 128.0).mean(0) / 0.25 + 128.5), (512, 16)))


def test_a_peak_takes_all():
    rng, node = np.random.default_rng(0), attention(1, 16, 1e-2, masked=False)
    (_, _, v) = qkv(rng, 1, 9, 16)
    q = np.full((1, 9, 16), 255, np.uint8)
    k = np.full((1, 9, 16), 0, np.uint8)
    k[0, 4] = 255
    np.testing.assert_array_equal(reference.run_node(node, [q, k, v])[0], np.broadcast_to(v[0, 4], (9, 16)))


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 2**32 - 1))
def test_masked_tokens_are_as_if_they_were_not_there(tokens, more, seed):
    rng = np.random.default_rng(seed)
    node = attention(2, 8, 2e-4, masked=True)
    x = [rng.integers(0, 256, (1, tokens + more, 16)).astype(np.uint8) for _ in range(3)]
    mask = (np.arange(tokens + more) < tokens).astype(np.uint8)[None]
    order = rng.permutation(tokens + more)  # they may stand anywhere
    whole = reference.run_node(node, [*(a[:, order] for a in x), mask[:, order]])
    alone = reference.run_node(node, [*(a[:, :tokens] for a in x), mask[:, :tokens]])
    np.testing.assert_array_equal(whole[:, np.argsort(order)][:, :tokens], alone)


# ---- the mean of tokens ------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.integers(1, 512), st.integers(0, 2**32 - 1))
def test_the_mean_of_tokens_is_rounded_once(tokens, seed):
    rng = np.random.default_rng(seed)
    d = dyadic(1.0)
    constants = arrays(multiplier=d.multiplier, offset=offset_of(0.0, d.shift, 0), shift=d.shift)
    inputs = [
        Value("x", ("n", "s", 7), "int16", *DTYPE_RANGE["int16"], longest=512),
        Value("mask", ("n", "s"), "uint8", 0, 1, longest=512),
    ]
    node = make_node(
        "mean_tokens", "y", inputs, dtype="int16", attrs={"longest": 512, **limits("int16")}, constants=constants
    )
    x = rng.integers(-(2**15), 2**15, (2, tokens, 7)).astype(np.int16)
    mask = rng.integers(0, 2, (2, tokens)).astype(np.uint8)
    mask[:, 0] = 1
    wanted = (x.astype(np.float64) * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    assert np.abs(reference.run_node(node, [x, mask]) - wanted).max() <= 0.5 + 1e-2
    empty = reference.run_node(node, [x, np.zeros_like(mask)])
    np.testing.assert_array_equal(empty, 0)
