"""CUDA kernels give the reference's integers: every operation, convolutions and products of hundreds of shapes."""

from dataclasses import replace

import numpy as np
import pytest
from contractions import convolution, convolutions_over_frames, linears, many_weights, shapes
from cuda_nodes import ORDERS, Nodes, assert_integers_alone
from graphs import every_operation, narrowed, random_graph

from intq.graph import Graph, Node
from intq.kernels import lower
from intq.kernels.cuda import plan, sass
from intq.kernels.cuda.plan import TILES, is_depthwise, of_node
from intq.kernels.cuda.writers import WRITERS
from intq.ops import OPS
from intq.value import bind_shape

ARCHS = ("sm_75", "sm_80", "sm_90")  # products of 8 x 8, of 16 x 8, and without those of 4 bits


def drawn(graph: Graph, n: int, s: int, rng: np.random.Generator, end: str = "") -> list[np.ndarray]:
    """Random inputs, or such as are all at one end of their range."""
    sizes = {"n": n, "s": s}
    return [
        rng.integers(
            getattr(v, end or "low"), getattr(v, end or "high"), bind_shape(v.shape, sizes), endpoint=True
        ).astype(v.dtype)
        for v in graph.inputs
    ]


def test_every_operation_has_a_kernel():
    moves = {name for name, op in OPS.items() if op.loop == "move"} - {"reshape"}
    assert set(WRITERS) == {op.loop for op in OPS.values()} - {"move"} | moves


@pytest.mark.parametrize("arch", ARCHS)
def test_every_operation_equals_the_reference(arch):
    ops = OPS if arch == "sm_75" else ("linear",)
    graph, rng = every_operation(ops), np.random.default_rng(1)
    network = Nodes(graph, arch)
    for n, s, order in zip((1, 3, 2), (1, 17, 38), ORDERS, strict=False):
        network.assert_same(*drawn(graph, n, s, rng), order=order)
    for end in ("low", "high"):
        network.assert_same(*drawn(graph, 2, 5, rng, end))


def random_convolutions(rng: np.random.Generator, count: int) -> Graph:
    parts = []
    for i in range(count):
        kernel, dilation = (tuple(int(v) for v in rng.integers(1, most, 2)) for most in (5, 3))
        h, w = (int(d * (k - 1) + 1 + rng.integers(0, 12)) for k, d in zip(kernel, dilation, strict=True))
        groups = int(rng.choice([1, 1, 1, 2, 3]))
        ci, co = (groups * int(rng.choice([1, 2, 3, 4, 8, 12, 16, 17, 32, 48, 65])) for _ in range(2))
        stride, padding = (tuple(int(v) for v in rng.integers(low, 3, n)) for low, n in ((1, 2), (0, 4)))
        parts.append(convolution(i, rng, h, w, ci, co, kernel, stride, padding, dilation, groups))
    return Graph(tuple(x for xs, _ in parts for x in xs), tuple(n for _, n in parts), tuple(n.name for _, n in parts))


def with_padding(node: Node, most: int) -> Node:
    """The same with a padding that is within ``most``."""
    pad = node.constants.get("pad_value")
    return node if pad is None else replace(node, constants={**node.constants, "pad_value": np.minimum(pad, most)})


@pytest.mark.parametrize(
    ("make", "sizes"),
    [
        (shapes, [(1, 1), (3, 1)]),
        (many_weights, [(1, 1), (2, 1)]),
        (lambda rng: random_convolutions(rng, 40), [(1, 1), (2, 1), (5, 1)]),
        (convolutions_over_frames, [(1, 1), (3, 31), (1, 33), (2, 140), (1, 7), (4, 2), (1, 64)]),
        (linears, [(1, s) for s in (1, 2, 5, 31, 64, 129, 291)] + [(n, 7) for n in range(2, 18)]),
    ],
    ids=["edges", "many weights", "random", "frames", "linear"],
)
@pytest.mark.parametrize("arch", ["sm_75"])
def test_shapes(make, sizes, arch):
    """Of convolutions and of products more than 200 each; some layers have 4 and some 2 bits."""
    rng = np.random.default_rng(17)
    graph = make(rng)
    layers = [node.name for node in graph.nodes if "weight" in node.constants]
    graph = narrowed(graph, {name: (4, 8, 2)[i % 3] for i, name in enumerate(layers) if i % 3 != 1})
    nibbles = {node.inputs[0] for node in graph.nodes if node.attrs.get("weight_bits") == 4}
    inputs = tuple(replace(v, high=15) if v.name in nibbles else v for v in graph.inputs)
    nodes = [
        with_padding(node, 15 if node.inputs[0] in nibbles and i % 2 else 255) for i, node in enumerate(graph.nodes)
    ]
    graph = Graph(inputs, tuple(nodes), graph.outputs)
    network = Nodes(graph, arch)
    for (n, s), order in zip(sizes, ORDERS * len(sizes), strict=False):
        network.assert_same(*drawn(graph, n, s, rng), order=order)
    network.assert_same(*drawn(graph, 1, 9, rng, "high"))


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("arch", ["sm_75", "sm_80"])
def test_every_tile(tile, arch, monkeypatch):
    """Of 8 and of 4 bits, with rows and columns that fill a tile and that do not."""
    monkeypatch.setattr(plan, "tile_for", lambda *_: tile)
    rng = np.random.default_rng(3)
    (x,), wide = convolution(0, rng, 9, 8, 16, 150, (3, 3), (1, 1), (1, 1, 1, 1))
    (few,), narrow = convolution(1, rng, 5, 4, 64, 20, (2, 3), (1, 1), (0, 0, 0, 0))
    graph = Graph((x, replace(few, high=15)), (wide, with_padding(narrow, 15)), (wide.name, narrow.name))
    network = Nodes(narrowed(graph, {narrow.name: 4}), arch)
    network.assert_same(*drawn(graph, 3, 1, rng))
    assert {of_node(arch, node, x).tile for node in graph.nodes} == {tile}


def test_random_networks():
    graph = random_graph(11)
    Nodes(graph).assert_same(*drawn(graph, 3, 1, np.random.default_rng(2)))


@pytest.mark.parametrize("arch", ARCHS)
def test_machine_code(arch):
    """No floating point, no spilled registers, and products of integers on tensor cores in every contraction."""
    graph = every_operation(OPS if arch == "sm_75" else ("linear",))
    library = lower.build(graph, f"cuda -arch={arch}")
    facts = sass.facts(library.cubin)
    assert_integers_alone(facts)
    for node in graph.nodes:
        if "weight" in node.constants and not is_depthwise(of_node(arch, node, graph.values[node.inputs[0]])):
            fact = facts[f"{library.kernels[node.name]}_kernel"]
            assert fact.int8 or fact.int4, node.name
    assert any(fact.int4 for fact in facts.values()) == (arch != "sm_90")
