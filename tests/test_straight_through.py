"""Training: the integers of the reference, and the gradient of the real function behind them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graphs import FUNCTIONS, pixels, random_graph
from text_graphs import PADDING, random_text_graph, sentences

from intq.backends import reference
from intq.backends import torch as torch_backend
from intq.backends.real import RealDialect, power_of_two, table_slope
from intq.backends.straight_through import IntegerNetwork, IntegerNode, StraightThrough, rounded
from intq.backends.torch import Run, TorchDialect, arranged, exact_runs
from intq.errors import IntqError, UnprovenError
from intq.fixedpoint import dyadic, offset_of
from intq.graph import Graph, make_node
from intq.ops import OPS
from intq.value import DTYPE_RANGE, Value, bind_shape

torch.set_num_threads(1)


def test_the_value_is_exact_and_the_gradient_the_real_one():
    real = torch.tensor([0.25, 2.0**40], dtype=torch.float64, requires_grad=True)
    exact = torch.tensor([1.0, 2.0**24 - 1])
    y = StraightThrough.apply(3 * real, exact)
    assert torch.equal(y, exact)
    y.backward(torch.tensor([5.0, 7.0]))
    assert real.grad.tolist() == [15.0, 21.0]


def test_rounding_stops_the_gradient_outside_its_range():
    x = torch.tensor([-300.0, -127.0, 0.4, 0.6, 127.0, 127.1], requires_grad=True)
    y = rounded(x, -127, 127)
    assert y.tolist() == [-127, -127, 0, 1, 127, 127]
    y.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 0]


def test_powers_of_two_are_exact():
    assert [int(v) for v in power_of_two(torch.arange(63, dtype=torch.int32))] == [2**e for e in range(63)]


@pytest.mark.parametrize("seed", range(8))
def test_the_forward_of_training_is_the_reference_for_text(seed):
    graph, ids = random_text_graph(seed), sentences(3, 8, seed)
    network = IntegerNetwork(graph)
    (expected,) = reference.run(graph, ids)
    (integers,) = network.integers(torch.from_numpy(ids))
    np.testing.assert_array_equal(integers.detach().numpy(), expected)
    exported = network.graph()
    assert exported.verify() == graph.verify()
    np.testing.assert_array_equal(reference.run(exported, ids)[0], expected)


@pytest.mark.parametrize("seed", range(12))
def test_the_forward_of_training_is_the_reference(seed):
    graph = random_graph(seed)
    network, x = IntegerNetwork(graph), pixels(graph, seed=seed)
    (expected,) = reference.run(graph, x)
    (integers,) = network.integers(torch.from_numpy(x))
    np.testing.assert_array_equal(integers.detach().numpy(), expected)
    scores = graph.values[graph.outputs[0]]
    np.testing.assert_array_equal(network(torch.from_numpy(x)).detach().numpy(), scores.scale * expected)
    real = (torch.from_numpy(x).double() - graph.inputs[0].zero_point) * graph.inputs[0].scale
    np.testing.assert_array_equal(network.integers(real)[0].detach().numpy(), expected, "real pixels")
    exported = network.graph()
    assert exported.verify() == graph.verify()
    np.testing.assert_array_equal(reference.run(exported, x)[0], expected)


SAMPLES = [
    (f"{name}-{i}", name, sample)
    for name, op in OPS.items()
    for i, sample in enumerate(op.samples(np.random.default_rng(11)))
]


def random_inputs(sample, seed: int = 0) -> list[torch.Tensor]:
    rng, sizes = np.random.default_rng(seed), {"n": 2, "s": 9}
    return [
        torch.from_numpy(rng.integers(v.low, v.high, bind_shape(v.shape, sizes), endpoint=True)).double()
        for v in sample.inputs
    ]


def real_result(module: IntegerNode, inputs, learning: bool = False) -> torch.Tensor:
    """The real function that is differentiated; of the parameters too, where they are ``learning``."""
    node, constants, runs = module.node, module.constants(), runs_of(module)
    if learning and module.contracts:
        runs = [Run(slice(None), module.weight.double())]
        moved = module.weight.double().flatten(1).sum(1) - module.first_sums  # the zero point stays where it was
        constants["offset"] = module.offset + module.bias.double() * power_of_two(module.shift)
        constants["offset"] = constants["offset"] - module.zero_point * moved * module.multiplier
    operands = torch_backend.operands_of(node, inputs, constants, runs, torch.float64)
    moves = OPS[node.op].loop == "move"
    dialect = TorchDialect if moves else RealDialect(getattr(module, "slope", None))
    return arranged(node, OPS[node.op].body(dialect, tuple(x.double() for x in operands), constants, node.attrs))


def runs_of(module: IntegerNode):
    return exact_runs(module.integer_weight(), "uint8", module.node.attrs.get("groups", 1)) if module.contracts else []


# By how many steps an operation's integers and its real function differ, where that is not the rounding alone. Those of
# a curve: its argument is rounded too, and its sample rises by 10 steps for each of the argument. A weight of attention
# is rounded to 1/255 of the largest; a row of 9 tokens, as here, is a mean of few of them.
BEYOND_ROUNDING = {
    "curve": 5.5,
    "conv1d": 0.8,
    "linear": 0.8,
    "layernorm": 0.54,
    "attention": 4.0,
    "log_mel": 0.6,
    "normalize_frames": 0.56,
}


@pytest.mark.parametrize(("name", "sample"), [s[1:] for s in SAMPLES], ids=[s[0] for s in SAMPLES])
def test_the_integers_are_the_real_function_rounded(name, sample):
    """So the real function that is differentiated is the right one: it is within half a step of every integer."""
    node = make_node(name, "y", sample.inputs, dtype=sample.dtype, attrs=sample.attrs, constants=sample.constants)
    module, inputs = IntegerNode(node, sample.inputs), random_inputs(sample)
    exact = module(*inputs).detach()
    assert (real_result(module, inputs) - exact).abs().max() <= BEYOND_ROUNDING.get(name, 0.5)


def clamped_convolution() -> tuple[Graph, dict]:
    """A convolution with a residual whose results saturate at both ends, and its constants."""
    rng = np.random.default_rng(2)
    x = Value("x", ("n", 5, 6, 4), "uint8", 0, 255, 0.1, 7)
    r = Value("r", ("n", 3, 3, 8), "int16", -(2**15), 2**15 - 1, 0.1)
    multiplier, residual = (dyadic(v) for v in (rng.uniform(0.005, 0.01, 8), np.full(8, 0.004)))
    shift = np.minimum(multiplier.shift, residual.shift)
    constants = {
        "weight": rng.integers(-127, 128, (8, 3, 3, 4)).astype(np.int8),
        "pad_value": np.full(4, 7, np.uint8),
        "multiplier": (multiplier.multiplier >> (multiplier.shift - shift)).astype(np.int32),
        "residual_multiplier": (residual.multiplier >> (residual.shift - shift)).astype(np.int32),
        "shift": shift,
        "offset": offset_of(rng.normal(0, 20, 8), shift, 110),
    }
    attrs = {"stride": (2, 2), "padding": (1, 1, 1, 0), "dilation": (1, 1), "groups": 1, "low": 30, "high": 240}
    node = make_node("conv2d", "y", [x, r], dtype="uint8", scale=0.3, zero_point=110, attrs=attrs, constants=constants)
    return Graph((x, r), (node,), ("y",)), constants


def test_the_gradient_is_that_of_the_real_convolution():
    graph, constants = clamped_convolution()
    rng = np.random.default_rng(3)
    x = torch.from_numpy(rng.integers(0, 256, (3, 5, 6, 4))).double().requires_grad_()
    r = torch.from_numpy(rng.integers(-(2**15), 2**15, (3, 3, 3, 8))).double().requires_grad_()
    network = IntegerNetwork(graph).double()
    node = network.nodes[0]
    out = torch.from_numpy(rng.normal(0, 1, (3, 3, 3, 8)))

    y = node(x, r)
    got = torch.autograd.grad(y, (x, r, node.weight, node.bias), out.to(y))

    # The float expression, written out: pad with the zero point, convolve, rescale, add, clamp.
    c = {k: torch.from_numpy(np.array(v)).double() for k, v in constants.items()}
    weight, bias = c["weight"].clone().requires_grad_(), torch.zeros(8, dtype=torch.float64, requires_grad=True)
    padded = F.pad(x.permute(0, 3, 1, 2), (1, 0, 1, 1), value=7.0)
    total = F.conv2d(padded, weight.permute(0, 3, 1, 2), stride=2).permute(0, 2, 3, 1)
    moved = 7 * (weight - c["weight"]).sum((1, 2, 3))  # the zero point stays where it was
    total = (total - moved) * c["multiplier"] + r * c["residual_multiplier"] + c["offset"]
    real = total / 2 ** c["shift"] + bias - 0.5
    wanted = torch.autograd.grad(real.clamp(30, 240), (x, r, weight, bias), out)

    inside = (real > 30) & (real < 240)
    assert 0.2 < inside.double().mean() < 0.9, "some results saturate at each end, some do not"
    assert (real < 30).any() and (real > 240).any()
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # a float32 convolution's gradient
    assert (got[1][~inside] == 0).all(), "a saturated result passes no gradient"
    assert (got[1][inside] != 0).all()


@pytest.mark.parametrize("name", ["add", "mul", "requantize", "avg_pool2d", "max_pool2d", "linear", "concat", "pad"])
def test_gradients_of_other_operations_are_their_bodies(name):
    """Against the slope of a large difference of the real function, which for these is linear in each input."""
    sample = OPS[name].samples(np.random.default_rng(5))[0]
    parts = {"attrs": sample.attrs, "constants": sample.constants}
    if "low" in sample.attrs:  # nothing saturates
        parts["attrs"] = sample.attrs | dict(zip(("low", "high"), DTYPE_RANGE["int32"], strict=True))
    node = make_node(name, "y", sample.inputs, dtype="int32" if "low" in sample.attrs else sample.dtype, **parts)
    module, rng = IntegerNode(node, sample.inputs), np.random.default_rng(0)
    inputs = [
        torch.from_numpy(rng.permutation(int(np.prod(v.shape[1:]))).reshape(1, *v.shape[1:]) % 201.0).requires_grad_()
        for v in sample.inputs
    ]
    out = torch.from_numpy(rng.normal(0, 1, [1, *node.output.shape[1:]]))
    gradients = torch.autograd.grad((module(*inputs) * out).sum(), inputs)
    for i, gradient in enumerate(gradients):
        index = tuple(int(rng.integers(s)) for s in inputs[i].shape)
        step = 2.0**-10 if name == "max_pool2d" else 32.0
        moved = [x.detach().clone() for x in inputs]
        moved[i][index] += step
        before, after = (real_result(module, xs) for xs in (inputs, moved))
        slope = ((after - before) * out).sum() / step
        torch.testing.assert_close(gradient[index].double(), slope.detach(), rtol=1e-4, atol=1e-6)


TEXT_SAMPLES = [
    s
    for s in SAMPLES
    if s[1] in ("curve", "layernorm", "mean_tokens", "attention", "normalize_frames") or "curve" in s[2].attrs
]


@pytest.mark.parametrize(("name", "sample"), [s[1:] for s in TEXT_SAMPLES], ids=[s[0] for s in TEXT_SAMPLES])
def test_gradients_of_text_operations_are_those_of_the_real_function(name, sample):
    """Against a small central difference of it, in a random direction; nothing saturates and no token is masked."""
    attrs = dict(sample.attrs) | {"low": -(2**31), "high": 2**31 - 1}
    node = make_node(name, "y", sample.inputs, dtype="int32", attrs=attrs, constants=sample.constants)
    module = IntegerNode(node, sample.inputs)
    inputs = [
        torch.ones_like(x) if v.name == "mask" else x.clamp(v.low + 1, v.high - 1).requires_grad_()  # off the corners
        for x, v in zip(random_inputs(sample, 1), sample.inputs, strict=True)
    ]
    moving = [x for x in inputs if x.requires_grad]
    y = module(*inputs)
    generator = torch.Generator().manual_seed(0)
    out, *directions = (torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (y, *moving))
    gradients = torch.autograd.grad(y, moving, out.to(y))
    got = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    step, steps = 1e-4, iter(directions)
    with torch.no_grad():
        ways = [next(steps) if x.requires_grad else torch.zeros_like(x) for x in inputs]
        ahead, behind = (
            real_result(module, [x + sign * step * d for x, d in zip(inputs, ways, strict=True)]) for sign in (1, -1)
        )
    wanted = ((ahead - behind) * out).sum() / (2 * step)
    torch.testing.assert_close(got.double(), wanted, rtol=2e-3, atol=1e-3)


def table_node(function: str, table: np.ndarray, x: Value, scale: float, zero_point: int):
    attrs, constants = {"function": function}, {"table": table}
    return make_node(
        "lookup", "y", [x], dtype="uint8", scale=scale, zero_point=zero_point, attrs=attrs, constants=constants
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_table_has_the_derivative_of_its_function(name):
    x = Value("x", ("n", 256), "uint8", 0, 255, 0.0413, 130)  # hardswish's corners lie between entries
    real = 0.0413 * (np.arange(256) - 130)
    y = FUNCTIONS[name](real)
    scale = np.ptp(y) / 255
    zero_point = int(np.rint(-y.min() / scale))
    table = np.clip(np.rint(y / scale) + zero_point, 0, 255).astype(np.uint8)
    derivative = 0.0413 * (FUNCTIONS[name](real + 1e-6) - FUNCTIONS[name](real - 1e-6)) / 2e-6 / scale
    node = table_node(name, table, x, scale, zero_point)
    inside = slice(2, 254)  # the outermost entries may be cut off by rounding
    np.testing.assert_allclose(table_slope(node, x)[inside], derivative[inside], rtol=1e-4, atol=1e-4)
    # The same table under a name that nobody knows: from its entries, which round, 9 at a time, which blunts corners.
    unknown = replace(node, attrs={"function": "affine.mul"})
    np.testing.assert_allclose(table_slope(unknown, x)[inside], derivative[inside], atol=0.5)
    # A known name on another table (a clamp after it, another parameter) is not believed.
    cut = replace(node, constants={"table": np.minimum(table, 100)})
    assert table_slope(cut, x)[-30:].abs().max() < 1e-9


def test_the_gradient_passes_through_a_table():
    x = Value("x", ("n", 4), "uint8", 0, 255, 0.04, 130)
    table = np.clip(np.rint(FUNCTIONS["tanh"](0.04 * (np.arange(256) - 130)) * 127) + 128, 0, 255).astype(np.uint8)
    node = IntegerNode(table_node("tanh", table, x, 1 / 127, 128), (x,))
    q = torch.tensor([[0.0, 100.0, 130.0, 255.0]], requires_grad=True)
    y = node(q)
    assert y.tolist() == [table[[0, 100, 130, 255]].tolist()]
    y.sum().backward()
    torch.testing.assert_close(q.grad[0], (127 * 0.04 / torch.cosh(0.04 * (q.detach()[0] - 130)) ** 2))


# ---- training --------------------------------------------------------------------------------------------------


def test_training_lowers_the_loss_and_stays_exactly_what_is_exported():
    """A network learns which of two kinds of image it sees; after every step its forward is its exported graph's."""
    graph = random_graph(6, blocks=1)
    rng, labels = np.random.default_rng(0), torch.arange(16) % 2
    x = rng.integers(0, 128, (16, *graph.inputs[0].shape[1:]))
    x[labels == 1, :, ::2] += 127
    x = torch.from_numpy(x.astype(np.uint8))
    network = IntegerNetwork(graph)
    spread = network(x).std().item()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.5)  # half a step of the integer weights
    losses = []
    for _ in range(20):
        scores = network(x)
        np.testing.assert_array_equal(
            network.integers(x)[0].detach().numpy(), reference.run(network.graph(), x.numpy())[0]
        )
        loss = F.cross_entropy(scores / spread, labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    trained = network.graph()
    trained.verify()
    changed = [
        not np.array_equal(a.constants[key], b.constants[key])
        for a, b in zip(graph.nodes, trained.nodes, strict=True)
        if "weight" in a.constants
        for key in ("weight", "offset")
    ]
    assert all(changed), "every weight and bias has a gradient"
    np.testing.assert_array_equal(torch_backend.run(trained, x)[0], network.integers(x)[0].detach())


@pytest.mark.parametrize("seed", range(6))
def test_gradients_of_a_text_network_point_where_those_of_its_real_function_do(seed):
    """The whole network in real numbers from the ids on: nothing is rounded, and everything is differentiated."""
    graph, ids = random_text_graph(seed), torch.from_numpy(sentences(4, 10, seed))
    network = IntegerNetwork(graph)
    (got,) = network.integers(ids)
    known = {"ids": ids}
    for module in network.nodes:
        known[module.node.name] = real_result(module, [known[name] for name in module.node.inputs], learning=True)
    out = torch.randn(got.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parameters = list(network.parameters())
    pairs = [torch.autograd.grad((y * out).sum(), parameters) for y in (got, known[graph.outputs[0]])]
    cosines = [F.cosine_similarity(a.flatten(), b.flatten(), dim=0).item() for a, b in zip(*pairs, strict=True)]
    assert min(cosines) > 0.75 and np.median(cosines) > 0.9


def text_of_two_kinds() -> tuple[torch.Tensor, torch.Tensor]:
    """Sentences padded to 12 tokens; those of the second kind hold words of the upper half of the vocabulary."""
    ids, labels = torch.from_numpy(sentences(16, 12, seed=5)), torch.arange(16) % 2
    word = (ids != PADDING) & (ids > 2)
    return torch.where(word & (labels[:, None] == 1), 30 + ids % 30, torch.where(word, 3 + ids % 27, ids)), labels


def test_a_tiny_text_network_learns_to_tell_two_kinds_of_sentence():
    graph = random_text_graph(2)
    network, (ids, labels) = IntegerNetwork(graph), text_of_two_kinds()
    spread = network(ids).std().item()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.5)
    losses = []
    for _ in range(20):
        loss = F.cross_entropy(network(ids) / spread, labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad.isfinite().all() for p in network.parameters())
        optimizer.step()
    assert losses[-1] < 0.35 < np.log(2) < losses[0]
    trained = network.graph()
    trained.verify()
    np.testing.assert_array_equal(reference.run(trained, ids.numpy())[0], network.integers(ids)[0].detach().numpy())


def test_only_weights_and_biases_are_trained_and_saved():
    graph = random_graph(3)
    network = IntegerNetwork(graph)
    layers = [i for i, node in enumerate(graph.nodes) if "weight" in node.constants]
    assert list(network.state_dict()) == [f"nodes.{i}.{name}" for i in layers for name in ("weight", "bias")]
    assert [n for n, _ in network.named_parameters()] == list(network.state_dict())


def test_measurements_of_other_weights_are_not_exported():
    graph = replace(random_graph(0), metadata={"labels": ["a"], "layers": [{"name": "conv", "sqnr_db": 30.0}]})
    assert IntegerNetwork(graph).graph().metadata == {"labels": ["a"]}


def test_export_refuses_what_training_broke():
    network = IntegerNetwork(random_graph(0))
    with torch.no_grad():
        network.nodes[0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(IntqError, match=r"conv2d\.0: its weights or biases are not finite"):
        network.graph()
    network = IntegerNetwork(random_graph(0))
    with torch.no_grad():
        network.nodes[0].bias[:] = 2.0**26
    with pytest.raises(UnprovenError, match=r"conv2d\.0 \(conv2d\): needs 6\d bits, has 64"):
        network.graph()


def test_weights_of_minus_128_cannot_be_trained():
    graph = random_graph(0)
    node = graph.nodes[0]
    weight = np.array(node.constants["weight"])
    weight[0, 0, 0, 0] = -128
    broken = replace(node, constants=dict(node.constants) | {"weight": weight})
    with pytest.raises(IntqError, match=r"conv2d\.0: weights must lie in \[-127, 127\]"):
        IntegerNode(broken, graph.inputs)
