"""Traces, eigenvalues and densities against the exact Hessian of small networks."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_speech import RATE, recording, small
from text_models import tiny
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from intq.capture import capture
from intq.errors import IntqError
from intq.floatgraph import FloatGraph
from intq.frames import recordings
from intq.frontend import FrontEnd
from intq.functions import FUNCTIONS
from intq.hessian import diagonal, generator, gradient, inner, signs, traces
from intq.losses import Loss, cross_entropy, of_graph, of_module, samples, split, with_drawn_answers, with_own_answers
from intq.processes import share
from intq.rounding import round_weights
from intq.sensitivity import fisher, omega, weight_error
from intq.simplify import simplify
from intq.spectrum import density, eigenvalues

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`")  # that torch itself calls in torch.func.hessian


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out, self.head = nn.Linear(4, 12), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):  # (n, tokens, 4)
        q, k, v = (t.unflatten(2, (2, 2)).transpose(1, 2) for t in self.qkv(x).chunk(3, 2))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head((x + self.out(y)).mean(1))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3, 3)

    def forward(self, x):
        x = F.relu(self.first(x), inplace=True)
        return self.head((x + self.norm(self.second(x)).relu_()).mean((2, 3)))


NETWORKS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)), (5,)),
    "conv": (Residual, (2, 5, 5)),
    "attention": (Attention, (3, 4)),
}


def network(kind: str, count: int = 10, seed: int = 0, dtype=torch.float64):
    """A module in evaluation mode, and batches (x, classes) of 4 samples, the last of fewer."""
    make, shape = NETWORKS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = make().to(dtype).eval()
        data = torch.randn(count, *shape, dtype=dtype), torch.randint(3, (count,))
    return module, split([data], 4)


def exact(loss: Loss, batches: list) -> tuple[dict, dict]:
    """{name: block} of the Hessian by weights, and {name: (samples' mean) trace} by perturbations that are added."""
    total = sum(map(samples, batches))
    blocks, activations = {}, {}
    with sdpa_kernel(SDPBackend.MATH):
        for batch in batches:
            seen: dict = {}
            loss.of(loss.weights, batch, lambda name, x: seen.setdefault(name, torch.zeros_like(x)) + x)  # noqa: B023

            def of(weights, added):
                return loss.of(weights, batch, lambda name, x: x + added[name])  # noqa: B023

            by_weights, by_added = (torch.func.hessian(of, argnums=i)(dict(loss.weights), seen) for i in (0, 1))
            for kind, found in ((blocks, by_weights), (activations, by_added)):
                for name in found:
                    block = found[name][name].flatten(0, found[name][name].ndim // 2 - 1).flatten(1)
                    part = samples(batch) / total * (block if kind is blocks else block.trace())
                    kind[name] = kind.get(name, 0) + part
    return blocks, activations


def full_hessian(loss: Loss, batches: list) -> torch.Tensor:
    total, shapes = sum(map(samples, batches)), {name: w.shape for name, w in loss.weights.items()}

    def of(flat):
        parts = flat.split([shape.numel() for shape in shapes.values()])
        weights = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return sum(samples(b) / total * loss.of(weights, b, lambda name, x: x) for b in batches)

    with sdpa_kernel(SDPBackend.MATH):
        return torch.func.hessian(of)(torch.cat([w.flatten() for w in loss.weights.values()]))


# ---- traces ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NETWORKS)
def test_traces_are_those_of_the_exact_hessian(kind):
    module, batches = network(kind)
    loss = of_module(module)
    blocks, activations = exact(loss, batches)
    found = traces(loss, batches, tolerance=0, most=100)
    assert not found.converged
    assert found.weights.keys() == blocks.keys() and found.activations.keys() == activations.keys()
    for name, trace in found.weights.items():
        assert abs(trace.trace - float(blocks[name].trace())) <= 4 * trace.error, name
        assert trace.mean == trace.trace / loss.weights[name].numel() and trace.probes == 300
    for name, trace in found.activations.items():
        assert abs(trace.trace - float(activations[name])) <= 4 * trace.error, name
        assert trace.mean == trace.trace / trace.elements
    assert json.loads(json.dumps(asdict(found))) == asdict(found)


@pytest.mark.parametrize("kind", NETWORKS)
def test_it_ends_when_errors_are_within_the_tolerance(kind):
    module, batches = network(kind)
    batches, loss = with_own_answers(module, [x for x, _ in batches]), of_module(module)
    blocks, _ = exact(loss, batches)
    found = traces(loss, batches, tolerance=0.1, most=1000)
    assert found.converged
    for name, trace in found.weights.items():
        true = float(blocks[name].trace())
        assert trace.error <= 0.1 * trace.trace and abs(trace.trace - true) <= 0.35 * true, name


def test_a_graph_has_the_hessian_of_its_weights_and_of_the_values_that_contractions_read():
    module, batches = network("conv")
    graph = in_float64(simplify(capture(module.float(), batches[0][0][:2].float())))
    loss = of_graph(graph)
    blocks, activations = exact(loss, batches)
    found = traces(loss, batches, tolerance=0.1, most=200)
    assert {"x", "first"} <= found.activations.keys() and {"first", "second", "head"} == found.weights.keys()
    for name, trace in found.weights.items():
        assert abs(trace.trace - float(blocks[name].trace())) <= 4 * trace.error, name
    for name, trace in found.activations.items():
        assert abs(trace.trace - float(activations[name])) <= 4 * trace.error, name
    assert found.activations["x"].elements == 2 * 5 * 5


def in_float64(graph: FloatGraph) -> FloatGraph:
    nodes = [replace(n, parameters={k: v.double() for k, v in n.parameters.items()}) for n in graph.nodes]
    return replace(graph, nodes=tuple(nodes))


def test_estimates_are_unbiased_and_their_errors_true():
    module, batches = network("mlp")
    loss = of_module(module)
    blocks, activations = exact(loss, batches)
    runs = [traces(loss, batches, tolerance=1e9, most=8, seed=seed) for seed in range(40)]
    for name in (*blocks, *activations):
        kind = "weights" if name in blocks else "activations"
        true = float(blocks[name].trace()) if name in blocks else float(activations[name])
        values = np.array([getattr(run, kind)[name].trace for run in runs])
        errors = np.array([getattr(run, kind)[name].error for run in runs])
        assert abs(values.mean() - true) <= 4 * values.std() / len(runs) ** 0.5, name
        assert 0.6 < np.sqrt((errors**2).mean()) / values.std() < 1.6, name


def test_small_layers_are_known_as_well_as_large_ones():
    # the first layer's weights are a thousandth and the second's a thousand times as large: so are gradients
    module, batches = network("mlp")
    with torch.no_grad():
        module[0].weight.mul_(1e-3)
        module[0].bias.mul_(1e-3)
        module[2].weight.mul_(1e3)
    batches = with_own_answers(module, [x for x, _ in batches])
    found = traces(of_module(module), batches, tolerance=0, most=40).weights
    sizes = [trace.trace for trace in found.values()]
    assert max(sizes) > 1e4 * min(sizes) > 0
    assert max(trace.error / trace.trace for trace in found.values()) < 0.4


def test_the_seed_decides():
    module, batches = network("mlp")
    one, same, other = (traces(of_module(module), batches, most=4, seed=seed) for seed in (0, 0, 1))
    assert one == same and one != other


def by_hand(**terms) -> tuple[Loss, list]:
    """A quadratic loss with these diagonals as Hessian."""
    diagonals = {name: torch.tensor(values, dtype=torch.float64) for name, values in terms.items()}

    def of(weights, batch, perturb):
        return sum((weights[name] ** 2 * d).sum() for name, d in diagonals.items()) / 2 + 0 * batch.sum()

    return Loss({name: torch.ones_like(d) for name, d in diagonals.items()}, of), [torch.ones(2, 1)]


def test_traces_below_and_near_zero():
    loss, batches = by_hand(positive=[3.0, 5.0], negative=[-1.0, -1.0], none=[1.0, -1.0], flat=[0.0])
    found = traces(loss, batches)
    assert found.converged
    assert {name: round(t.trace, 9) for name, t in found.weights.items()} == {
        "positive": 8, "negative": -2, "none": 0, "flat": 0,
    }  # fmt: skip
    assert found.weights["positive"].probes == 12  # no cross terms, no error; but no fewer than make one believable
    assert omega(found.weights["negative"], {4: 2.0, 8: 1.0}) == {4: 0.0, 8: 0.0}
    assert omega(found.weights["positive"], {4: 2.0, 8: 0.5}) == pytest.approx({4: 8.0, 8: 2.0})


def test_a_linear_loss_has_no_hessian():
    loss = Loss({"w": torch.ones(3)}, lambda weights, batch, perturb: (weights["w"] * batch).sum())
    found = traces(loss, [torch.ones(1, 3)])
    assert found.converged and found.weights["w"].trace == 0 and found.activations == {}


def test_signs_are_independent_bits():
    for shape in ((1,), (7,), (3, 5), (1000, 129)):
        drawn = signs(torch.empty(shape, dtype=torch.float64), generator(torch.device("cpu"), 3))
        assert drawn.shape == shape and drawn.dtype == torch.float64 and set(drawn.flatten().tolist()) <= {-1.0, 1.0}
    assert abs(float(drawn.mean())) < 4 / drawn.numel() ** 0.5
    assert float((drawn.T @ drawn / 1000 - torch.eye(129)).abs().max()) < 6 / 1000**0.5


def test_progress_counts_every_probe():
    module, batches = network("mlp")
    seen = []
    traces(of_module(module), batches, tolerance=0, most=5, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 15) for i in range(1, 16)]


# ---- the diagonal, Fisher information, omega ---------------------------------------------------------------------


def test_the_diagonal_that_adahessian_takes():
    module, ((x, y), *_) = network("mlp")
    loss = of_module(module)
    expected = full_hessian(loss, [(x, y)]).diagonal()
    weights = [module[i].weight for i in (0, 2, 4)]
    random, total, count = generator(x.device, 0), 0.0, 400
    for _ in range(count):
        gradients = torch.autograd.grad(F.cross_entropy(module(x), y), weights, create_graph=True)
        found = diagonal(gradients, weights, random)
        total = total + torch.cat([d.flatten() for d in found])
    assert not found[0].requires_grad
    full = full_hessian(loss, [(x, y)])
    error = ((full**2).sum(1) - full.diagonal() ** 2).sqrt() / count**0.5
    assert bool(((total / count - expected).abs() <= 4.5 * error).all())
    with pytest.raises(IntqError, match="create_graph"):
        diagonal(torch.autograd.grad(F.cross_entropy(module(x), y), weights), weights, random)


def test_fisher_is_the_mean_of_each_samples_squared_gradient():
    module, batches = network("conv")
    loss, (x, y) = of_module(module), (torch.cat(parts) for parts in zip(*network("conv")[1], strict=True))

    def one(weights, a, b):
        return loss.of(weights, (a[None], b[None]), lambda name, value: value)

    each = torch.func.vmap(torch.func.grad(one), (None, 0, 0))(dict(loss.weights), x, y)
    found = fisher(loss, batches)
    for name, g in each.items():
        squares = g.flatten(1).square().sum(1)
        assert found.weights[name].trace == pytest.approx(float(squares.mean()))
        assert found.weights[name].error == pytest.approx(float(squares.std()) / len(x) ** 0.5)
    assert found.activations.keys() == {"first", "second", "head"}
    assert json.loads(json.dumps(asdict(found))) == asdict(found)


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_fisher_of_drawn_answers_is_the_hessian_at_the_networks_own(kind):
    module, batches = network(kind)
    inputs, loss = [x for x, _ in batches], of_module(module)
    blocks, activations = exact(loss, with_own_answers(module, inputs))
    found = fisher(loss, with_drawn_answers(module, inputs, times=40))
    for name, trace in found.weights.items():
        assert float(torch.linalg.eigvalsh(blocks[name]).min()) > -1e-9
        assert abs(trace.trace - float(blocks[name].trace())) <= 4 * trace.error, name
    for name, trace in found.activations.items():
        assert abs(trace.trace - float(activations[name])) <= 4 * trace.error, name


@pytest.mark.parametrize("bits", [8, 16])
def test_the_error_of_weights_is_that_of_the_quantizer(bits):
    module, batches = network("conv")
    (node, *_) = simplify(capture(module.float(), batches[0][0][:2].float())).nodes
    x = [[batches[0][0].float()]]
    weight = node.parameters["weight"]
    chosen = round_weights(node, x, x, "nearest", False, 0, bits)
    expected = float((chosen.real().double() - weight.double()).square().sum())
    assert weight_error(weight, bits) == pytest.approx(expected, rel=1e-4 if bits == 8 else 0.05)


def test_narrow_weights_err_more():
    weight = torch.tensor([[0.6, -1.0, 0.2], [0.0, 0.0, 0.0]])
    assert weight_error(weight, 2) == pytest.approx(2 * 0.2**2 + 0.2**2), "of steps 0.8, the best there are"
    assert 0 < weight_error(weight, 4) < 1.001 * ((0.6 - 4 / 7) ** 2 + (0.2 - 1 / 7) ** 2)
    assert weight_error(weight, 8) == pytest.approx((0.6 - 76 / 127) ** 2 + (0.2 - 25 / 127) ** 2, rel=1e-4)
    with pytest.raises(IntqError, match="2, 4, 8, 16 bits, got 3"):
        weight_error(weight, 3)


# ---- eigenvalues -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NETWORKS)
def test_eigenvalues_and_vectors(kind):
    module, batches = network(kind)
    loss = of_module(module)
    for part in (loss, *(loss.only(name) for name in loss.weights)):
        h = full_hessian(part, batches)
        expected = torch.linalg.eigvalsh(h)
        expected = expected[expected.abs().argsort(descending=True)][:3]
        found = eigenvalues(part, batches, 3, tolerance=1e-6)
        torch.testing.assert_close(torch.tensor(found.values).double(), expected, rtol=1e-5, atol=1e-9)
        for value, residual, vector in zip(found.values, found.residuals, found.vectors, strict=True):
            y = torch.cat([part.flatten() for part in vector.values()])
            assert float(inner(y, y)) == pytest.approx(1)
            assert float((h @ y - value * y).norm()) <= residual + 1e-8 * abs(found.values[0])


def test_few_eigenvalues():
    loss, batches = by_hand(w=[2.0, 2.0, -3.0])
    found = eigenvalues(loss, batches, 5)
    assert found.values == pytest.approx((-3, 2)) and found.products == 2
    assert eigenvalues(by_hand(w=[0.0, 0.0])[0], batches).values == (0.0,)


def test_the_densitys_moments_are_traces():
    module, batches = network("mlp")
    loss = of_module(module)
    h = full_hessian(loss, batches)
    found = density(loss, batches, starts=40, steps=10)
    values = [[found.size * sum(w * t**k for t, w in zip(*r, strict=True)) for k in (1, 2)]
              for r in zip(found.nodes, found.weights, strict=True)]  # fmt: skip
    error = np.std(values, axis=0) / 40**0.5
    exactly = float(h.trace()), float((h @ h).trace())
    assert np.all(np.abs(np.mean(values, axis=0) - exactly) <= 4 * error)
    assert found.trace(lambda t: t * t) == pytest.approx(np.mean(values, axis=0)[1])
    assert np.trapezoid(found.density, found.grid) == pytest.approx(1, abs=1e-3)
    assert json.loads(json.dumps(asdict(found)))["size"] == h.shape[0]


def test_the_density_of_a_whole_space_is_exact():
    loss, batches = by_hand(w=[1.0, 2.0, 2.0, -3.0])
    found = density(loss, batches, starts=1, steps=10)
    assert found.nodes[0] == pytest.approx((-3, 1, 2)) and found.weights[0] == pytest.approx((0.25, 0.25, 0.5))
    assert found.trace() == pytest.approx(2)


# ---- whatever the network holds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "conformer"])
def test_products_through_text_and_speech(kind):
    if kind == "bert":
        model = tiny(kind)
        inputs = torch.randint(4, 60, (3, 7))
        inputs[1, 5:] = model.padding
        graph = in_float64(simplify(capture(model, inputs)))
    else:
        model = small(kind).model
        graph = in_float64(simplify(capture(model, torch.zeros(1, RATE, dtype=torch.int16))))
        inputs = recordings([torch.from_numpy(recording(0.3))[None]])[0].double()
    loss = of_graph(graph)
    (batch,) = with_own_answers(lambda x: graph.run(x).flip(0, -1), [inputs])  # of another network: gradients too
    point = gradient(loss, batch)
    v = [torch.where(w != 0, signs(w, generator(w.device, 1)) * w.std(), 0) for w in loss.weights.values()]
    assert len(point.tensors) > len(v)
    found = point.product([*v, *(torch.zeros_like(t) for t in point.tensors[len(v) :])])
    step = 1e-5

    def moved(by):
        weights = {name: w + by * d for (name, w), d in zip(loss.weights.items(), v, strict=True)}
        return gradient(replace(loss, weights=weights), batch, twice=False).gradients

    ahead, behind = moved(step), moved(-step)
    size = max(float(h.abs().max()) for h in found)
    for h, a, b in zip(found, ahead, behind, strict=True):
        torch.testing.assert_close(h, (a - b) / (2 * step), rtol=1e-3, atol=1e-5 * size)


def test_the_operators_of_intq_differentiate_twice():
    front = FrontEnd(8000, 32, 16, 32, 4).to_json()
    torch.manual_seed(0)
    for operator, shapes in (
        (lambda q, table: torch.ops.intq.relative_scores(q, table, 0.3), [(2, 3, 4), (2, 7, 2)]),
        (lambda x: torch.ops.intq.normalize_frames(x, 1e-5, 1, None, 0.0), [(2, 5, 3)]),
        (lambda x: torch.ops.intq.log_mel(x, front, None), [(1, 48)]),
    ):
        inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
        assert torch.autograd.gradcheck(operator, inputs)
        assert torch.autograd.gradgradcheck(operator, inputs)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_differentiate_twice(name):
    x = torch.linspace(-4.13, 4.37, 29, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradgradcheck(FUNCTIONS[name], x)


def test_any_mode_of_the_caller():
    module, batches = network("conv")
    expected = traces(of_module(module), batches, most=4)
    module.requires_grad_(False)
    with torch.no_grad():
        assert traces(of_module(module), batches, most=4) == expected
    with torch.inference_mode():
        assert traces(of_module(module), batches, most=4) == expected
        assert len(eigenvalues(of_module(module), batches).values) == 2
        made, again = network("conv")  # tensors that remember their mode
        with pytest.raises(IntqError, match="nference"):
            traces(of_module(made), again, most=4)
    assert all(p.grad is None for p in module.parameters()) and not module._forward_pre_hooks


def test_batches_of_mappings_and_layers_that_are_called_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, a, b):
            return self.layer(self.layer(a) * b)

    batch = {"a": torch.randn(4, 3), "b": torch.randn(4, 3)}, torch.tensor([0, 1, 2, 0])
    found = traces(of_module(Twice().eval()), split([batch], 3), most=4)
    assert list(found.weights) == ["layer.weight"] and list(found.activations) == ["layer", "layer:2"]


def test_scores_of_every_frame_and_soft_answers():
    scores, classes = torch.randn(2, 5, 4), torch.randint(4, (2, 5))
    expected = F.cross_entropy(scores.transpose(1, 2), classes)
    torch.testing.assert_close(cross_entropy(scores, classes), expected)
    torch.testing.assert_close(cross_entropy(scores, F.one_hot(classes, 4).float()), expected)
    ((_, drawn),) = with_drawn_answers(lambda x: x * 100, [scores])
    assert torch.equal(drawn, scores.argmax(-1))


# ---- mistakes ----------------------------------------------------------------------------------------------------


def test_mistakes_are_told():
    module, batches = network("mlp")
    loss = of_module(module)
    for problem, call in {
        "at least one batch": lambda: traces(loss, []),
        "a row for each sample": lambda: traces(loss, [()]),
        "found \\[nan\\]": lambda: traces(loss, [(batches[0][0] * torch.nan, batches[0][1])]),
        "one finite number": lambda: traces(of_module(module, lambda outputs, targets: outputs), batches),
        "training mode": lambda: of_module(nn.Linear(2, 2)),
        "no parameter 'w'": lambda: of_module(module, names=["w"]),
        "no weight 'w'": lambda: loss.only("w"),
        "neither weights nor": lambda: traces(loss.only(), batches, activations=False),
        "two or more are needed, got 1": lambda: fisher(loss, split(batches[:1], 1)[:1]),
        "two probes": lambda: traces(loss, batches, most=1),
        "no weights": lambda: eigenvalues(loss.only(), batches),
        "'layer' twice": lambda: traces(
            Loss({}, lambda w, b, perturb: (perturb("layer", b) * perturb("layer", b)).sum()), [torch.ones(1)]
        ),
        "of one batch and not of another": lambda: traces(
            Loss({}, lambda w, b, perturb: (perturb(str(len(b)), b) ** 2).sum()), [torch.ones(1), torch.ones(2)]
        ),
        "is NaN or infinite": lambda: traces(
            Loss({"w": torch.zeros(2)}, lambda w, b, perturb: (w["w"].abs() ** 1.5).sum()), [torch.ones(1)]
        ),
        "_ctc_loss_backward": lambda: traces(
            Loss({"w": torch.randn(4, 1, 3)}, lambda w, b, perturb: F.ctc_loss(
                w["w"].log_softmax(2), b, torch.tensor([4]), torch.tensor([2]))), [torch.tensor([[1, 2]])]
        ),
    }.items():  # fmt: skip
        with pytest.raises(IntqError, match=problem):
            call()


# ---- several processes -------------------------------------------------------------------------------------------

PART = """
import json
from dataclasses import asdict

import torch
from torch import nn

from intq.hessian import traces
from intq.losses import of_module, split
from intq.sensitivity import fisher
from intq.spectrum import eigenvalues

torch.set_num_threads(1)
torch.manual_seed(0)
module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3)).double().eval()
batches = split([(torch.randn(17, 2, 5, 5).double(), torch.randint(3, (17,)))], 4)
loss = of_module(module)
result = [asdict(traces(loss, batches, most=8)), asdict(fisher(loss, batches)), eigenvalues(loss, batches).values]
"""


def test_two_processes_find_what_one_does():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    end = "print(json.dumps(result))\ntorch.distributed.destroy_process_group()"
    parts = [
        subprocess.Popen(
            [sys.executable, "-c", PART + end],
            env={**shared, "RANK": str(i), "LOCAL_RANK": str(i)},
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
            text=True,
        )
        for i in range(2)
    ]
    (one, other) = (json.loads(part.communicate(timeout=300)[0]) for part in parts)
    assert one == other
    alone: dict = {}
    with torch.random.fork_rng(devices=[]):
        exec(PART, alone)
    found, shares, values = alone["result"]
    assert one[0] == found, "to the last bit"
    for name, trace in shares["weights"].items():
        assert one[1]["weights"][name] == pytest.approx(trace, rel=1e-12)
    assert one[2] == pytest.approx(values)


def test_more_processes_than_batches(monkeypatch):
    monkeypatch.setattr("intq.processes.state", lambda: type("State", (), {"process_index": 1, "num_processes": 3}))
    assert share("abcde") == [(1, "b"), (4, "e")]
    with pytest.raises(IntqError, match="3 processes cannot share 2 batches"):
        share("ab")
