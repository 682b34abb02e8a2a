"""How a pass goes over the float graph: node by node, in order, keeping who makes and who reads each value."""

from __future__ import annotations

import math
from dataclasses import replace

from intq.floatgraph import FloatGraph, FloatNode


class Rewriter:
    """A pass in progress: the nodes so far, by name and in order, and the values that others now stand for."""

    def __init__(self, graph: FloatGraph) -> None:
        self.graph, self.nodes, self.names = graph, {}, {}
        self.uses = {name: len(users) + (name == graph.output) for name, users in graph.users().items()}

    def resolve(self, node: FloatNode) -> FloatNode:
        return renamed(node, self.names)

    def put(self, node: FloatNode) -> None:
        self.nodes[node.name] = node

    def producer(self, name: str, *ops: str) -> FloatNode | None:
        """The node that makes a value, when it is one of ``ops`` and nothing else reads the value."""
        node = self.nodes.get(name)
        return node if node is not None and node.op in ops and self.uses[name] == 1 else None

    def stand_for(self, old: str, new: str) -> None:
        """Readers of ``old`` read ``new``, which replaces it."""
        self.names[old] = new
        self.uses[new] = self.uses[old]

    def done(self) -> FloatGraph:
        output = self.names.get(self.graph.output, self.graph.output)
        return replace(self.graph, nodes=tuple(self.nodes.values()), output=output)


def without_unused(graph: FloatGraph) -> FloatGraph:
    """The graph without nodes whose value nothing reads."""
    needed, kept = {graph.output}, []
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(node.inputs)
            kept.append(node)
    return replace(graph, nodes=tuple(reversed(kept)))


def renamed(node: FloatNode, names: dict[str, str]) -> FloatNode:
    """The node with its inputs called otherwise."""
    return replace(node, inputs=tuple(names.get(i, i) for i in node.inputs))


def clamps(node: FloatNode) -> bool:
    """Whether the node's value is limited by its own attributes."""
    return math.isfinite(node.low) or math.isfinite(node.high)


def unlimited(node: FloatNode) -> FloatNode:
    """The node without the limits of its value."""
    attrs = {key: value for key, value in node.attrs.items() if key not in ("low", "high")}
    parameters = {key: value for key, value in node.parameters.items() if key != "channel_high"}
    return replace(node, attrs=attrs, parameters=parameters)
