"""Which values of a network are wider than 8 bits, and which linear layers end in a curve."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch

from intq.calibrate import Histogram
from intq.curves import MAX_LIFT, TOP
from intq.errors import IntqError
from intq.floatgraph import CONTRACTIONS, FloatGraph, FloatNode, evaluate
from intq.plan import ARGUMENT, MOVES, Quant

INT16_HEADROOM = 1.5  # of a value of 16 bits over what calibration saw
CURVE_HEADROOM = 1.25  # of a curve's interval over what calibration saw
FLAT = 0.05  # output steps by which a curve may miss what lies outside its interval
GRID = 4097


def bits_read(graph: FloatGraph, bits: Mapping[str, int]) -> dict[str, int]:
    """{layer: bits of its input}, where they are not 8.

    Of the patterns that match a layer's path the last counts. Layers that read a recording's samples, as they are or
    normalised, read 16 bits unless a pattern says otherwise: a voice is often a hundredth as loud as its loudest
    moment, and 8 bits would leave it two or three levels. Products, as those of gates, have 16 bits where layers of 16
    bits alone read them.
    Raises IntqError for a pattern that matches none.
    """
    chosen = dict.fromkeys(_readers_of_samples(graph), 16) | _matched(graph, bits)
    wide, users = {name for name, b in chosen.items() if b == 16}, graph.users()
    products = {n.name for n in graph.nodes if n.op == "mul" and wide.issuperset(u.name for u in users[n.name])}
    return {name: b for name, b in chosen.items() if b != 8} | dict.fromkeys(products, 16)


def weight_bits(graph: FloatGraph, bits: Mapping[str, int]) -> dict[str, int]:
    """{layer: bits of its weights}, where they are not 8, by the same patterns, with the same errors."""
    return {name: b for name, b in _matched(graph, bits).items() if b != 8}


def _matched(graph: FloatGraph, bits: Mapping[str, int]) -> dict[str, int]:
    """{layer: bits} by the last pattern that matches its path."""
    layers = [node for node in graph.nodes if node.op in CONTRACTIONS]
    for pattern in bits:
        if not any(fnmatchcase(node.module, pattern) for node in layers):
            known = ", ".join(node.module for node in layers[:4])
            raise IntqError(f"no layer is called {pattern!r}; there are {known}, ...")
    return {node.name: b for pattern, b in bits.items() for node in layers if fnmatchcase(node.module, pattern)}


def _readers_of_samples(graph: FloatGraph) -> list[str]:
    """The layers that read recordings, moved or normalised."""
    samples, readers = {graph.input} if graph.reads_samples else set(), []
    for node in graph.nodes:
        if samples.isdisjoint(node.inputs[:1]):
            continue
        if node.op in MOVES or node.op == "normalize_frames":
            samples.add(node.name)
        elif node.op in ("linear", "conv1d"):
            readers.append(node.name)
    return readers


def wide_values(graph: FloatGraph, reads: Mapping[str, int], residuals: bool) -> set[str]:
    """The values in 16 bits: a transformer's residual stream, what its sums, LayerNorms and readers of 16 bits take."""
    makers, wide = {node.name: node for node in graph.nodes}, set()
    residuals = residuals or any(node.op == "layer_norm" for node in graph.nodes)
    for node in graph.nodes:
        if node.op == "add" and residuals:
            wide |= {node.name, *node.inputs}
        elif node.op in CONTRACTIONS and len(node.inputs) > 1 and residuals:
            wide |= {node.name, node.inputs[1]}
        elif node.op in ("layer_norm", "mean_tokens", "normalize_frames") or (node.op == "affine" and residuals):
            wide.add(node.inputs[0])
        elif node.op in ("shift", "embedding"):
            wide |= {node.name, *node.inputs}
        if reads.get(node.name) == 16:
            wide |= set(node.inputs) if node.op == "mul" else {node.inputs[0]}
    return {name for name in wide if name in makers}


def curve_arguments(graph: FloatGraph) -> frozenset[str]:
    """The linear layers and convolutions over frames that one function alone reads: the curve at their end."""
    users, found = graph.users(), set()
    for node in graph.nodes:
        alone = users[node.name][0] if len(users[node.name]) == 1 else None
        ends = node.op in ("linear", "conv1d") and node.name != graph.output
        if ends and alone is not None and alone.op == "function":
            found.add(node.name)
    return frozenset(found)


def lifted_functions(graph: FloatGraph, curved: frozenset[str], wide: frozenset[str]) -> frozenset[str]:
    """The functions at a linear layer's end whose channels an affine alone scales by powers of two, into 8 bits."""
    users, found = graph.users(), set()
    for node in graph.nodes:
        after = users[node.name][0] if len(users[node.name]) == 1 else None
        if node.op == "function" and node.inputs[0] in curved and after is not None and after.op == "affine":
            lift = torch.log2(after.parameters["scale"].double())
            powers = bool((lift == lift.round()).all()) and float(lift.min()) >= 0 and float(lift.max()) <= MAX_LIFT
            if powers and not after.parameters["shift"].any() and after.name not in wide:
                found.add(node.name)
    return frozenset(found)


def curve_argument(function: FloatNode, seen: Histogram, result: Quant) -> Quant:
    """What the argument of a function means: 2**15 levels over what was seen and a quarter more.

    Where the function does not change any more, or its result is clamped, the interval ends: beyond it the argument is
    clamped, and the levels serve what matters.
    """
    low, high = CURVE_HEADROOM * min(seen.low, 0.0), CURVE_HEADROOM * max(seen.high, 0.0)
    if not low < high:
        low, high = -1.0, 1.0
    x = torch.linspace(low, high, GRID, dtype=torch.float64)
    y = evaluate(function, x[:, None])[:, 0].clamp(*result.interval)
    moves = lambda end: ((y - end).abs() > FLAT * result.scale).nonzero().flatten()  # noqa: E731
    first, last = moves(y[0]), moves(y[-1])
    if len(first) and len(last):
        low, high = float(x[max(int(first[0]) - 1, 0)]), float(x[min(int(last[-1]) + 1, GRID - 1)])
    step = (high - low) / TOP
    return Quant(ARGUMENT, step, -low / step)
