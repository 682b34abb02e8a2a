"""What layers cost one at a time, against the network run whole and against its exact Hessian."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from intq.ablation import omegas, rounded
from intq.capture import capture
from intq.floatgraph import CONTRACTIONS, FloatGraph, evaluate
from intq.hessian import gradient, inner
from intq.losses import of_graph, with_own_answers
from intq.plan import Quant, Weights
from intq.rounding import round_weights
from intq.simplify import simplify

torch.set_num_threads(1)
QUANT = Quant("uint8", 0.25, 0)


class Branches(nn.Module):
    """A value that two convolutions and a residual sum read."""

    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = (nn.Conv2d(a, 4, 3, padding=1) for a in (2, 4, 4))
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.head((x + F.relu(self.left(x)) + self.right(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def graph() -> FloatGraph:
    torch.manual_seed(0)
    return simplify(capture(Branches().eval(), torch.zeros(1, 2, 6, 6)))


@pytest.fixture(scope="module")
def batches() -> list[torch.Tensor]:
    return list(torch.randn(12, 2, 6, 6, generator=torch.Generator().manual_seed(1)).split(5))


def divergence(graph: FloatGraph, batches: list[torch.Tensor], run) -> float:
    p, q = (torch.cat([network(batch) for batch in batches]).double().softmax(1) for network in (graph.run, run))
    return float((p * (p / q).log()).sum(1).mean())


def test_omega_is_twice_the_divergence_of_the_network_run_whole(graph, batches):
    weights = dict(rounded(graph, batches, [4, 8], "gptq", True, seed=0))
    nodes = {node.name: node for node in graph.nodes}
    layers = [node for node in graph.nodes if node.op in CONTRACTIONS]
    shared = next(n.inputs[0] for n in layers if sum(n.inputs[0] == m.inputs[0] for m in layers) == 2)
    of_weights, of_inputs = omegas(graph, batches, weights, {(shared, 4): QUANT})
    assert of_weights.keys() == weights.keys() == {(node.name, bits) for node in layers for bits in (4, 8)}
    for (name, bits), given in weights.items():
        node = nodes[name].with_parameters(weight=given.real(), bias=given.bias.float())
        whole = replace(graph, nodes=tuple(node if n.name == name else n for n in graph.nodes))
        assert of_weights[name, bits] == pytest.approx(2 * divergence(graph, batches, whole.run), rel=1e-3, abs=1e-9)

    def rough(x):  # the products alone read the narrow value, the sum reads it as it is
        values = {graph.input: x}
        for node in graph.nodes:
            inputs = [values[name] for name in node.inputs]
            if node.op in CONTRACTIONS and node.inputs[0] == shared:
                inputs[0] = QUANT.round(inputs[0])
            values[node.name] = evaluate(node, *inputs)
        return values[graph.output]

    assert of_inputs[shared, 4] == pytest.approx(2 * divergence(graph, batches, rough), rel=1e-3)


def test_each_layer_is_rounded_behind_exact_ones(graph, batches):
    found = dict(rounded(graph, batches, [2], "gptq", True, seed=3))
    reads = {graph.input: batches}
    for node in graph.nodes:
        inputs = [list(each) for each in zip(*(reads[name] for name in node.inputs), strict=True)]
        if node.op in CONTRACTIONS:
            wanted = round_weights(node, inputs, inputs, "gptq", True, 3, 2)
            assert torch.equal(found[node.name, 2].q, wanted.q) and torch.equal(found[node.name, 2].bias, wanted.bias)
        reads[node.name] = [evaluate(node, *x) for x in inputs]


def test_of_a_small_error_omega_is_the_hessians_quadratic_form(graph, batches):
    node = next(n for n in graph.nodes if n.op in CONTRACTIONS and n.inputs[0] != graph.input)
    weight, step = node.parameters["weight"].double(), 1e-3
    fine = Weights((weight / step).round().to(torch.int16), torch.full((len(weight),), step), node.parameters["bias"])
    error = fine.real() - node.parameters["weight"]
    loss, curved = of_graph(graph).only(node.name), 0.0
    for batch in with_own_answers(graph.run, batches):
        point = gradient(loss, batch, activations=False)
        curved += len(batch[0]) * float(inner(error, point.product([error])[0])) / sum(map(len, batches))
    found, _ = omegas(graph, batches, {(node.name, 16): fine}, {})
    assert found[node.name, 16] == pytest.approx(curved, rel=0.02)
