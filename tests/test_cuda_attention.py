"""Attention on a GPU gives the reference's integers, for any number of tokens, head size, mask and bias."""

from functools import cache

import numpy as np
import pytest
from attentions import INT16, attention, drawn, side_by_side
from cuda_nodes import ORDERS, Nodes

from intq.errors import IntqError
from intq.graph import Graph
from intq.kernels import lower
from intq.kernels.cuda import sass
from intq.kernels.reach import reach_of

ARCHS = ("sm_75", "sm_80")  # products of 8 x 8 and of 16 x 8
MANY = side_by_side(
    attention(0, 3, 64),
    attention(1, 2, 32, 1e-3, masked=False, result=INT16),
    attention(2, 1, 80, 4e-4, curve="int16", bias=2**19),
    attention(3, 2, 36, 1e-2, masked=False, bias=1000),
    attention(4, 2, 5, 1e-7),  # scores so fine that no distance reaches the curve's end
    attention(5, 1, 130, 0.5),  # and so coarse that distances need 64 bits; channels of two blocks
    attention(6, 1, 18, tokens=21),
)
ROBERTA = side_by_side(attention(0, 12, 64))
LARGE = side_by_side(attention(0, 1, 640))


@cache
def network(graph: str, arch: str):
    return Nodes(globals()[graph], arch)


def test_both_ways_to_compute_weights_are_tested():
    assert [reach_of(node).narrow for node in MANY.nodes] == [True] * 5 + [False, True]


@pytest.mark.parametrize("arch", ARCHS)
def test_attention_of_any_shape(arch):
    many, rng = network("MANY", arch), np.random.default_rng(3)
    for i, tokens in enumerate((1, 2, 16, 33, 64, 65, 130)):
        many.assert_same(*drawn(MANY, 1 + (tokens < 20), tokens, rng), order=ORDERS[i % len(ORDERS)])
    for draw in ("ends", "one"):
        for tokens, order in zip((7, 65), ORDERS, strict=False):
            many.assert_same(*drawn(MANY, 2, tokens, rng, draw), order=order)


def test_many_tokens():
    rng, (inputs, node) = np.random.default_rng(4), attention(0, 1, 32)
    graph = Graph(inputs, (node,), (node.name,))
    for draw in ("all", "ends"):
        Nodes(graph, "sm_75").assert_same(*drawn(graph, 1, 512, rng, draw))


def test_large_heads():
    rng = np.random.default_rng(5)
    for tokens in (9, 70):
        network("LARGE", "sm_75").assert_same(*drawn(LARGE, 1, tokens, rng))


def test_heads_that_are_too_large():
    inputs, node = attention(0, 1, 1400)
    with pytest.raises(IntqError, match=r"heads have 1400 channels, .* use more heads, of 1024 channels at most"):
        lower.build(Graph(inputs, (node,), (node.name,)), "nvidia/nvidia-t4")


def machine_code(graph: Graph, arch: str) -> dict[str, sass.Facts]:
    library = lower.build(graph, f"cuda -arch={arch}")
    facts = sass.facts(library.cubin)
    return {node.name: facts[f"{library.kernels[node.name]}_kernel"] for node in graph.nodes}


def test_machine_code():
    """Products of int8 on tensor cores in the inner loop, no floating point, no spills."""
    for name, fact in machine_code(MANY, "sm_75").items():
        assert fact.int8 and fact.ldsm and not fact.floats, name
        assert fact.int_in_loop or name == "y6", "21 keys need no loop"
        assert fact.spills == fact.local == 0 and fact.shared <= 48 * 1024, name


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90"])
def test_machine_code_of_roberta(arch):
    """Four blocks of 128 threads fit a multiprocessor, which has 65536 registers; vectors are loaded whole."""
    (fact,) = machine_code(ROBERTA, arch).values()
    assert fact.int_in_loop and not fact.floats and fact.spills == fact.local == 0
    assert fact.registers <= 128 and fact.shared <= 16 * 1024 and fact.loads[128]
