"""Attention's kernel gives the reference's integers, for any number of tokens, head size and mask."""

import numpy as np
import pytest
from compiled import assert_same, here

from intq.curves import fit
from intq.fixedpoint import dyadic, offset_of
from intq.graph import Graph, make_node
from intq.kernels import audit, lower, runtime
from intq.kernels.cpu import heads
from intq.ops.attention import RECIPROCAL_BITS, SHARE_SHIFT
from intq.value import DTYPE_RANGE, Value, bind_shape

LONGEST = 512
TOKENS = (1, 2, 5, 16, 17, 31, 64, 100, 128, 197, 384, 512)
UINT8 = ("uint8", 117, 1.3)  # the result's type, zero point, and units of it for one of v
INT16 = ("int16", 0, 200.0)


def attention(number, count, size, step=3e-3, tokens="s", masked=True, result=UINT8, curve="uint8"):
    """(inputs, node): ``count`` heads of ``size`` channels; a unit of a score is ``step`` in the exponent.

    ``curve``: the type that the exponential's coefficients are made for; those for "int16" do not fit in words.
    """
    shape, (dtype, zero_point, ratio) = ("n", tokens, count * size), result
    inputs = tuple(Value(f"{x}{number}", shape, "uint8", 0, 255, 0.05, 128, longest=LONGEST) for x in "qkv")
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
    return inputs, make_node("attention", f"y{number}", inputs, dtype=dtype, attrs=attrs, constants=constants)


def side_by_side(*parts) -> Graph:
    """One network of several attentions: it compiles once."""
    return Graph(tuple(x for xs, _ in parts for x in xs), tuple(n for _, n in parts), tuple(n.name for _, n in parts))


MANY = side_by_side(
    attention(0, 3, 64),
    attention(1, 3, 32, 1e-3, masked=False, result=INT16),
    attention(2, 2, 96, 4e-4, curve="int16"),
    attention(3, 3, 36, 1e-2),
    attention(4, 1, 5, 1e-7),  # scores so fine that no distance reaches the curve's end
    attention(5, 1, 128, 0.5),  # and so coarse that distances need 64 bits
    attention(6, 3, 64, tokens=197, masked=False),
)


@pytest.fixture(scope="module", params=here())
def library(request, tmp_path_factory):
    return lower.build(MANY, "cpu", request.param).keep(tmp_path_factory.mktemp(request.param))


def drawn(batch: int, tokens: int, rng: np.random.Generator, draw: str = "all") -> list[np.ndarray]:
    """Inputs; ``draw``: "all" of the range, only its "ends", or a mask that leaves "one" token (which may be none)."""
    arrays = []
    for value in MANY.inputs:
        shape = bind_shape(value.shape, {"n": batch, "s": tokens})
        array = rng.integers(value.low, value.high, shape, endpoint=True)
        if draw == "ends":
            array = np.where(array > (value.low + value.high) // 2, value.high, value.low)
        if draw == "one" and value.name.startswith("mask"):
            array = np.arange(tokens) == rng.integers(-1, tokens, (batch, 1))
        arrays.append(array.astype(value.dtype))
    return arrays


def test_every_way_to_compute_weights_is_tested():
    ways = [heads.arithmetic(node) for node in MANY.nodes]
    assert ways == ["words", "words", "narrow", "words", "words", "wide", "words"]


def test_attention_of_any_shape(library):
    rng = np.random.default_rng(3)
    for threads, tokens in ((1, TOKENS[::2]), (2, TOKENS)):
        network = runtime.load(MANY, library, threads)
        for s in tokens:
            assert_same(MANY, network, *drawn(1 + (s < 200), s, rng))
        for draw in ("ends", "one"):
            for s in (7, 65, 130):
                assert_same(MANY, network, *drawn(2, s, rng, draw))


def test_no_floating_point(library):
    assert set(audit.float_instructions(library).values()) == {0}


def test_a_sentence_alone_and_in_a_padded_batch(library):
    network, rng = runtime.load(MANY, library, 2), np.random.default_rng(4)
    masked = [i for i, node in enumerate(MANY.nodes) if len(node.inputs) == 4]
    for _ in range(6):
        lengths = rng.integers(1, 80, 4)
        tokens = int(lengths.max()) + 3
        mask = (np.arange(tokens) < lengths[:, None]).astype(np.uint8)
        inputs = [
            mask if v.name.startswith("mask") else x
            for v, x in zip(MANY.inputs, drawn(len(lengths), tokens, rng), strict=True)
        ]
        together = network(*inputs)
        for i, length in enumerate(lengths):
            own = network(*(x[i : i + 1, :length] if x.shape[1] == tokens else x[i : i + 1] for x in inputs))
            for each in masked:
                np.testing.assert_array_equal(own[each][0], together[each][i, :length])


def test_threads_do_not_step_on_each_other(library):
    network, rng = runtime.load(MANY, library, 2), np.random.default_rng(5)
    for tokens in (1, 33, 128):
        assert_same(MANY, network, *drawn(2, tokens, rng), runs=20)
