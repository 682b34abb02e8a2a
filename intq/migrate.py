"""Outlier channels of a transformer go into the weights, so that 8 bits serve every channel alike.

A LayerNorm's output has channels a hundred times as wide as the others. ``x W' = ((x - c) / s) (s W)' + c W'`` is the
same for any ``c`` and ``s`` per channel: what is rounded to 8 bits is ``(x - c) / s``, whose channels lie in one range.
The residual stream keeps ``x`` itself, in 16 bits; the division is part of the step from 16 to 8 bits (or, where
nothing else reads it, of the LayerNorm's own gamma and beta) and costs nothing. A GELU's output, wide in few channels
and near 0 in most, is moved by powers of two, which its curve applies (MiniLM's sentence embeddings: 21.6 dB without,
24.9 dB with). ``s`` trades the activations' rounding against the weights', and is chosen per value by the noise it
predicts in the layers that read it. For layers that read 16 bits that is the weights' noise nearly alone, and what a
function makes stays as it is: rare peaks of a channel that was moved up would be clipped.

(Xiao et al. 2023, "SmoothQuant", eq. 4, for ``s``; Wei et al. 2023, "Outlier Suppression+", eq. 3, for ``c``. There in
the LayerNorm alone; here also between the values and the output of an attention, which are linear in each channel, and
between queries and keys, whose products keep.)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from intq.calibrate import Limits
from intq.curves import MAX_LIFT
from intq.equalize import COMPENSATED, WIDEST
from intq.floatgraph import FloatGraph, FloatNode
from intq.widths import INT16_HEADROOM

SHARES = torch.linspace(0, 1, 11).tolist()  # exponents of a channel's range
ROWS = 256  # outputs of a layer by which the weights' rounding noise is predicted
LEVELS = {8: 127.5, 16: 2**15 / INT16_HEADROOM}  # of what lies in [0, 1]
MOVED = ".moved"  # the name of what a value's linear layers read


@dataclass(frozen=True)
class Move:
    """``(x - centre) / scale`` per channel."""

    centre: Tensor
    scale: Tensor


def migrate(
    graph: FloatGraph, limits: Mapping[str, Limits], wide: Collection[str] = ()
) -> tuple[FloatGraph, dict[str, Limits]]:
    """The graph whose linear layers read moved channels, and its limits. The function is the same.

    ``wide``: the layers that read 16 bits.
    """
    nodes, limits, users = {n.name: n for n in graph.nodes}, dict(limits), graph.users()
    order: list[str] = []
    for node in graph.nodes:
        order.append(node.name)
        if node.op == "attention":
            _balance_products(nodes, limits, node, users)
            _balance_values(nodes, limits, node, users)
        layers = [u for u in users[node.name] if u.op == "linear" and u.inputs[0] == node.name]
        if node.op not in ("layer_norm", "function") or not layers:
            continue
        fine = all(u.name in wide for u in layers)
        if fine and node.op == "function":
            continue
        weights = [u.parameters["weight"] for u in layers]
        if node.op == "layer_norm":
            move = _choose(limits[node.name], weights, LEVELS[16] if fine else LEVELS[8])
        else:
            move = _choose_lift(limits[node.name], weights)
        others = node.name == graph.output or len(layers) < len(users[node.name])
        others = others or node.op == "function" or any(node.name in u.inputs[1:] for u in layers)
        name = node.name + MOVED if others else node.name
        if others:
            inverse = 1 / move.scale
            parameters = {"scale": inverse.float(), "shift": (-move.centre * inverse).float()}
            nodes[name] = FloatNode(name, "affine", (node.name,), node.shape, {}, parameters, node.module)
            order.append(name)
        else:
            nodes[name] = _divided(node, move)
        limits[name] = _moved(limits[node.name], move)
        for layer in layers:
            nodes[layer.name] = _absorb(replace(nodes[layer.name], inputs=(name, *layer.inputs[1:])), move)
    return replace(graph, nodes=tuple(nodes[name] for name in order)), limits


# ---- LayerNorm -> linear layers ----------------------------------------------------------------------------------


def _choose(seen: Limits, weights: list[Tensor], levels: float) -> Move:
    """The centre of every channel, and the scales of least predicted noise."""
    centre = (seen.high + seen.low) / 2
    scale = _least_noise((seen.high - seen.low) / 2, seen, weights, lambda scale: scale, levels)
    return Move(centre, scale)


def _choose_lift(seen: Limits, weights: list[Tensor]) -> Move:
    """Scales that are powers of two, as a curve's end gives them (:mod:`intq.curves`), and no centre.

    (Most values of a GELU are nearly 0, which 8 bits then hold exactly.)
    """

    def power_of_two(scale: Tensor) -> Tensor:
        return torch.exp2(torch.ceil(torch.log2(scale / scale.max())).clamp(-MAX_LIFT, 0))

    reach = torch.maximum(seen.high.abs(), seen.low.abs())
    return Move(torch.zeros_like(reach), _least_noise(reach, seen, weights, power_of_two, LEVELS[8]))


def _least_noise(reach: Tensor, seen: Limits, weights: list[Tensor], allowed: Callable, levels: float) -> Tensor:
    """The scales of least predicted noise among powers of the channels' reach, with and without the weights' sizes."""
    widest = float(reach.max())
    if not widest > 0:
        return torch.ones_like(reach)
    reach = reach.clamp_min(widest / WIDEST)
    power = (seen.square - seen.mean.square()).clamp_min(0)  # about the mean, which the bias corrects
    columns = [w.square().sum(0, dtype=torch.float64) for w in weights]
    rows = [w[:: -(-len(w) // ROWS)].abs() for w in weights]
    size = torch.stack([w.abs().amax(0) for w in weights]).amax(0).double()
    size = size.clamp_min(float(size.max()) / WIDEST)
    scales = [allowed(reach**a / size**b) for a in SHARES for b in (0.0, 1 - a)]
    noise = [_noise(columns, rows, s * float((reach / s).max()), power, levels) for s in scales]
    best = scales[noise.index(min(noise))]
    return best if float(best.max()) == 1 else best * float((reach / best).max())


def _noise(columns: list[Tensor], rows: list[Tensor], scale: Tensor, power: Tensor, levels: float) -> float:
    """The noise, over the signal, in the outputs of layers: of steps of 1 / levels, and of the scaled weights' 8 bits.

    ``columns``: of each layer, the sum of squares of the weights that read a channel. ``rows``: some outputs' weights'
    magnitudes.
    """
    total = 0.0
    for column, row in zip(columns, rows, strict=True):
        activations = (column * (scale / levels).square()).sum() / 12
        steps = (row * scale.float()).amax(1).double() / 127
        outputs = float(column.sum() / row.double().square().sum().clamp_min(1e-30)) * len(row)  # of all, about
        rounded = COMPENSATED * outputs * (steps.square() / 12).mean() * (power / scale.square()).sum()
        total += float((activations + rounded) / (column * power).sum().clamp_min(1e-30))
    return total


def _moved(seen: Limits, move: Move) -> Limits:
    square = seen.square - 2 * move.centre * seen.mean + move.centre.square()
    centred = Limits(seen.low - move.centre, seen.high - move.centre, square, seen.count, seen.mean - move.centre)
    return centred.divided(move.scale)


def _divided(node: FloatNode, move: Move) -> FloatNode:
    weight, bias = (node.parameters[k].double() for k in ("weight", "bias"))
    return node.with_parameters(weight=(weight / move.scale).float(), bias=((bias - move.centre) / move.scale).float())


def _absorb(layer: FloatNode, move: Move) -> FloatNode:
    weight, bias = layer.parameters["weight"].double(), layer.parameters["bias"].double()
    return layer.with_parameters(weight=(weight * move.scale).float(), bias=(bias + weight @ move.centre).float())


# ---- attention ---------------------------------------------------------------------------------------------------


def _maker(nodes: dict[str, FloatNode], name: str, users) -> FloatNode | None:
    """The linear layer that makes a value which nothing else reads."""
    node = nodes.get(name)
    plain = node is not None and node.op == "linear" and len(node.inputs) == 1 and len(users[name]) == 1
    return node if plain else None


def _scale_output(nodes: dict, limits: dict, node: FloatNode, scale: Tensor) -> None:
    weight, bias = node.parameters["weight"].double(), node.parameters["bias"].double()
    nodes[node.name] = node.with_parameters(weight=(weight / scale[:, None]).float(), bias=(bias / scale).float())
    limits[node.name] = limits[node.name].divided(scale)


def _reach(seen: Limits) -> Tensor:
    reach = torch.maximum(seen.high.abs(), seen.low.abs())
    return reach.clamp_min(max(float(reach.max()), 1e-30) / WIDEST)


def _balance_products(nodes, limits, node: FloatNode, users) -> None:
    """A channel of q and of k as wide as one another: their product keeps."""
    q, k = (_maker(nodes, name, users) for name in node.inputs[:2])
    if q is not None and k is not None and q is not k:
        scale = (_reach(limits[q.name]) / _reach(limits[k.name])).sqrt()
        _scale_output(nodes, limits, q, scale)
        _scale_output(nodes, limits, k, 1 / scale)


def _balance_values(nodes, limits, node: FloatNode, users) -> None:
    """The channels of v, and so of the attention's output, by what the layer behind takes."""
    v = _maker(nodes, node.inputs[2], users)
    readers = users[node.name]
    if v is None or not readers or any(u.op != "linear" or u.inputs[0] != node.name for u in readers):
        return
    if any(node.name in u.inputs[1:] for u in readers):
        return
    seen, whole = limits[node.name], _reach(limits[v.name])
    symmetric = replace(seen, low=-whole, high=whole)
    scale = _choose(symmetric, [nodes[u.name].parameters["weight"] for u in readers], LEVELS[8]).scale
    _scale_output(nodes, limits, v, scale)
    limits[node.name] = seen.divided(scale)
    for reader in readers:
        nodes[reader.name] = _absorb(nodes[reader.name], Move(torch.zeros_like(scale), scale))
