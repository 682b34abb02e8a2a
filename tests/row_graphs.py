"""Graphs of operations over rows and tokens, side by side, each with inputs of its own; and numbers that they take."""

import numpy as np

from intq.graph import Graph, make_node
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


def extreme_rows(graph: Graph, rng) -> list[np.ndarray]:
    """int16 rows without any spread, with all that there is, and of every level between; (3, 6) of them."""
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
    return rows


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


def texts(rng) -> Graph:
    """Embeddings and means of tokens."""
    net = Net()
    embedding(net, rng, 64, "counted", 1, NO_TOKEN, 1)
    embedding(net, rng, 37, "counted", 3, 2, 0)
    embedding(net, rng, 100, "index", 2, 5, 3)
    mean(net, rng, 384, "int16", "int16")
    mean(net, rng, 71, "uint8", "int32")
    return net.graph()
