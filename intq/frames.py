"""Networks over frames of a recording: channels come last, samples come in, and what lies beyond a recording's end."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from intq.errors import IntqError
from intq.floatgraph import FloatGraph, FloatNode
from intq.rewriter import Rewriter
from intq.value import Value

FULL_SCALE = 2**15  # of int16 samples: a sample of 1.0
LONGEST = 2**20  # samples that a network takes at a time, unless told otherwise: a minute at 16 kHz

_POINTWISE = frozenset({"function", "clamp", "add", "mul"})  # indifferent to the order of axes


def channels_last(graph: FloatGraph) -> FloatGraph:
    """permutes of three axes moved behind what is computed element by element, until they meet and vanish.

    torch convolves (n, c, frames); here frames come before channels, as tokens do, and capture writes a permute on
    either side of each convolution.
    """
    if not graph.reads_samples:
        return graph
    r, shapes = Rewriter(graph), graph.shapes()
    for node in graph.nodes:
        node = r.resolve(node)
        if node.op == "permute" and len(node.shape) == 3:
            before = r.nodes.get(node.inputs[0])
            if before is not None and before.op == "permute":
                order = tuple(before.attrs["order"][axis] for axis in node.attrs["order"])
                node = replace(node, inputs=before.inputs).with_attrs(order=order)
            if tuple(node.attrs["order"]) == (0, 1, 2):
                r.names[node.name] = node.inputs[0]
                continue
            if 1 in node.shape:  # nothing moves
                node = replace(node, op="reshape", attrs={})
        elif node.op in _POINTWISE and len(node.shape) == 3:
            made = [r.nodes.get(name) for name in node.inputs]
            orders = {tuple(m.attrs["order"]) if m is not None and m.op == "permute" else None for m in made}
            same_shape = len({shapes[name] for name in node.inputs}) == 1
            if None not in orders and len(orders) == 1 and same_shape:
                order, behind = orders.pop(), f"{node.name}.order"
                shape = tuple(node.shape[order.index(axis)] for axis in range(3))
                r.put(replace(node, inputs=tuple(m.inputs[0] for m in made), shape=shape))
                r.stand_for(node.name, behind)
                shapes |= {node.name: shape, behind: node.shape}
                node = FloatNode(behind, "permute", (node.name,), node.shape, {"order": order}, {}, node.module)
        r.put(node)
    return r.done()


def fewer_frames(graph: FloatGraph) -> FloatGraph:
    """conv1d without its last frames -> conv1d with less padding behind.

    A window of an even size, padded by half on either side, makes one frame too many (Wav2Vec 2.0's positions).
    Raises IntqError when other frames are left out.
    """
    r = Rewriter(graph)
    for node in graph.nodes:
        node = r.resolve(node)
        if node.op != "slice" or node.attrs["stop"] > 0:
            r.put(node)
            continue
        order, dropped = r.producer(node.inputs[0], "permute"), -node.attrs["stop"]
        conv = r.producer(order.inputs[0], "conv1d") if order is not None else None
        if conv is None or conv.attrs["stride"] != 1 or conv.attrs["padding"][1] < dropped:
            raise IntqError(
                f"{node.module or node.name}: slice: the last {dropped} of a number of frames that is not known can "
                "only be left out directly behind a Conv1d of stride 1 whose padding makes as many"
            )
        before, after = conv.attrs["padding"]
        shape = tuple(node.shape[axis] for axis in order.attrs["order"])
        r.put(replace(conv, shape=shape).with_attrs(padding=(before, after - dropped)))
        r.put(replace(order, shape=node.shape))
        r.stand_for(node.name, order.name)
    return r.done()


def samples_value(graph: FloatGraph, longest: int = LONGEST) -> Value:
    """The declared input of a network of recordings: int16 samples, of which 32768 are 1.0."""
    return Value(
        graph.input, graph.input_shape, "int16", -FULL_SCALE, FULL_SCALE - 1, scale=1 / FULL_SCALE, longest=longest
    )


def recordings(batches: list[Tensor], longest: int = LONGEST) -> list[Tensor]:
    """int16 samples (n, t) as the float network takes them. Raises IntqError for what is too long or empty."""
    for batch in batches:
        if not 0 < batch.shape[1] <= longest:
            raise IntqError(
                f"a recording of {batch.shape[1]} samples: the network takes 1 to {longest} at a time; cut it"
            )
    return [batch.to(torch.float32) / FULL_SCALE for batch in batches]


def spread_recordings(batches: list[Tensor], most: int) -> list[Tensor]:
    """Recordings from all over the data with about ``most`` samples in all."""
    step = max(1, -(-sum(batch.numel() for batch in batches) // most))
    return [part for part in (batch[i % step :: step] for i, batch in enumerate(batches)) if len(part)]
