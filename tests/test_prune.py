"""Pruning: what is left equals the network whose other channels are their means, within the budget, and in integers."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

from intq.backends import reference
from intq.calibrate import observe_limits
from intq.capture import capture
from intq.channels import IMPLANTED, KEPT, REMOVED, couple, implantable, is_depthwise, thinned
from intq.errors import IntqError
from intq.floatgraph import CONTRACTIONS, contraction, evaluate, limited, scaled_residual
from intq.hessian import filter_traces
from intq.losses import of_graph, with_own_answers
from intq.prune import Pruned, by_hessian, prune, refitted, spread
from intq.quantize import quantize
from intq.simplify import simplify
from intq.vision.synthetic import random_images, random_model

torch.set_num_threads(1)


class Block(nn.Module):
    """One of the ways in which channels go together, drawn at random, and a ReLU."""

    def __init__(self, channels: int, random: np.random.Generator):
        super().__init__()
        self.kind = random.choice(
            ["plain", "residual", "depthwise", "grouped", "branches", "gate", "halves", "widened"]
        )
        c, inner, k = channels, 4 * int(random.integers(1, 4)), int(random.choice([1, 3]))
        self.outputs = {"branches": inner + 4 + c, "plain": inner, "widened": 2 * c}.get(self.kind, c)
        conv = partial(nn.Conv2d, kernel_size=k, padding=k // 2)
        if self.kind == "plain":
            self.a = nn.Conv2d(c, inner, 3, int(random.integers(1, 3)), 1)
        elif self.kind in ("residual", "depthwise"):
            groups = inner if self.kind == "depthwise" else 1
            self.a, self.b = conv(c, inner), nn.Conv2d(inner, inner, 3, padding=1, groups=groups)
            self.c = conv(inner, c)
        elif self.kind == "grouped":
            self.a, self.b = conv(c, inner), nn.Conv2d(inner, c, 3, padding=1, groups=2)
        elif self.kind == "branches":
            self.a, self.b = nn.Conv2d(c, inner, 3, padding=1), conv(c, 4)
        elif self.kind == "gate":
            self.a, self.b = nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, c, 1)
        elif self.kind == "halves":
            self.a, self.b, self.half = conv(c, c), nn.Conv2d(c // 2, c - c // 2, 3, padding=1), c // 2
        else:
            self.a = nn.Conv2d(c, 2 * c, 3, padding=1, groups=c)
        self.norm = nn.BatchNorm2d(self.outputs)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        nn.init.normal_(self.norm.bias, 0, 0.3)

    def forward(self, x):
        if self.kind in ("plain", "widened"):
            y = self.a(x)
        elif self.kind in ("residual", "depthwise"):
            y = x + self.c(F.relu6(self.b(F.relu(self.a(x)))))
        elif self.kind == "grouped":
            y = self.b(F.relu(self.a(x)))
        elif self.kind == "branches":
            y = torch.cat([self.a(x), F.relu(self.b(x)), F.avg_pool2d(x, 3, 1, 1)], 1)
        elif self.kind == "gate":
            y = self.a(x)
            y = y * torch.sigmoid(self.b(y.mean((2, 3), keepdim=True)))
        else:
            y = self.a(x)
            y = torch.cat([y[:, : self.half], self.b(F.relu(y[:, : self.half]))], 1)
        return F.relu(self.norm(y))


class Network(nn.Module):
    def __init__(self, seed: int):
        super().__init__()
        random = np.random.default_rng(seed)
        layers, channels = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()], 8
        for _ in range(3):
            layers.append(Block(channels, random))
            channels = layers[-1].outputs
        self.body = nn.Sequential(*layers)
        self.pooled = bool(random.integers(2))
        self.head = nn.LazyLinear(5)

    def forward(self, x):
        x = self.body(x)
        mean = self.pooled or x.shape[2] < 2  # strided blocks may leave one pixel
        return self.head((x.mean((2, 3)) if mean else F.max_pool2d(x, 2)).flatten(1))


def network(seed: int) -> tuple[nn.Module, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, x = Network(seed).eval(), torch.randn(8, 3, 8, 8)
        model(x)
        return model, x


def captured(model: nn.Module, x: torch.Tensor):
    with torch.no_grad():
        return simplify(capture(model, x))


def means_of(graph, x):
    return {name: seen.mean for name, seen in observe_limits(graph, [x], lambda done, total: None).items()}


def some(graph, channels, seed: int) -> np.ndarray:
    """Units removed and implanted at random, some of every layer kept."""
    random, layers = np.random.default_rng(seed), [n for n in graph.nodes if n.op in CONTRACTIONS]
    state = np.full(len(channels.fixed), KEPT)
    implants = np.zeros(len(state), bool)
    for node in layers:
        if implantable(node, graph):
            implants[channels.units[node.name]] = True
    implants &= channels.movable
    for unit in random.permutation(len(state)):
        last = any(unit in (of := channels.units[n.name]) and len(set(of[state[of] != REMOVED])) < 2 for n in layers)
        drawn = random.choice([KEPT, IMPLANTED, REMOVED])
        if (drawn == IMPLANTED and implants[unit]) or (drawn == REMOVED and not channels.fixed[unit] and not last):
            state[unit] = drawn
    return state


def masked(graph, channels, state, means, x):
    """The whole network, of which layers read the mean of a removed channel everywhere, and the outer taps of an
    implanted filter that of each channel."""
    values = {graph.input: x}
    for node in graph.nodes:
        inputs = [values[name] for name in node.inputs]
        if node.op not in CONTRACTIONS:
            values[node.name] = evaluate(node, *inputs)
            continue
        mean, read = means[node.inputs[0]].float(), torch.from_numpy(channels.units[node.inputs[0]])
        gone = torch.from_numpy(state)[read] == REMOVED
        shape = (1, -1, 1, 1) if node.op == "conv2d" else (1, -1)
        constant = mean.reshape(shape).expand_as(inputs[0])
        seen = torch.where(gone.reshape(shape), constant, inputs[0])
        weight, bias = node.parameters["weight"], node.parameters["bias"]
        if node.op == "linear":
            y = F.linear(seen, weight, bias)
        else:
            pad = node.parameters.get("pad", torch.zeros_like(mean))
            y = contraction(node.with_parameters(pad=torch.where(gone, mean, pad)), seen, weight, bias)
            small = torch.from_numpy(state[channels.units[node.name]] == IMPLANTED)
            if implantable(node, graph) and small.any():
                inner, (kh, kw) = torch.zeros_like(weight), weight.shape[2:]
                inner[:, :, kh // 2, kw // 2] = weight[:, :, kh // 2, kw // 2]
                around = contraction(node.with_parameters(pad=mean), constant, weight - inner, bias)
                by_middle = contraction(node, seen, inner, None) + around
                y = torch.where(small.reshape(shape), by_middle, y)
        y = y + scaled_residual(node, inputs[1]) if len(inputs) > 1 else y
        values[node.name] = limited(node, y)
    return values[graph.output]


def macs(graph, shapes=None) -> int:
    """Multiplications of a float graph for one input, from its shapes alone."""
    total = 0
    for node in graph.nodes:
        if node.op in CONTRACTIONS:
            total += math.prod(node.shape[2:]) * node.parameters["weight"].numel()
    return total


def integer_macs(graph) -> int:
    return sum(
        math.prod(node.output.shape[1:-1]) * node.constants["weight"].size
        for node in graph.nodes
        if node.op in CONTRACTIONS
    )


# ---- what is left ------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**20))
def test_what_is_left_is_the_network_whose_other_channels_are_their_means(seed):
    model, x = network(seed)
    graph = captured(model, x)
    channels = couple(graph)
    state, means = some(graph, channels, seed), means_of(graph, x)
    with torch.no_grad():
        thin = thinned(graph, channels, state, means)
        expected, found = masked(graph, channels, state, means, x), thin.graph.run(x)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert macs(thin.graph) <= macs(graph)
    for (name, value), shape in zip(thin.graph.values(x), thin.graph.shapes().values(), strict=True):
        assert value.shape[1:] == shape[1:], name


@pytest.mark.parametrize("name", ["small_resnet", "small_mobilenet_v2"])
def test_channels_that_go_together(name):
    model, x = random_model(name), torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    graph = captured(model, x)
    channels = couple(graph)
    for node in graph.nodes:
        if len(node.inputs) > 1:  # a residual
            assert np.array_equal(channels.units[node.name], channels.units[node.inputs[1]])
        elif node.op in CONTRACTIONS and is_depthwise(node):
            assert np.array_equal(channels.units[node.name], channels.units[node.inputs[0]])
        elif node.op in CONTRACTIONS:
            assert not set(channels.units[node.name]) & set(channels.units[node.inputs[0]])
    assert channels.fixed.sum() == 11  # the gray image, and ten classes
    state, means = some(graph, channels, 1), means_of(graph, x)
    with torch.no_grad():
        found, expected = thinned(graph, channels, state, means).graph.run(x), masked(graph, channels, state, means, x)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_places_in_a_concatenation_and_behind_flattening():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 3, 3, padding=1), nn.Linear(5 * 4, 2)

        def forward(self, x):
            return self.c(F.relu(torch.cat([self.a(x), self.b(x)], 1)).flatten(1))

    graph = captured(Joined().eval(), torch.randn(2, 1, 2, 2))
    units = couple(graph).units
    a, b = units["a"].tolist(), units["b"].tolist()
    linear = graph.nodes[-1]
    assert linear.op == "linear" and units[linear.inputs[0]].tolist() == [unit for unit in a + b for _ in range(4)]


def silenced(graph, layer: str, outputs):
    """The graph in which these filters of a layer are zero."""
    nodes = []
    for node in graph.nodes:
        if node.name == layer:
            weight, bias = node.parameters["weight"].clone(), node.parameters["bias"].clone()
            weight[outputs], bias[outputs] = 0, 0
            node = node.with_parameters(weight=weight, bias=bias)
        nodes.append(node)
    return type(graph)(graph.input, graph.input_shape, tuple(nodes), graph.output)


def test_filters_that_are_zero_go_first_and_change_nothing():
    model, x = random_model("small_resnet"), torch.randn(16, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    zeros = [1, 5, 6, 20, 30]
    graph = silenced(captured(model, x), "layer2.0.conv1", zeros)
    pruned = by_hessian(graph, [x], {"bops": 1 - 5 * 9 * (16 + 32) * 196 / macs(graph) + 1e-6}, probes=1)
    assert pruned.removed == {"layer2.0.conv1": tuple(zeros)} and not pruned.implanted and pruned.loss == 0
    expected = graph.run(x)
    assert torch.allclose(pruned.graph.run(x), expected, atol=1e-4 * float(expected.abs().max()))


def test_fitting_brings_what_is_left_nearer_and_keeps_what_is_right():
    model, x = random_model("small_resnet"), torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    graph = captured(model, x)
    channels, means = couple(graph), means_of(graph, x)
    state = some(graph, channels, 3)
    with torch.no_grad():
        thin, expected = thinned(graph, channels, state, means), graph.run(x)
        fitted = refitted(thin, graph, [x[:32], x[32:]])
        before, after = ((g.run(x) - expected).square().mean() for g in (thin.graph, fitted))
        whole = thinned(graph, channels, np.zeros_like(state), means)
        same = refitted(whole, graph, [x])
    assert after < before / 4
    assert torch.allclose(same.run(x), expected, atol=1e-4 * float(expected.abs().max()))


# ---- what goes ---------------------------------------------------------------------------------------------------


def test_filters_traces_are_those_of_the_exact_hessian():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(32, 4)
        )
        x = torch.randn(6, 2, 4, 4)
    graph = captured(model.eval(), x)
    loss, batches = of_graph(graph), with_own_answers(graph.run, [x[:4], x[4:]])
    found = filter_traces(loss, batches, probes=800, seed=1)
    for name, weight in loss.weights.items():
        exact = torch.zeros(weight.shape).flatten()
        for batch in batches:
            one = lambda w, name=name, batch=batch: loss.of({**loss.weights, name: w}, batch, lambda name, x: x)  # noqa: E731
            hessian = torch.autograd.functional.hessian(one, weight)
            exact += hessian.reshape(weight.numel(), -1).diagonal() * len(batch[0]) / len(x)
        exact = exact.reshape(*weight.shape[:2], -1).sum(1)
        assert found[name].shape == exact.shape
        assert float((found[name] - exact).norm() / exact.norm()) < 0.12
    again = filter_traces(loss, batches, probes=800, seed=1)
    assert all(torch.equal(found[name], again[name]) for name in found)


@pytest.mark.parametrize("keep", [{"bops": 0.5}, {"size": 0.4}, {"bops": 0.45, "size": 0.3}])
@pytest.mark.parametrize("name", ["small_resnet", "small_mobilenet_v2"])
def test_budgets_are_met_in_the_shapes(name, keep):
    model, x = random_model(name), torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    graph = captured(model, x)
    pruned = by_hessian(graph, [x], keep, probes=1, rounds=2, implant=True)
    weights = [
        sum(n.parameters["weight"].numel() for n in g.nodes if n.op in CONTRACTIONS) for g in (pruned.graph, graph)
    ]
    counted = {"bops": macs(pruned.graph) / macs(graph), "size": weights[0] / weights[1]}
    assert pruned.kept == pytest.approx(counted)
    assert all(counted[name] <= share + 1e-9 for name, share in keep.items())
    assert all(counted[name] > share - 0.05 for name, share in keep.items() if len(keep) == 1)
    assert min(n.shape[1] for n in pruned.graph.nodes if n.op == "concat" or n.name in pruned.removed) >= 4
    assert "the network keeps" in pruned.graph.notices[-1]


def test_bits_weigh_layers():
    model, x = random_model("small_resnet"), torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    graph = captured(model, x)
    cheap = {n.name: (2, 4) for n in graph.nodes if n.op in CONTRACTIONS and n.name.startswith("layer3")}
    plain, weighed = (by_hessian(graph, [x], {"bops": 0.7}, probes=1, rounds=1, bits=bits) for bits in ({}, cheap))
    count = lambda pruned: sum(len(v) for k, v in pruned.removed.items() if k in cheap)  # noqa: E731
    assert count(weighed) < count(plain)


def test_a_sensitive_filter_whose_middle_says_all_is_implanted():
    model, x = random_model("small_resnet"), torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    graph = captured(model, x)
    nodes = []
    for node in graph.nodes:
        if node.name == "layer3.0.conv1":
            weight = node.parameters["weight"].clone()
            outer = torch.ones(3, 3)
            outer[1, 1] = 0
            weight[:40] -= weight[:40] * outer * 0.999
            node = node.with_parameters(weight=weight)
        nodes.append(node)
    graph = type(graph)(graph.input, graph.input_shape, tuple(nodes), graph.output)
    share = 1 - 40 * 8 * 32 * 49 / macs(graph)
    pruned = prune(graph, ones, [x], {"bops": share + 1e-6}, rounds=1, implant=True)
    assert pruned.implanted == {"layer3.0.conv1": tuple(range(40))} and not pruned.removed
    made = {node.name: node for node in pruned.graph.nodes}
    assert made["layer3.0.conv1.spatial"].parameters["weight"].shape == (24, 32, 3, 3)
    assert made["layer3.0.conv1.pointwise"].parameters["weight"].shape == (40, 32, 1, 1)
    assert made["layer3.0.conv1"].op == "concat" and made["layer3.0.conv1"].shape == ("n", 64, 7, 7)
    without = prune(graph, ones, [x], {"bops": share + 1e-6}, rounds=1)
    assert not without.implanted and without.removed


def ones(graph):
    """The same curvature for all weights."""
    weights = {n.name: n.parameters["weight"] for n in graph.nodes if n.op in CONTRACTIONS}
    return {name: torch.full((len(w), w[0, 0].numel()), float(w.shape[1])) for name, w in weights.items()}


def test_the_same_seed_gives_the_same_network():
    model, x = network(5)
    graph = captured(model, x)
    a, b = (by_hessian(graph, [x], {"bops": 0.6}, probes=2, seed=4, implant=True) for _ in range(2))
    assert (a.removed, a.implanted, a.kept, a.loss) == (b.removed, b.implanted, b.kept, b.loss)
    assert torch.equal(a.graph.run(x), b.graph.run(x))


# ---- in integers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"residual_bits": 16}, {"weight_bits": {"layer3*": 4}, "equalize": False}])
def test_pruned_then_quantized(options):
    model, pixels = random_model("small_resnet"), random_images(48, (28, 28), 0, 1)
    found: list[Pruned] = []

    def smaller(graph, batches):
        found.append(by_hessian(graph, batches, {"bops": 0.5}, probes=1, rounds=2, implant=True))
        return found[0].graph

    mean_std = {"mean": (0.5,), "std": (0.5,)}
    whole, graph = quantize(model, pixels, **mean_std), quantize(model, pixels, prune=smaller, **mean_std, **options)
    graph.verify()
    assert found[0].implanted  # so that both kinds of filters are in the integer network
    assert integer_macs(graph) / integer_macs(whole) == pytest.approx(found[0].kept["bops"])
    assert any(notice.startswith("pruned: ") for notice in graph.metadata["notices"])
    scores = reference.run(graph, pixels[:16])[0] * graph.values[graph.outputs[0]].scale
    with torch.no_grad():
        exact = found[0].graph.run(torch.from_numpy(pixels[:16]).permute(0, 3, 1, 2).float()).numpy()
    assert np.square(scores - exact).mean() < 0.02 * exact.var()


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**20))
@example(seed=34)
def test_random_networks_pruned_then_quantized(seed):
    model, x = network(seed)
    try:
        smaller = by_hessian(
            captured(model, x), [x], {"bops": 0.7}, probes=1, rounds=1, refit=False, implant=True
        ).graph
    except IntqError as error:
        assert "comes down to" in str(error)
        return
    quantize(model, x, prune=lambda graph, batches: smaller).verify()


# ---- what cannot be ----------------------------------------------------------------------------------------------


def test_a_budget_out_of_reach_says_what_is_in_reach():
    model, x = random_model("small_resnet"), torch.randn(4, 1, 28, 28)
    graph = captured(model, x)
    with pytest.raises(IntqError, match=r"cannot keep as little as bops=0.001: with 4 channels .* down to bops=0.0"):
        prune(graph, ones, [x], {"bops": 0.001}, rounds=1)
    for keep in ({"bops": 0}, {"bops": 1.5}, {"latency": 0.5}):
        with pytest.raises(IntqError, match="pruning keeps shares of bops and size, above 0 and up to 1"):
            prune(graph, ones, [x], keep)
    with pytest.raises(IntqError, match=r"conv1: pruning needs this layer's traces .*\(16, 9\)"):
        prune(graph, lambda graph: {}, [x], {"bops": 0.5})


def test_samples_from_all_over():
    batches = [torch.arange(10), torch.arange(10, 15)]
    assert [b.tolist() for b in spread(batches, 3)] == [[0, 5], [10]]
    assert torch.cat(spread(batches, 99)).tolist() == list(range(15))
