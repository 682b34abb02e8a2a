"""Kernels of text: rows, tokens and all else over two symbolic axes, at many sizes, give the reference's integers."""

import numpy as np
import pytest
from compiled import assert_same, here, loaded
from row_graphs import (
    LONGEST,
    WORD,
    Net,
    drawn,
    embedding,
    ends,
    extreme_rows,
    mean,
    normalisation,
    normalisations,
    rescaling,
    texts,
)
from text_graphs import random_text_graph, sentences

from intq.graph import Graph, make_node
from intq.kernels import lower, runtime
from intq.kernels.library import kernel_key
from intq.value import Value


@pytest.mark.parametrize("isa", here())
def test_layernorm_of_any_width_over_any_number_of_rows(isa, tmp_path):
    rng = np.random.default_rng(3)
    graph = normalisations(rng)
    network = loaded(graph, isa, tmp_path)
    for n, s in [(1, 1), (3, 11), (1, 16), (2, 17)]:
        assert_same(graph, network, *drawn(graph, n, s, rng))
    assert_same(graph, network, *extreme_rows(graph, rng))


@pytest.mark.parametrize("isa", here())
def test_embeddings_and_means_of_any_text(isa, tmp_path):
    rng = np.random.default_rng(5)
    graph = texts(rng)
    network = loaded(graph, isa, tmp_path)
    for n, s in [(1, 1), (1, 8), (5, 9), (2, 23), (1, LONGEST)]:
        inputs = drawn(graph, n, s, rng)
        assert_same(graph, network, *inputs)
    inputs = [np.full_like(x, v.low) for v, x in zip(graph.inputs, inputs, strict=True)]  # no token at all
    assert_same(graph, network, *inputs)


def over_tokens(rng) -> Graph:
    """Pointwise operations and movements over samples and tokens."""
    net, row = Net(), ("n", "s", 24)
    for dtype, source, shift, shape in [
        ("uint8", "int16", 38, (24,)),
        ("int16", "uint8", 24, ()),
        ("uint8", "int16", 38, ()),
    ]:
        net.node(
            "requantize", [net.input(row, source)], dtype, ends(dtype), rescaling(rng, ("multiplier",), shift, shape)
        )
    names = ("multiplier_a", "multiplier_b")
    net.node(
        "add", [net.input(row, "int16"), net.input(row, "uint8")], "int16", ends("int16"), rescaling(rng, names, 31)
    )
    for other in (("n", 1, 24), ("n", "s", 1)):
        attrs = {"zero_point_a": 7, "zero_point_b": 3, **ends("uint8")}
        pair = [net.input(row, "uint8"), net.input(other, "uint8")]
        net.node("mul", pair, "uint8", attrs, rescaling(rng, ("multiplier",), 38))
    table = rng.integers(*WORD, 256).astype(np.int16)
    net.node("lookup", [net.input(row, "uint8")], "int16", {"function": "random"}, {"table": table})
    net.node("differs", [net.input(("n", "s"), "int32", 0, 3)], "uint8", {"value": 2}, {})
    first = net.node("slice", [net.input(row, "int16")], "int16", {"axis": 1, "start": 0, "stop": 1, "step": 1}, {})
    net.node("reshape", [first], "int16", {"shape": ("n", 24)}, {})
    net.node("slice", [net.input(row, "uint8")], "uint8", {"axis": 2, "start": 1, "stop": 24, "step": 5}, {})
    net.node("concat", [net.input(row, "int16"), net.input(("n", "s", 7), "int16")], "int16", {"axis": 2}, {})
    for perm in [(0, 2, 1, 3), (0, 3, 2, 1)]:
        net.node("transpose", [net.input(("n", "s", 5, 6), "int16")], "int16", {"perm": perm}, {})
    return net.graph()


@pytest.mark.parametrize("isa", here())
def test_every_other_operation_over_tokens(isa, tmp_path):
    rng = np.random.default_rng(6)
    graph = over_tokens(rng)
    network = loaded(graph, isa, tmp_path)
    for n, s in [(1, 1), (1, 13), (3, 1), (4, 6), (2, 31)]:
        assert_same(graph, network, *drawn(graph, n, s, rng))


@pytest.mark.parametrize("isa", here())
def test_random_text_networks(isa, tmp_path):
    seed = here().index(isa)
    graph = random_text_graph(seed, layers=1)
    network = loaded(graph, isa, tmp_path)
    for n, s in [(1, 1), (3, 24), (2, 11)]:
        assert_same(graph, network, sentences(n, s, seed))


def test_two_threads_give_what_one_gives(tmp_path):
    rng, net = np.random.default_rng(9), Net()
    normalisation(net, rng, ("n", "s", 96), "uint8")
    embedding(net, rng, 40, "counted", 2, 2, 1)
    mean(net, rng, 200, "int16", "int16")
    graph = net.graph()
    network = loaded(graph, here()[0], tmp_path, 2)
    for n, s in [(1, 1), (3, 37)]:
        inputs = drawn(graph, n, s, rng)
        assert_same(graph, network, *inputs, runs=5)


def test_alike_layers_share_a_kernel(tmp_path):
    """Their constants, scalars included, are given to it when it runs."""
    net, rng = Net(), np.random.default_rng(7)
    for _ in range(3):
        normalisation(net, rng, ("n", "s", 40), "uint8")
    for _ in range(3):
        x = net.input(("n", "s", 40), "int16")
        net.node("requantize", [x], "uint8", ends("uint8"), rescaling(rng, ("multiplier",), int(rng.integers(36, 40))))
    graph = net.graph()
    library = lower.build(graph, "cpu", "plain")
    assert len(set(library.kernels.values())) == 2
    network = runtime.load(graph, library.keep(tmp_path), 1)
    assert_same(graph, network, *drawn(graph, 2, 5, rng))


def test_a_kernel_depends_on_whether_shifts_reach_the_high_word():
    rng, x = np.random.default_rng(8), Value("x", ("n", 4), "int16", *WORD)
    keys = {
        kernel_key(
            make_node(
                "requantize",
                "y",
                [x],
                dtype="int16",
                attrs=ends("int16"),
                constants=rescaling(rng, ("multiplier",), shift),
            ),
            (x,),
        )
        for shift in (31, 32, 33)
    }
    assert len(keys) == 2
