"""What a network's answers lose when one layer alone is narrow: forward passes, no derivatives.

    omega_i(b) = 2 KL(p | p_i,b),  p = softmax of the network, p_i,b with weights or input of layer i in b bits

The divergence has its minimum, zero, at the float network, so that to second order ``omega_i(b) = d' H d``, ``d`` the
error that rounding makes of that layer and ``H`` the Hessian of :func:`intq.losses.with_own_answers`. The mean trace
times ``|d|**2`` (:func:`intq.sensitivity.omega`) is its expectation were ``d`` random. It is not: the rounding of
weights avoids what matters (:mod:`intq.rounding`), that of activations errs alike wherever they are alike.

Measured (small_resnet, Fashion-MNIST, divergence of the whole integer network on 2000 other images, weights rounded by
gptq): trace times error says 10 times too much of most 4-bit weights, and up to 9 times too little of 4-bit inputs. The
errors measured here add up, in a plan of half of W8A8's BOPS, to 0.0026; the network's is 0.0025.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from intq.floatgraph import CONTRACTIONS, FloatGraph, FloatNode, evaluate
from intq.plan import Quant, Weights
from intq.processes import share, summed
from intq.rounding import round_weights

Key = tuple[str, int]  # a node or a value, and bits
Ablation = Mapping[str, Callable[..., Tensor]]  # what nodes compute instead, of the same inputs


@torch.no_grad()
def omegas(
    graph: FloatGraph,
    batches: Sequence[Tensor],
    weights: Mapping[Key, Weights],
    inputs: Mapping[Key, Quant],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[Key, float], dict[Key, float]]:
    """Omega of each layer's weights, by node and bits, and of each value that layers read: the mean over samples.

    ``batches``: what the network takes, in pieces that fit memory with all the network's values. What a value loses it
    loses for all layers that read it, while what else reads it (a residual sum) does not.
    """
    nodes = {node.name: node for node in graph.nodes}
    ablations: list[Ablation] = [{name: partial(_with, nodes[name], given)} for (name, _), given in weights.items()]
    for (value, _), quant in inputs.items():
        readers = [node for node in graph.nodes if node.op in CONTRACTIONS and node.inputs[0] == value]
        ablations.append({node.name: partial(_reading, node, quant) for node in readers})
    total, mine = torch.zeros(len(ablations), dtype=torch.float64), share(batches)
    for done, (_, batch) in enumerate(mine):
        values = dict(graph.values(batch))
        for at, ablation in enumerate(ablations):
            total[at] += len(batch) * _divergence(values[graph.output], _ablated(graph, values, ablation))
            if progress is not None:
                progress(done * len(ablations) + at + 1, len(mine) * len(ablations))
    found = (2 * summed(total) / sum(map(len, batches))).tolist()
    return dict(zip(weights, found, strict=False)), dict(zip(inputs, found[len(weights) :], strict=True))


def _with(node: FloatNode, given: Weights, *inputs: Tensor) -> Tensor:
    return evaluate(node.with_parameters(weight=given.real(), bias=given.bias.float()), *inputs)


def _reading(node: FloatNode, quant: Quant, x: Tensor, *others: Tensor) -> Tensor:
    return evaluate(node, quant.round(x), *others)


def _ablated(graph: FloatGraph, values: Mapping[str, Tensor], ablation: Ablation) -> Tensor:
    """The answer with some nodes computing otherwise; what does not depend on them is not computed again."""
    changed: dict[str, Tensor] = {}
    for node in graph.nodes:
        if node.name in ablation or not changed.keys().isdisjoint(node.inputs):
            compute = ablation.get(node.name) or partial(evaluate, node)
            changed[node.name] = compute(*(changed.get(name, values[name]) for name in node.inputs))
    return changed[graph.output]


def _divergence(exact: Tensor, rough: Tensor) -> float:
    """The mean of KL(softmax(exact) | softmax(rough)) over all rows."""
    p, q = (torch.log_softmax(x.double(), -1) for x in (exact, rough))
    return float((p.exp() * (p - q)).sum(-1).mean())


@torch.no_grad()
def rounded(
    graph: FloatGraph, batches: list[Tensor], bits: Sequence[int], rounding: str, correct_bias: bool, seed: int
) -> Iterator[tuple[Key, Weights]]:
    """The weights of every layer in each of some bits, all other layers being exact.

    Eight bits or more are rounded to nearest, quickly: what they lose is next to nothing.
    """
    done, values = graph.done_after(), {graph.input: batches}
    for node in graph.nodes:
        inputs = [list(x) for x in zip(*(values[name] for name in node.inputs), strict=True)]
        for width in bits if node.op in CONTRACTIONS else ():
            how = rounding if width < 8 else "nearest"
            yield (node.name, width), round_weights(node, inputs, inputs, how, correct_bias, seed, width)
        values[node.name] = [evaluate(node, *x) for x in inputs]
        for name in done[node.name]:
            del values[name]
