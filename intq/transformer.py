"""Rewrites of the float graph's transformers, as captured, into one node each of embedding and attention."""

from __future__ import annotations

from dataclasses import replace

from intq.floatgraph import FloatGraph, FloatNode

SWAPPED = (0, 2, 1, 3)  # (n, tokens, heads, size) <-> (n, heads, tokens, size)


def merge_embeddings(graph: FloatGraph) -> FloatGraph:
    """add(embedding(ids), embedding(ids)) -> one embedding with both tables."""
    nodes: dict[str, FloatNode] = {}
    users = graph.users()
    for node in graph.nodes:
        made = [nodes.get(name) for name in node.inputs]
        tables = [m for m in made if m is not None and m.op == "embedding"]
        together = node.op == "add" and len(tables) == 2 and all(len(users[m.name]) == 1 for m in tables)
        if together and not set(tables[0].parameters) & set(tables[1].parameters):
            a, b = tables
            attrs, parameters = {**a.attrs, **b.attrs}, {**a.parameters, **b.parameters}
            node = replace(node, op="embedding", inputs=a.inputs, attrs=attrs, parameters=parameters)
        nodes[node.name] = node
    return replace(graph, nodes=tuple(nodes.values()))


def merge_heads(graph: FloatGraph) -> FloatGraph:
    """attention of the heads of q, k and v, joined again -> attention of (n, tokens, channels)."""
    makers, users, shapes = {n.name: n for n in graph.nodes}, graph.users(), graph.shapes()
    changed: dict[str, FloatNode] = {}

    def split(name: str) -> str | None:
        """What (n, heads, tokens, size) was split from."""
        swap = makers.get(name)
        if swap is None or swap.op != "permute" or tuple(swap.attrs["order"]) != SWAPPED:
            return None
        cut = makers.get(swap.inputs[0])
        return cut.inputs[0] if cut is not None and cut.op == "reshape" and len(shapes[cut.inputs[0]]) == 3 else None

    for node in graph.nodes:
        if node.op != "attention" or len(node.shape) != 4:
            continue
        whole = [split(name) for name in node.inputs[:3]]
        swap = users[node.name][0] if len(users[node.name]) == 1 else None
        if None in whole or swap is None or swap.op != "permute" or tuple(swap.attrs["order"]) != SWAPPED:
            continue
        join = users[swap.name][0] if len(users[swap.name]) == 1 else None
        if join is not None and join.op == "reshape" and join.shape == shapes[whole[0]]:
            changed[join.name] = replace(
                node, name=join.name, inputs=(*whole, *node.inputs[3:]), shape=join.shape, module=node.module
            )
    return replace(graph, nodes=tuple(changed.get(n.name, n) for n in graph.nodes))


IBERT = {"gelu": "ibert_gelu", "gelu_tanh": "ibert_gelu"}


def with_ibert_functions(graph: FloatGraph) -> FloatGraph:
    """I-BERT's polynomials for GELU and for softmax's exponential (Kim et al. 2021, eq. 8 and 13)."""
    nodes = []
    for node in graph.nodes:
        if node.op == "function" and node.attrs["function"] in IBERT and "body" not in node.attrs:
            node = node.with_attrs(function=IBERT[node.attrs["function"]])
        elif node.op == "attention":
            node = node.with_attrs(exponential="ibert_exp")
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


_BY_TOKEN = frozenset(
    {"layer_norm", "linear", "function", "affine", "add"}
)  # each token's result needs that token alone
_FIRST = {"axis": 1, "start": 0, "stop": 1, "step": 1}


def first_token_early(graph: FloatGraph) -> FloatGraph:
    """What is computed of every token but read of the first alone is computed of the first alone.

    A classifier reads one token of its last layer: that layer's feed-forward part, a twelfth of most of the network,
    shrinks to one row.
    """
    users = graph.users()
    for node in reversed(graph.nodes):
        readers = users[node.name]
        cut = bool(readers) and node.name != graph.output and all(_takes_first(reader) for reader in readers)
        if cut and node.op in _BY_TOKEN and len(node.shape) == 3:
            return first_token_early(_cut(graph, node, {reader.name for reader in readers}))
    return graph


def _takes_first(node: FloatNode) -> bool:
    return node.op == "slice" and {key: node.attrs[key] for key in _FIRST} == _FIRST


def _cut(graph: FloatGraph, node: FloatNode, slices: set[str]) -> FloatGraph:
    """The slices of a node's result moved to its inputs."""
    known, nodes = graph.shapes(), []
    for other in graph.nodes:
        if other.name == node.name:
            for name in dict.fromkeys(node.inputs):
                first = f"{name}.first"
                if first not in known:
                    shape = (known[name][0], 1, known[name][2])
                    nodes.append(FloatNode(first, "slice", (name,), shape, dict(_FIRST), {}, node.module))
            other = replace(
                node, inputs=tuple(f"{name}.first" for name in node.inputs), shape=(*node.shape[:1], 1, node.shape[2])
            )
        elif other.name in slices:
            continue
        nodes.append(replace(other, inputs=tuple(node.name if name in slices else name for name in other.inputs)))
    output = node.name if graph.output in slices else graph.output
    return replace(graph, nodes=tuple(nodes), output=output)
