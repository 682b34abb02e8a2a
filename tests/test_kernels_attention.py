"""Attention's kernel gives the reference's integers, for any number of tokens, head size and mask."""

import numpy as np
import pytest
from attentions import INT16, attention, drawn, side_by_side
from compiled import assert_same, here

from intq.kernels import audit, lower, runtime
from intq.kernels.cpu import heads

TOKENS = (1, 2, 5, 16, 17, 31, 64, 100, 128, 197, 384, 512)

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


def test_every_way_to_compute_weights_is_tested():
    ways = [heads.arithmetic(node) for node in MANY.nodes]
    assert ways == ["words", "words", "narrow", "words", "words", "wide", "words"]


def test_attention_of_any_shape(library):
    rng = np.random.default_rng(3)
    for threads, tokens in ((1, TOKENS[::2]), (2, TOKENS)):
        network = runtime.load(MANY, library, threads)
        for s in tokens:
            assert_same(MANY, network, *drawn(MANY, 1 + (s < 200), s, rng))
        for draw in ("ends", "one"):
            for s in (7, 65, 130):
                assert_same(MANY, network, *drawn(MANY, 2, s, rng, draw))


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
            for v, x in zip(MANY.inputs, drawn(MANY, len(lengths), tokens, rng), strict=True)
        ]
        together = network(*inputs)
        for i, length in enumerate(lengths):
            own = network(*(x[i : i + 1, :length] if x.shape[1] == tokens else x[i : i + 1] for x in inputs))
            for each in masked:
                np.testing.assert_array_equal(own[each][0], together[each][i, :length])


def test_threads_do_not_step_on_each_other(library):
    network, rng = runtime.load(MANY, library, 2), np.random.default_rng(5)
    for tokens in (1, 33, 128):
        assert_same(MANY, network, *drawn(MANY, 2, tokens, rng), runs=20)
