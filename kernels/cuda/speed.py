"""A model of speed: how long each layer takes at least on a GPU, from the GPU's published limits and our own tiles.

A kernel cannot end before
    its products are taken:   ceil(blocks / multiprocessors) * products of a block / (products a second of one of them),
                              blocks and products as :mod:`intq.kernels.cuda.plan` cuts them, what fills tiles included;
    its operands are brought: the same, by the bytes that blocks read through the second cache and shared memory;
    its bytes have moved:     (inputs + constants + output) / bandwidth, each byte once;
and another one begins GAP after it. What it tells is not how long a kernel takes (latencies, bank conflicts and the
rescale come on top) but which of these it is bound by, and how much of its tiles is filled with work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from intq.errors import IntqError
from intq.graph import Graph, Node
from intq.kernels import pack
from intq.kernels.cuda import heads
from intq.kernels.cuda.plan import CHUNK, STEP, is_depthwise, of_node
from intq.value import Value, bind_shape

GAP = 1.5e-6  # seconds from a kernel's end to the next one's begin in a CUDA graph: an assumption
BYTES = {"uint8": 1, "int8": 1, "int16": 2, "int32": 4}


@dataclass(frozen=True)
class Card:
    """``int8``, ``int4``: 10**12 operations a second, a multiplication and an addition being two, dense; int4 0 where
    there is none. ``bandwidth``: 10**9 bytes a second. Of NVIDIA's data sheets."""

    name: str
    arch: str
    multiprocessors: int
    int8: float
    int4: float
    bandwidth: float


CARDS = {
    "nvidia/nvidia-t4": Card("T4", "sm_75", 40, 130, 260, 320),
    "nvidia/nvidia-a100": Card("A100", "sm_80", 108, 624, 1248, 1555),
    "nvidia/nvidia-h100": Card("H100 SXM", "sm_90a", 132, 1979, 0, 3350),
}


@dataclass(frozen=True)
class Prediction:
    """A layer's least time in seconds, and what it is ``bound`` by: "products", "operands", "bytes", or the "gap"
    between kernels.

    ``filled``: the share of the products taken that are the layer's own; None where tensor cores take none."""

    name: str
    op: str
    seconds: float
    bound: str
    filled: float | None


def card(target: str) -> Card:
    """Raises IntqError for a GPU whose limits are not in the table."""
    if target not in CARDS:
        raise IntqError(f"there are no published limits of {target!r} here: choose one of {', '.join(CARDS)}")
    return CARDS[target]


def predicted(graph: Graph, card: Card, sizes: dict[str, int]) -> list[Prediction]:
    """Every node that is a kernel, for inputs of these sizes of the symbolic dimensions."""
    return [_of_node(node, graph, card, sizes) for node in graph.nodes if node.op != "reshape"]


def _of_node(node: Node, graph: Graph, card: Card, sizes: dict[str, int]) -> Prediction:
    inputs = tuple(graph.values[name] for name in node.inputs)
    constants = [array.nbytes for array in pack.arrays(node, inputs, card.arch)]
    if node.op == "embedding":  # of its tables as many rows as there are tokens
        most = 2 * _bytes(node.output, sizes)
        constants = [min(most, size) for size in constants]
    moved = sum(constants) + sum(_bytes(value, sizes) for value in (*inputs, node.output))
    moving, (taken, brought, own, rate) = moved / (card.bandwidth * 1e9), _products(node, inputs[0], card, sizes)
    taking = taken / (rate * 1e12 / 2 / card.multiprocessors)
    times = {"products": taking, "operands": taking * brought, "bytes": moving, "gap": GAP}
    bound = max(times, key=times.get)
    filled = own / (taken * card.multiprocessors) if taken else None
    return Prediction(node.name, node.op, max(taking, taking * brought, moving) + GAP, bound, filled)


def _bytes(value: Value, sizes: dict[str, int]) -> int:
    return math.prod(bind_shape(value.shape, sizes)) * BYTES[value.dtype]


def _products(node: Node, x: Value, card: Card, sizes: dict[str, int]) -> tuple[float, float, float, float]:
    """(products that the busiest multiprocessor takes, how many times as long it is to bring their operands, those of
    the layer, 10**12 operations a second of its kind)."""
    shape = bind_shape(node.output.shape, sizes)
    if node.op == "attention":  # the first product is taken twice, see intq.kernels.cuda.attention
        (n, tokens, _), layout = shape, heads.of_node(card.arch, node)
        tiles = -(-tokens // layout.rows)
        of_block = layout.rows * tiles * layout.rows * CHUNK * (2 * layout.chunks + layout.values)
        blocks = n * layout.count * tiles * layout.parts
        own = 2 * n * layout.count * tokens**2 * layout.size
        return of_block * -(-blocks // card.multiprocessors), 1.0, own, card.int8
    if "weight" not in node.constants or is_depthwise(plan := of_node(card.arch, node, x)):
        return 0.0, 1.0, 0.0, card.int8
    rows, tile = math.prod(shape[:-1]), plan.tile
    blocks = -(-rows // tile.rows) * plan.column_tiles * plan.groups
    of_block = tile.rows * tile.columns * plan.steps * STEP * plan.per_byte
    own = rows * plan.k * plan.co
    taking, bringing = tile.cycles(plan.arch)
    rate = card.int4 if plan.nibbles else card.int8
    return of_block * -(-blocks // card.multiprocessors), bringing / taking, own, rate
