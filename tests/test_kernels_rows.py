"""Kernels of text: rows, tokens and all else over two symbolic axes, at many sizes, give the reference's integers."""

import numpy as np
import pytest
from compiled import assert_same, here, loaded
from text_graphs import random_text_graph, sentences

from intq.graph import Graph, make_node
from intq.kernels import lower, runtime
from intq.kernels.library import kernel_key
from intq.ops.embedding import NO_TOKEN
from intq.value import DTYPE_RANGE, Value, bind_shape

WORD = (-(2**15), 2**15 - 1)
LONGEST = 64


class Net:
    """A network of operations side by side, each with inputs of its own."""

    def __init__(self) -> None:
        self.inputs: list[Value] = []
        self.nodes: list = []

    def input(self, shape: tuple, dtype: str, low: int | None = None, high: int | None = None) -> Value:
        least, most = DTYPE_RANGE[dtype]
        low, high = least if low is None else low, most if high is None else high
        self.inputs.append(Value(f"x{len(self.inputs)}", shape, dtype, low, high, longest=LONGEST))
        return self.inputs[-1]

    def node(self, op: str, inputs: list[Value], dtype: str, attrs: dict, constants: dict) -> Value:
        name = f"{op}{len(self.nodes)}"
        self.nodes.append(make_node(op, name, inputs, dtype=dtype, attrs=attrs, constants=constants))
        return self.nodes[-1].output

    def graph(self, outputs: tuple[str, ...] = ()) -> Graph:
        return Graph(tuple(self.inputs), tuple(self.nodes), outputs or tuple(node.name for node in self.nodes))


def drawn(graph: Graph, n: int, s: int, rng: np.random.Generator) -> list[np.ndarray]:
    shapes = [bind_shape(value.shape, {"n": n, "s": s}) for value in graph.inputs]
    return [
        rng.integers(v.low, v.high, shape, endpoint=True).astype(v.dtype)
        for v, shape in zip(graph.inputs, shapes, strict=True)
    ]


def rescaling(rng, names, shift: int, shape=()) -> dict:
    constants = {name: rng.integers(2**30, 2**31, shape).astype(np.int32) for name in names}
    zero = rng.integers(0, 200, shape).astype(np.int64)
    return constants | {
        "offset": (zero << shift) + np.int64(1 << (shift - 1)),
        "shift": np.full(shape, shift, np.int32),
    }


def ends(dtype: str) -> dict:
    return dict(zip(("low", "high"), DTYPE_RANGE[dtype], strict=True))


def normalisation(net: Net, rng, shape: tuple, dtype: str) -> Value:
    size = shape[-1]
    shift = 44 if dtype == "uint8" else 37
    constants = rescaling(rng, ("multiplier",), shift, (size,))
    constants["multiplier"] *= rng.choice([-1, 1], size).astype(np.int32)
    constants["epsilon"] = np.int64(size * size * rng.integers(0, 50)).reshape(())
    return net.node("layernorm", [net.input(shape, "int16")], dtype, {"size": size, **ends(dtype)}, constants)


def normalisations(rng) -> Graph:
    net = Net()
    for size in (2, 37, 64, 101, 770):
        normalisation(net, rng, ("n", "s", size), "uint8" if size % 2 else "int16")
    normalisation(net, rng, ("n", 5, 3, 96), "uint8")
    return net.graph()


@pytest.mark.parametrize("isa", here())
def test_layernorm_of_any_width_over_any_number_of_rows(isa, tmp_path):
    rng = np.random.default_rng(3)
    graph = normalisations(rng)
    network = loaded(graph, isa, tmp_path)
    for n, s in [(1, 1), (3, 11), (1, 16), (2, 17)]:
        assert_same(graph, network, *drawn(graph, n, s, rng))
    rows = []
    for value in graph.inputs:
        shape = bind_shape(value.shape, {"n": 3, "s": 6})
        x = rng.normal(size=shape) * 4.0 ** rng.integers(0, 8, (*shape[:-1], 1))
        x = np.clip(np.rint(x), *WORD)
        x[0, 0], x[0, 1], x[0, 2] = WORD[0], WORD[1], 0  # no spread: squares add up to 2**31 in pairs
        x[1, 0, ..., ::2], x[1, 0, ..., 1::2] = WORD  # all the spread there is
        x[1, 1], x[1, 1, ..., 0] = 0, WORD[1]  # one channel that stands out
        x[1, 2], x[1, 2, ..., -1] = WORD[0], WORD[1]
        rows.append(x.astype(np.int16))
    assert_same(graph, network, *rows)


def embedding(net: Net, rng, channels: int, positions: str, segments: int, separator: int, padding: int) -> Value:
    scalars = rescaling(rng, ("position_multiplier", "segment_multiplier"), 30)
    constants = {
        "word": rng.integers(-127, 128, (12, channels)).astype(np.int8),
        "word_multiplier": rng.integers(2**29, 2**31, 12).astype(np.int32),
        "position": rng.integers(-3000, 3000, (LONGEST + padding + 1, channels)).astype(np.int16),
        "segment": rng.integers(-3000, 3000, (segments, channels)).astype(np.int16),
        **scalars,
    }
    attrs = {"positions": positions, "padding": padding, "separator": separator, **ends("int16")}
    return net.node("embedding", [net.input(("n", "s"), "int32", 0, 11)], "int16", attrs, constants)


def mean(net: Net, rng, channels: int, source: str, dtype: str) -> Value:
    x, mask = net.input(("n", "s", channels), source), net.input(("n", "s"), "uint8", 0, 1)
    attrs = {"longest": LONGEST, **dict(zip(("low", "high"), WORD, strict=True))}
    return net.node("mean_tokens", [x, mask], dtype, attrs, rescaling(rng, ("multiplier",), 30))


@pytest.mark.parametrize("isa", here())
def test_embeddings_and_means_of_any_text(isa, tmp_path):
    rng, net = np.random.default_rng(5), Net()
    embedding(net, rng, 64, "counted", 1, NO_TOKEN, 1)
    embedding(net, rng, 37, "counted", 3, 2, 0)
    embedding(net, rng, 100, "index", 2, 5, 3)
    mean(net, rng, 384, "int16", "int16")
    mean(net, rng, 71, "uint8", "int32")
    graph = net.graph()
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
