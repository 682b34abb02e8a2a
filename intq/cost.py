"""What layers and networks cost at a precision: bytes, bit operations, latency and the memory of activations.

    BOPS = multiplications x bits of the weights x bits of the inputs         (HAWQ-V3, Yao et al. 2021)

so 8 bits by 8 cost 64 for each multiplication and 4 bits by 4 cost 16. The bytes are those of the artifact: weights
packed to their bits, and for each output channel what rescales its sum.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intq.documents import number, read_document, table, text, whole, write_document
from intq.errors import IntqError
from intq.graph import CONSTANT_DTYPES, Graph, Node
from intq.value import Value, bind_shape

CONTRACTIONS = frozenset({"conv1d", "conv2d", "linear"})
RESCALE_BYTES = 8 + 4 + 1  # an output channel's offset (int64), multiplier (int32) and shift, as artifacts keep them
DTYPE_BYTES = {"uint8": 1, "int8": 1, "int16": 2, "int32": 4}

Bits = tuple[int, int]  # of the weights, of the inputs


@dataclass(frozen=True)
class Geometry:
    """A layer, whatever its bits: ``macs`` multiplications for one input, and the ``shapes`` of its weights.

    Weights have their output channels first. A layer that a network uses twice has two shapes: each use is folded and
    rounded with what surrounds it, so an artifact holds its weights twice.
    """

    macs: int
    shapes: tuple[tuple[int, ...], ...]

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def channels(self) -> int:
        return sum(shape[0] for shape in self.shapes)


def weight_bytes(parameters: int, bits: int) -> int:
    """Bytes of so many weights, packed: two to a byte of 4 bits, four of 2."""
    return -(-parameters * bits // 8)


def layer_bytes(layer: Geometry, weight_bits: int) -> int:
    """Bytes of a layer: its packed weights, and of each output channel what rescales its sum."""
    return weight_bytes(layer.parameters, weight_bits) + RESCALE_BYTES * layer.channels


def layer_bops(layer: Geometry, weight_bits: int, input_bits: int) -> int:
    """Bit operations of a layer for one input."""
    return layer.macs * weight_bits * input_bits


# ---- a whole integer network -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Product:
    """A node that multiplies: ``macs`` multiplications of ``weight_bits`` by ``input_bits``."""

    node: str
    source: str
    macs: int
    weight_bits: int
    input_bits: int

    @property
    def bops(self) -> int:
        return self.macs * self.weight_bits * self.input_bits


@dataclass(frozen=True)
class NetworkCost:
    """What a network costs for one input: bytes of its constants, multiplications, BOPS, peak bytes of its values."""

    size: int
    macs: int
    bops: int
    memory: int


def products(graph: Graph, sizes: Mapping[str, int]) -> tuple[Product, ...]:
    """The multiplications of a network's layers and attention, for one input.

    ``sizes``: of the symbolic axes but the batch, {"s": tokens} or {"t": samples}. Weights of 16 bits are two products
    of 8 there. What makes features of a recording is not counted: it has no weights to give bits to.
    """
    values, found = graph.values, []
    for node in graph.nodes:
        x = values[node.inputs[0]] if node.inputs else None
        if node.op in CONTRACTIONS:
            macs = math.prod(_bound(node.output, sizes)[:-1]) * node.constants["weight"].size
            bits = node.attrs.get("weight_bits", 8), value_bits(x)
        elif node.op == "attention":  # queries by keys, then the weights of these by the values
            n, tokens, channels = _bound(node.output, sizes)
            macs, bits = 2 * n * tokens * tokens * channels, (8, 8)
        elif node.op == "relative":  # a query by the vector of each distance
            n, tokens, channels = _bound(x, sizes)
            macs, bits = n * tokens * tokens * channels, (8, 8)
        else:
            continue
        found.append(Product(node.name, node.source, macs, *bits))
    return tuple(found)


def network_cost(graph: Graph, sizes: Mapping[str, int] | None = None) -> NetworkCost:
    """What an integer network costs for one input; ``sizes`` as in :func:`products`."""
    sizes = sizes or {}
    multiplied = products(graph, sizes)
    return NetworkCost(
        network_bytes(graph),
        sum(p.macs for p in multiplied),
        sum(p.bops for p in multiplied),
        peak_memory(graph, sizes),
    )


def network_bytes(graph: Graph) -> int:
    """Bytes of all constants as the artifact stores them: weights packed, others in the narrowest integers."""
    return sum(map(node_bytes, graph.nodes))


def node_bytes(node: Node) -> int:
    """Bytes of a node's constants as the artifact stores them."""
    return sum(_stored_bytes(node, key, array) for key, array in node.constants.items())


def _stored_bytes(node: Node, key: str, array: np.ndarray) -> int:
    if key == "weight" and node.op in CONTRACTIONS:
        return weight_bytes(array.size, node.attrs.get("weight_bits", 8))
    if len(CONSTANT_DTYPES[key]) > 1 or not array.size:
        return array.nbytes
    low, high = int(array.min()), int(array.max())
    width = next(w for w in (1, 2, 4, 8) if -(2 ** (8 * w - 1)) <= low and high < 2 ** (8 * w - 1))
    return width * array.size


def value_bits(value: Value) -> int:
    """The bits of a value that a layer reads: 4 where all its integers are proven to lie in [0, 15]."""
    if value.low >= 0 and value.high <= 15:
        return 4
    return 8 * DTYPE_BYTES[value.dtype]


def peak_memory(graph: Graph, sizes: Mapping[str, int] | None = None) -> int:
    """The most bytes that values take together at one moment, for one input; a reshaped value is the value it was."""
    steps = [(node.name, node.inputs) for node in graph.nodes]
    views = {node.name: node.inputs[0] for node in graph.nodes if node.op == "reshape"}
    values = graph.values
    taken = {
        name: math.prod(_bound(v, sizes or {})) * DTYPE_BYTES[v.dtype]
        for name, v in values.items()
        if name not in views
    }
    inputs = tuple(value.name for value in graph.inputs)
    return max(sum(taken[name] for name in alive) for alive in alive_together(inputs, steps, graph.outputs, views))


def alive_together(
    inputs: Sequence[str],
    steps: Iterable[tuple[str, Sequence[str]]],
    outputs: Sequence[str],
    views: Mapping[str, str] | None = None,
) -> Iterator[frozenset[str]]:
    """The values that are in memory while each step runs: its inputs, its result, and what a later step reads.

    ``steps``: (result, inputs) in order; ``views``: a value that is another one's memory under another shape.
    """
    steps, views = list(steps), dict(views or {})

    def owner(name: str) -> str:
        while name in views:
            name = views[name]
        return name

    last = {owner(name): moment for moment, (_, read) in enumerate(steps) for name in read}
    last |= {owner(name): len(steps) for name in outputs}
    alive = {owner(name) for name in inputs}
    for moment, (result, _) in enumerate(steps):
        alive.add(owner(result))
        yield frozenset(alive)
        alive = {name for name in alive if last.get(name, moment) > moment}


def _bound(value: Value, sizes: Mapping[str, int]) -> tuple[int, ...]:
    try:
        return bind_shape(value.shape, {"n": 1, **sizes})
    except KeyError as error:
        raise IntqError(
            f"{value.name} has the shape {value.shape}: say how large the axis {error} is to count what it costs"
        ) from None


# ---- measured latencies ------------------------------------------------------------------------------------------

LATENCIES, LATENCIES_VERSION = "intq-latencies", 1
_BITS_NAME = re.compile(r"W([1-9][0-9]?)A([1-9][0-9]?)")


@dataclass(frozen=True)
class Latencies:
    """Measured seconds of a network's layers at each precision, {layer: {(weight bits, input bits): seconds}}.

    ``target``: what it was measured on, for people; ``other``: seconds of all that is no layer, which no precision
    changes.
    """

    network: str
    target: str
    threads: int
    layers: Mapping[str, Mapping[Bits, float]]
    other: float = 0.0

    def of(self, layer: str, weight_bits: int, input_bits: int) -> float:
        """Seconds of a layer. Raises IntqError, saying what was measured."""
        measured = self.layers.get(layer)
        if measured is None:
            known = ", ".join(list(self.layers)[:4])
            raise IntqError(f"no latency of {layer!r} was measured, only of {known}, ...: measure this network's")
        if (weight_bits, input_bits) not in measured:
            known = ", ".join(bits_name(bits) for bits in measured)
            wanted = bits_name((weight_bits, input_bits))
            raise IntqError(f"the latency of {layer!r} at {wanted} was not measured, only at {known}")
        return measured[weight_bits, input_bits]


def bits_name(bits: Bits) -> str:
    """W4A8: weights of 4 bits, inputs of 8."""
    return f"W{bits[0]}A{bits[1]}"


def write_latencies(path: str | Path, latencies: Latencies) -> None:
    """Write a table of latencies as JSON. Raises IntqError when the place cannot be written."""
    layers = {
        name: {bits_name(bits): seconds for bits, seconds in each.items()} for name, each in latencies.layers.items()
    }
    head = {"network": latencies.network, "target": latencies.target, "threads": latencies.threads}
    write_document(path, LATENCIES, LATENCIES_VERSION, {**head, "other": latencies.other, "layers": layers})


def read_latencies(path: str | Path) -> Latencies:
    """A table of latencies from its file. Raises IntqError when it is none or malformed."""
    document = read_document(path, LATENCIES, LATENCIES_VERSION)
    try:
        return Latencies(
            text(document.get("network"), "network"),
            text(document.get("target"), "target"),
            whole(document.get("threads"), "threads", 1),
            {
                name: {
                    _bits(bits, name): number(seconds, f"layers[{name!r}][{bits!r}]", 0)
                    for bits, seconds in table(each, f"layers[{name!r}]").items()
                }
                for name, each in table(document.get("layers"), "layers").items()
            },
            number(document.get("other"), "other", 0),
        )
    except ValueError as error:
        raise IntqError(f"{path}: {error}; measure the table again") from None


def _bits(name: str, layer: str) -> Bits:
    match = _BITS_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"layers[{layer!r}] must have keys such as 'W4A8', found {name!r}")
    return int(match[1]), int(match[2])
