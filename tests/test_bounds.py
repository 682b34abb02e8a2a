"""Interval arithmetic: it contains every result, it is exact where it can be, and what it cannot prove is refused."""

from dataclasses import replace

import numpy as np
import pytest
from graphs import random_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from text_graphs import random_text_graph
from unbounded import unbounded

from intq.backends import reference
from intq.bounds import Interval, IntervalDialect, bounds, exactly
from intq.errors import UnprovenError
from intq.fixedpoint import rescale
from intq.graph import make_node
from intq.ops import OPS
from intq.value import DTYPE_RANGE, Value, bind_shape

INT16 = st.integers(-(2**15), 2**15 - 1)


@st.composite
def intervals(draw, ends=INT16):
    """An interval and a few of its members, both ends among them."""
    low, high = sorted((draw(ends), draw(ends)))
    members = draw(st.lists(st.integers(low, high), max_size=3))
    return Interval(low, high), [low, high, *members]


@given(intervals(), intervals())
def test_sums_differences_and_products_contain_every_result_and_nothing_else(a, b):
    (x, xs), (y, ys) = a, b
    for result, operation in (
        (x + y, lambda p, q: p + q),
        (x - y, lambda p, q: p - q),
        (x * y, lambda p, q: p * q),
    ):
        reached = [operation(p, q) for p in xs for q in ys]
        assert result.low <= min(reached) and max(reached) <= result.high
        assert {int(result.low), int(result.high)} <= set(reached), "the ends are reached at ends"


@given(intervals(), st.integers(0, 20), INT16, INT16)
def test_shift_and_clamp(a, shift, p, q):
    x, xs = a
    low, high = sorted((p, q))
    shifted, clamped = IntervalDialect.shift_right(x, np.int32(shift)), IntervalDialect.clamp(x, low, high)
    assert (shifted.low, shifted.high) == (min(v >> shift for v in xs), max(v >> shift for v in xs))
    held = [min(max(v, low), high) for v in xs]
    assert (clamped.low, clamped.high) == (min(held), max(held))


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 2**32 - 1))
def test_a_table_is_bounded_by_the_entries_that_are_reached(p, q, seed):
    low, high = sorted((p, q))
    table = np.random.default_rng(seed).integers(-(2**15), 2**15, 256).astype(np.int16)
    got = IntervalDialect.lookup(table, Interval(low, high))
    assert (got.low, got.high) == (table[low : high + 1].min(), table[low : high + 1].max())


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
def test_bits_are_those_of_twos_complement(p, q):
    low, high = sorted((p, q))
    bits = Interval(low, high, 64).bits
    assert -(2 ** (bits - 1)) <= low and high < 2 ** (bits - 1)
    assert bits == 1 or low < -(2 ** (bits - 2)) or high >= 2 ** (bits - 2)


@pytest.mark.parametrize(
    ("make", "bits"),
    [
        (lambda: Interval(0, 2**31), 33),
        (lambda: Interval(-(2**31) - 1, 0), 33),
        (lambda: Interval(0, 2**31 - 1) + 1, 33),
        (lambda: Interval(-(2**31), 0) * Interval(-1, 0), 33),
        (lambda: Interval(0, 2**63, 64), 65),
        (lambda: exactly(2**62) + exactly(2**62), 65),
    ],
)
def test_what_leaves_its_width_is_refused(make, bits):
    with pytest.raises(UnprovenError, match=f"needs {bits} bits"):
        make()


def test_the_widths_themselves_are_admitted():
    assert Interval(-(2**31), 2**31 - 1).bits == 32
    assert Interval(-(2**63), 2**63 - 1, 64).bits == 64
    assert (IntervalDialect.wide(Interval(-(2**31), 2**31 - 1)) * exactly(2**31 - 1)).bits == 63


def test_arrays_stay_elementwise():
    got = np.array([1, 2]) * Interval(np.array([0, -1]), np.array([3, 4])) + np.array([10, 20])
    assert (got.low.tolist(), got.high.tolist()) == ([10, 18], [13, 28])


@given(
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(2**30, 2**31 - 1),
    st.integers(1, 62),
    st.integers(-(2**63), 2**63 - 1),
)
def test_rescale_is_proven_exactly_where_no_sum_leaves_int64(p, q, m, shift, offset):
    low, high = sorted((p, q))
    fits = all(-(2**63) <= x * m + offset < 2**63 for x in (low, high))

    def result():
        return rescale(
            IntervalDialect, [(Interval(low, high), np.int32(m))], exactly(offset), np.int32(shift), -(2**31), 2**31 - 1
        )

    if fits:
        ends = [min(max((x * m + offset) >> shift, -(2**31)), 2**31 - 1) for x in (low, high)]
        assert [result().low, result().high] == ends
    else:
        with pytest.raises(UnprovenError):
            result()


# ---- nodes -----------------------------------------------------------------------------------------------------


def linear(weight, low: int = 0, high: int = 255, dtype: str = "int32", **constants):
    """The proof of a linear layer y = sum w * x, rescaled by 1 (or as given)."""
    weight = np.array(weight, np.int8)
    co = len(weight)
    rescaling = {
        "multiplier": np.full(co, 2**30, np.int32),
        "offset": np.full(co, 2**29, np.int64),
        "shift": np.full(co, 30, np.int32),
    }
    attrs = dict(zip(("low", "high"), DTYPE_RANGE[dtype], strict=True))
    x = Value("x", ("n", weight.shape[1]), "uint8", low, high)
    return bounds("linear", (x,), attrs, {"weight": weight, **rescaling, **constants}, dtype)


def test_a_contraction_bounds_each_channel_by_its_own_weights():
    proof = linear([[127, -127, 1], [2, 2, 2]])
    assert (proof.low, proof.high) == (-127 * 255, 128 * 255)
    assert proof.accumulator_bits == 16


def test_a_contraction_uses_its_inputs_range():
    assert (linear([[3, -2]], low=10, high=20).low, linear([[3, -2]], low=10, high=20).high) == (-40, 60)


def test_every_partial_sum_is_bounded_not_only_the_whole():
    """100 * 200 - 100 * 200 is 0, but on the way the sum is 20000: products of either sign are summed apart."""
    proof = linear([[100, -100]], low=200, high=200)
    assert proof.low <= -20000 and proof.high >= 20000


def test_an_accumulator_that_needs_more_than_32_bits_is_refused_with_the_remedy():
    terms = 2**31 // (127 * 255) + 1
    with pytest.raises(UnprovenError, match=f"accumulator needs 33 bits, has 32; .*{terms} products"):
        linear(np.full((1, terms), 127))
    assert linear(np.full((1, terms - 1), 127)).accumulator_bits == 32


def test_an_offset_that_could_overflow_int64_is_refused():
    with pytest.raises(UnprovenError, match="needs 65 bits, has 64"):
        linear([[1]], offset=np.array([2**63 - 1]))


def test_a_result_that_its_dtype_cannot_hold_is_refused():
    x = Value("x", ("n", 4), "int16", -300, 300)
    constants = {"multiplier": np.int32(2**30), "offset": np.int64(2**29), "shift": np.int32(30)}
    constants = {k: np.asarray(v) for k, v in constants.items()}
    with pytest.raises(UnprovenError, match=r"\[-300, 300\], which uint8 cannot hold; clamp it"):
        bounds("requantize", (x,), {"low": -1000, "high": 1000}, constants, "uint8")


def test_padding_belongs_to_the_bounds():
    x = Value("x", ("n", 3, 3, 1), "uint8", 0, 10)
    pool = next(s for s in OPS["avg_pool2d"].samples(np.random.default_rng(0)) if any(s.attrs["padding"]))
    one = {"multiplier": np.int32(2**30), "offset": np.int64(0), "shift": np.int32(30), "pad_value": np.array([200])}
    constants = {k: np.asarray(v) for k, v in one.items()}
    assert bounds("avg_pool2d", (x,), dict(pool.attrs), constants, "uint8").high == 255
    moved = bounds("pad", (x,), {"padding": (1, 1, 1, 1)}, {"pad_value": np.array([200], np.uint8)}, "uint8")
    assert (moved.low, moved.high) == (0, 200)


def narrowed(value: Value, rng) -> Value:
    """The same with other bounds inside its own; a mask stays one, as its operations ask."""
    if value.name == "mask":
        return value
    low, high = sorted(rng.integers(value.low, value.high, 2, endpoint=True).tolist())
    return replace(value, low=low, high=high)


@pytest.mark.parametrize("name", OPS)
def test_narrower_inputs_never_widen_the_bounds_and_still_contain_the_results(name):
    rng = np.random.default_rng(3)
    for sample in OPS[name].samples(rng):
        narrow = [narrowed(value, rng) for value in sample.inputs]
        parts = {"dtype": sample.dtype, "attrs": sample.attrs, "constants": sample.constants}
        wide, node = make_node(name, "y", sample.inputs, **parts), make_node(name, "y", narrow, **parts)
        assert wide.output.low <= node.output.low and node.output.high <= wide.output.high
        shapes = [bind_shape(v.shape, {"n": 2, "s": 5}) for v in narrow]
        for low_or_high in ("low", "high", None):
            arrays = [
                np.full(shape, getattr(v, low_or_high)).astype(v.dtype)
                if low_or_high
                else rng.integers(v.low, v.high, shape, endpoint=True).astype(v.dtype)
                for v, shape in zip(narrow, shapes, strict=True)
            ]
            result = reference.run_node(node, arrays)
            assert node.output.low <= result.min() and result.max() <= node.output.high


# ---- rows, tokens, attention: with any constants -----------------------------------------------------------------

TEXT_OPS = (
    "curve",
    "differs",
    "embedding",
    "layernorm",
    "mean_tokens",
    "attention",
    "linear",
    "normalize_frames",
    "frame_mask",
)


def drawn(name: str, rng: np.random.Generator, wild: bool) -> tuple[tuple[Value, ...], dict]:
    """An instance of an operation with random bounds of its inputs; ``wild``: its rescale is anything at all."""
    samples = OPS[name].samples(rng)
    sample = samples[rng.integers(len(samples))]
    constants = dict(sample.constants)
    if wild:
        for key in ("multiplier", "residual_multiplier", "word_multiplier", "position_multiplier", "offset"):
            if key in constants:
                least, most = (-(2**31), 2**31) if key != "offset" else (-(2**62), 2**62)
                constants[key] = rng.integers(least, most, constants[key].shape).astype(constants[key].dtype)
        if "shift" in constants:
            constants["shift"] = rng.integers(1, 63, constants["shift"].shape).astype(np.int32)
    inputs = tuple(narrowed(value, rng) for value in sample.inputs)
    return inputs, {"dtype": sample.dtype, "attrs": sample.attrs, "constants": constants}


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(TEXT_OPS), st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from([1, 3, 20]))
def test_no_input_leaves_the_proven_bounds(name, seed, wild, tokens):
    """The reference in int32 and int64, where NumPy checks nothing, against the same in Python's integers."""
    rng = np.random.default_rng(seed)
    inputs, parts = drawn(name, rng, wild)
    try:
        node = make_node(name, "y", inputs, **parts)
    except UnprovenError:
        assert wild, "the samples themselves are proven"
        return
    sizes = {"n": 2, "s": tokens}
    for ends in (False, True):
        arrays = [
            (
                rng.choice([v.low, v.high], bind_shape(v.shape, sizes))
                if ends
                else rng.integers(v.low, v.high, bind_shape(v.shape, sizes), endpoint=True)
            ).astype(v.dtype)
            for v in inputs
        ]
        result = reference.run_node(node, arrays)
        exact = unbounded(node, *arrays)
        np.testing.assert_array_equal(result, exact.astype(np.int64))
        assert node.output.low <= result.min() and result.max() <= node.output.high


def sample_of(name: str, index: int = 0):
    return OPS[name].samples(np.random.default_rng(0))[index]


def proof_of(name: str, sample, **constants):
    constants = dict(sample.constants) | {key: np.asarray(value) for key, value in constants.items()}
    return bounds(name, sample.inputs, sample.attrs, constants, sample.dtype)


@pytest.mark.parametrize(
    ("name", "index", "widest"),
    [
        ("attention", 0, 255 * 128 * 512),  # the weighted sum: scores of 64 channels need 2**14 * 64 only
        ("layernorm", 0, 64 * 2**15),
        ("layernorm", 2, 768 * 2**15),
        ("mean_tokens", 0, 512 * 2**15),
        ("mean_tokens", 1, 512 * 255),
    ],
)
def test_the_widest_sum_is_reported(name, index, widest):
    """Of negative products, of which there may be one more than of positive ones."""
    assert proof_of(name, sample_of(name, index)).accumulator_bits == int(widest - 1).bit_length() + 1


def test_the_scores_are_the_widest_sum_of_short_texts():
    sample = sample_of("attention")
    short = replace(sample, attrs=dict(sample.attrs) | {"longest": 4})
    assert proof_of("attention", short).accumulator_bits == (64 * 128 * 128).bit_length() + 1


@pytest.mark.parametrize(
    ("name", "attrs", "constants", "says"),
    [
        ("attention", {"longest": 2**17}, {}, "a sum of up to 131072 values needs 33 bits, has 32"),
        ("attention", {}, {"offset": np.int64(2**63 - 1)}, "needs 65 bits, has 64"),
        (
            "attention",
            {},
            {"score_shift": np.int32(58), "score_offset": np.int64(0)},
            "of a masked score must be 0",
        ),
        ("attention", {"drop": 30}, {}, "largest score must be 255"),
        ("mean_tokens", {"longest": 2**17}, {}, "a sum of up to 131072 values needs 33 bits"),
        ("layernorm", {}, {"epsilon": np.int64(2**62)}, "needs 82 bits, has 64"),
        ("embedding", {}, {"offset": np.int64(2**63 - 1)}, "needs 65 bits, has 64"),
        ("curve", {}, {"curve": np.full((3, 32), 2**30, np.int32)}, "needs .* bits, has 32"),
    ],
)
def test_extreme_constants_are_refused(name, attrs, constants, says):
    sample = sample_of(name)
    with pytest.raises(UnprovenError, match=says):
        proof_of(name, replace(sample, attrs=dict(sample.attrs) | attrs), **constants)


@given(intervals(st.integers(0, 2**15 - 1)), st.integers(0, 12))
def test_low_bits(a, count):
    x, xs = a
    got = IntervalDialect.low_bits(x, count)
    kept = [v & ((1 << count) - 1) for v in xs]
    assert got.low <= min(kept) and max(kept) <= got.high
    assert x.low >> count != x.high >> count or {int(got.low), int(got.high)} <= set(kept)


@given(intervals(), st.integers(1, 600))
def test_a_sum_contains_every_partial_sum(a, terms):
    x, xs = a
    got = IntervalDialect().row_sum(x, terms)
    for count in (1, terms):
        assert got.low <= min(xs) * count and max(xs) * count <= got.high


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("make", [random_graph, random_text_graph])
def test_whole_networks_stay_within_their_bounds(make, seed):
    graph, rng = make(seed), np.random.default_rng(seed)
    (x,) = graph.inputs
    shape = bind_shape(x.shape, {"n": 3, "s": 11})
    ends = rng.choice([x.low, x.low, x.high, x.high, 17], shape).astype(x.dtype)

    def within(name, array):
        value = graph.values[name]
        assert value.low <= array.min() and array.max() <= value.high, name

    reference.run(graph, ends, observe=within)
