"""GPU kernels of text: rows, tokens, embeddings and distances of any size give the reference's integers."""

from dataclasses import replace
from functools import cache

import numpy as np
from cuda_nodes import ORDERS, Nodes, assert_integers_alone
from row_graphs import LONGEST, Net, drawn, ends, extreme_rows, normalisation, normalisations, rescaling, texts

from intq.ops.attention import ZERO_POINT


@cache
def layernorms() -> Nodes:
    return Nodes(normalisations(np.random.default_rng(3)))


def test_layernorm_of_any_width_over_any_number_of_rows():
    rng = np.random.default_rng(4)
    for n, s in [(1, 1), (3, 11), (1, 16), (2, 17)]:
        layernorms().assert_same(*drawn(layernorms().graph, n, s, rng))
    for order in ORDERS:
        layernorms().assert_same(*extreme_rows(layernorms().graph, rng), order=order)


def test_layernorm_of_the_most_channels():
    rng, net = np.random.default_rng(5), Net()
    for size in (8188, 8192):
        normalisation(net, rng, ("n", "s", size), "uint8")
    nodes = Nodes(net.graph())
    nodes.assert_same(*drawn(nodes.graph, 1, 5, rng))
    nodes.assert_same(*(np.full((1, 1, size), -(2**15), np.int16) for size in (8188, 8192)))


@cache
def of_texts() -> Nodes:
    return Nodes(texts(np.random.default_rng(6)))


def test_embeddings_and_means_of_any_text():
    rng = np.random.default_rng(7)
    for n, s in [(1, 1), (1, 8), (5, 9), (2, 33), (1, LONGEST)]:
        inputs = drawn(of_texts().graph, n, s, rng)
        of_texts().assert_same(*inputs)
    for order in ORDERS:
        of_texts().assert_same(*drawn(of_texts().graph, 2, 35, rng), order=order)
    lowest = [np.full_like(x, v.low) for v, x in zip(of_texts().graph.inputs, inputs, strict=True)]
    of_texts().assert_same(*lowest)  # no token at all


def distances(net: Net, rng, heads: int, size: int, most: int = LONGEST) -> None:
    q = replace(net.input(("n", "s", heads * size), "uint8"), scale=0.05, zero_point=ZERO_POINT, longest=most)
    net.inputs[-1] = q
    table = rng.integers(-127, 128, (heads, 2 * most - 1, size)).astype(np.int8)
    constants = {"distances": table, **rescaling(rng, ("multiplier",), 31)}
    net.node("relative", [q], "int32", {"longest": most, **ends("int32")}, constants)


@cache
def relatives() -> Nodes:
    """Channels in whole words, chunks and steps, and not; more channels than a step has."""
    rng, net = np.random.default_rng(8), Net()
    for heads, size in [(1, 1), (2, 37), (3, 44), (2, 64), (1, 96), (2, 130)]:
        distances(net, rng, heads, size)
    return Nodes(net.graph())


def test_distances_of_any_number_of_tokens():
    rng = np.random.default_rng(9)
    for n, s in [(1, 1), (2, 31), (1, 33), (3, LONGEST)]:
        relatives().assert_same(*drawn(relatives().graph, n, s, rng))
    for order in ORDERS:
        relatives().assert_same(*drawn(relatives().graph, 1, 35, rng), order=order)


def test_distances_of_more_tokens_than_a_block_has():
    rng, net = np.random.default_rng(10), Net()
    distances(net, rng, 2, 16, most=150)
    nodes = Nodes(net.graph())
    for s in (65, 129, 150):
        nodes.assert_same(*drawn(nodes.graph, 1, s, rng))


def test_the_machine_code():
    for nodes in (layernorms(), of_texts(), relatives()):
        assert_integers_alone(nodes.facts())
