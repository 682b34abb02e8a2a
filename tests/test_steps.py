"""Learned steps of values and weights: exact whatever they become, with the gradients of LSQ and PACT."""

import math

import numpy as np
import pytest
import torch
from graphs import pixels, random_graph

from intq.backends import reference
from intq.backends.steps import RoundedWeights, learnable
from intq.backends.straight_through import IntegerNetwork
from intq.errors import IntqError
from intq.fixedpoint import rescaling
from intq.graph import Graph, make_node
from intq.ops import OPS
from intq.value import Value

torch.set_num_threads(1)


@pytest.mark.parametrize("steps", ["lsq", "pact"])
@pytest.mark.parametrize("seed", range(8))
def test_whatever_the_steps_become_the_forward_is_what_is_exported(seed, steps):
    graph = random_graph(seed)
    network, x = IntegerNetwork(graph, steps), pixels(graph, seed=seed)
    learned = [*network.value_steps, *network.weight_steps]
    assert bool(network.weight_steps) == (steps == "lsq")
    (before,) = network.integers(torch.from_numpy(x))
    np.testing.assert_array_equal(before.detach().numpy(), reference.run(graph, x)[0], "untouched")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for step in learned:
            step += 0.2 * torch.randn(step.shape, generator=generator)
    exported = network.graph()
    exported.verify()
    (after,) = network.integers(torch.from_numpy(x))
    np.testing.assert_array_equal(after.detach().numpy(), reference.run(exported, x)[0])
    after.sum().backward()
    assert all(step.grad is not None and step.grad.isfinite().all() for step in learned)


def test_values_that_move_share_their_step():
    """And their scale, which is exported; what a table reads or the network answers keeps its own."""
    for seed in range(8):
        graph = random_graph(seed)
        network = IntegerNetwork(graph, "pact")
        with torch.no_grad():
            for i, step in enumerate(network.value_steps):
                step += 0.1 * (i + 1)
        groups, after = learnable(graph), network.graph().values
        order = list(dict.fromkeys(groups.values()))
        for name, value in graph.values.items():
            grown = 2 ** (0.1 * (order.index(groups[name]) + 1)) if name in groups else 1.0
            assert after[name].scale == pytest.approx(np.multiply(value.scale, grown))
        for node in graph.nodes:
            if OPS[node.op].loop == "move":
                assert len({groups.get(name) for name in (*node.inputs, node.name)}) == 1
            if node.op == "lookup":
                assert node.inputs[0] not in groups and node.name not in groups
        assert not {*graph.outputs, graph.inputs[0].name} & set(groups)


def two_layers(bits: int = 4) -> Graph:
    """A linear layer of 4-bit weights into 4 bits behind a ReLU, and one that reads it: scales 0.5, weights' 0.03."""
    rng = np.random.default_rng(0)
    x, nodes = Value("x", ("n", 12), "uint8", 0, 255, 0.02, 100), []
    read, weights_scale = x, 0.03
    for name, co, scale, dtype, high in (("hidden", 16, 0.5, "uint8", 2**bits - 1), ("y", 5, 0.01, "int32", 2**31 - 1)):
        weight = rng.integers(-7, 8, (co, read.channels)).astype(np.int8)
        real = np.full(co, read.scale * weights_scale / scale)
        zero = read.zero_point * weight.sum(1, dtype=np.int64)
        (multiplier,), offset, shift = rescaling([real], [zero], rng.normal(0, 1, co), 0)
        constants = {"weight": weight, "multiplier": multiplier, "offset": offset, "shift": shift}
        attrs = {"low": 0 if dtype == "uint8" else -(2**31), "high": high, "weight_bits": 4}
        nodes.append(make_node("linear", name, [read], dtype=dtype, scale=scale, attrs=attrs, constants=constants))
        read = nodes[-1].output
    return Graph((x,), tuple(nodes), ("y",))


@pytest.mark.parametrize("steps", ["lsq", "pact"])
def test_the_gradient_of_a_step_is_that_of_the_paper(steps):
    """Against fake quantization in real numbers, differentiated by hand-written LSQ and PACT."""
    graph = two_layers()
    network = IntegerNetwork(graph, steps).double()
    x = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (64, 12)).astype(np.uint8))
    out = torch.from_numpy(np.random.default_rng(2).normal(0, 1, (64, 5)))
    (network(x) * out).sum().backward()

    first, second = network.nodes
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    unit = torch.full((2,), 0.03, dtype=torch.float64)
    weights = [module.weight.detach() * s for module, s in zip(network.nodes, unit, strict=True)]
    bias = [(m.offset.double() / 2.0**m.shift - 0.5) * m.node.output.scale for m in network.nodes]
    bias[0] = bias[0] + 0.02 * 100 * weights[0].sum(1)
    real = ((x.double() - 100) * 0.02) @ weights[0].T + bias[0]  # what is rounded and clamped
    q = (real / scale).detach().add(0.5).floor().clamp(0, 15)
    inside = (real / scale > 0) & (real / scale < 15)
    assert 0.1 < inside.double().mean() < 0.9
    hidden = q * scale.detach()
    outer = out @ weights[1]  # d loss / d hidden
    within = q - real / scale if steps == "lsq" else torch.zeros_like(q)
    wanted = float((outer * torch.where(inside, within, q)).sum().detach())
    damping = 1 / math.sqrt(q.numel() * 15)
    (step,) = network.value_steps
    assert step.grad.item() == pytest.approx(math.log(2) * 0.5 * wanted * damping, rel=1e-4)
    assert hidden.shape == (64, 16) and first.steps.output is step and second.steps.inputs == (step,)


def test_the_gradient_of_a_weight_step_is_that_of_the_paper():
    weight = torch.tensor([[0.4, -6.8, 9.0], [1.2, -20.0, 3.3]], dtype=torch.float64, requires_grad=True)
    log_step = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    q = RoundedWeights.apply(weight, log_step, 7)
    assert q.tolist() == [[0, -7, 7], [1, -7, 2]]
    outer = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64)
    q.backward(outer)
    assert weight.grad.tolist() == [[1, 2, 0], [2, 0, 3]]
    each = math.log(2) / math.sqrt(3 * 7)
    wanted = [1 * (0 - 0.4) + 2 * (-7 + 6.8) + 3 * 7, 4 * (1 - 0.6) + 5 * -7 + 6 * (2 - 1.65)]
    torch.testing.assert_close(log_step.grad, each * torch.tensor(wanted, dtype=torch.float64))


def test_an_unknown_method_is_refused():
    with pytest.raises(IntqError, match="steps must be one of none, pact, lsq, got 'dorefa'"):
        IntegerNetwork(random_graph(0), "dorefa")
