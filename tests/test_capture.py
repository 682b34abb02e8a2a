"""Capture and simplification keep a module's function; what cannot be taken is named."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from intq.capture import capture
from intq.errors import IntqError
from intq.simplify import prepend_affine, simplify


def settle(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random BatchNorm statistics and parameters, so that folding has something to fold."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for m in module.modules():
            if isinstance(m, nn.BatchNorm2d):
                for tensor, low, high in (
                    (m.weight, 0.5, 1.5),
                    (m.bias, -0.5, 0.5),
                    (m.running_mean, -0.3, 0.3),
                    (m.running_var, 0.5, 2.0),
                ):
                    tensor.uniform_(low, high, generator=generator)
    return module.eval()


def network(forward, seed: int = 0, **layers) -> nn.Module:
    """A module with the given layers and forward(self, x)."""
    torch.manual_seed(seed)
    made = {name: make() for name, make in layers.items()}
    module = type("Network", (nn.Module,), {"forward": forward})()
    for name, layer in made.items():
        setattr(module, name, layer)
    return settle(module, seed)


def conv(ci=4, co=6, kernel=3, **options):
    return lambda: nn.Conv2d(ci, co, kernel, **options)


def transform_input(self, x):
    x0 = torch.unsqueeze(x[:, 0], 1) * (0.229 / 0.5) + (0.485 - 0.5) / 0.5
    x1 = torch.unsqueeze(x[:, 1], 1) * (0.224 / 0.5) + (0.456 - 0.5) / 0.5
    rest = x[:, 2:4] * 0.5
    return self.conv(torch.cat((x0, x1, rest), 1)).mean((2, 3))


def squeeze_excite(self, x):
    x = F.silu(self.bn(self.conv(x)), inplace=True)
    n, c, _, _ = x.shape
    gate = F.adaptive_avg_pool2d(x, 1).view(n, c)
    gate = torch.sigmoid(self.up(F.relu(self.down(gate)))).view(n, c, 1, 1)
    return (x * gate.expand_as(x)).mean([2, 3])


def shuffle(self, x):
    a, b = self.conv(x).chunk(2, dim=1)
    x = torch.cat((a.relu(), self.branch(b).clamp(0, 3)), 1)
    n, c, h, w = x.size()
    x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
    return self.head(torch.flatten(F.avg_pool2d(x, 2), 1))


def hand_written(self, x):
    y = self.conv(x)
    y = y * F.relu6(y + 3) / 6
    y += 0.25
    y = y - self.bn(y)
    y = F.pad(y, (1, 2, 0, 1))
    y = F.max_pool2d(y, 3, 2, 1, ceil_mode=True)
    y = F.avg_pool2d(y, 3, 1, 1, count_include_pad=False)
    y = self.prelu(y)
    return F.softmax(F.adaptive_avg_pool2d(y, (2, 1)).reshape(x.size(0), -1), dim=-1)


def shared_and_residual(self, x):
    y = F.relu(self.bn(self.conv(x)))
    z = self.conv(y)
    z += y
    return F.relu_(z) @ self.matrix.T


CASES = {
    "transform_input": lambda: network(transform_input, conv=conv(padding=1)),
    "squeeze_excite": lambda: network(
        squeeze_excite,
        conv=conv(),
        bn=lambda: nn.BatchNorm2d(6),
        down=lambda: nn.Linear(6, 3),
        up=lambda: nn.Linear(3, 6),
    ),
    "shuffle": lambda: network(
        shuffle, conv=conv(co=8), branch=conv(4, 4, padding="same"), head=lambda: nn.Linear(8 * 5 * 4, 5)
    ),
    "hand_written": lambda: network(
        hand_written, conv=conv(), bn=lambda: nn.BatchNorm2d(6), prelu=lambda: nn.PReLU(6, 0.1)
    ),
    "shared_and_residual": lambda: network(
        shared_and_residual,
        conv=conv(4, 4, padding=1),
        bn=lambda: nn.BatchNorm2d(4),
        matrix=lambda: nn.Parameter(torch.randn(3, 11)),
    ),
    "dense": lambda: network(
        lambda self, x: F.relu(self.bn(torch.cat([self.a(x), self.b(x), x], 1))).mean((2, 3)),
        a=conv(padding=1),
        b=conv(padding=1, groups=2),
        bn=lambda: nn.BatchNorm2d(16),
    ),
    "uneven_pool": lambda: network(lambda self, x: F.adaptive_avg_pool2d(self.a(x), (3, 4)).flatten(1), a=conv()),
    "weight_standardization": lambda: network(
        lambda self, x: F.conv2d(x, self.a.weight - self.a.weight.mean((1, 2, 3), keepdim=True)).relu(), a=conv()
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_function_is_kept(name):
    module = CASES[name]()
    x = torch.randn(3, 4, 12, 11, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = module(x.clone())
        graph = capture(module, x[:1])
        assert torch.allclose(graph.run(x), wanted, atol=1e-5)
        short = simplify(graph)
        answer = short.run(x)
        answer = torch.softmax(answer, -1) if short.notices else answer
        assert torch.allclose(answer, wanted, atol=1e-5)
    before, after = len(graph.nodes), len(short.nodes)
    assert after <= before


def test_normalization_folds_into_the_first_convolution():
    module = network(transform_input, conv=conv(padding=1))
    graph = capture(module, torch.zeros(1, 4, 9, 9))
    mean, std = torch.tensor([0.5, 0.4, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.4, 0.5])
    pixels = torch.randint(0, 256, (2, 4, 9, 9)).float()
    short = simplify(prepend_affine(graph, 1 / (255 * std), -mean / std))
    assert [node.op for node in short.nodes] == ["conv2d", "mean"]
    normal = (pixels / 255 - mean.reshape(-1, 1, 1)) / std.reshape(-1, 1, 1)
    with torch.no_grad():
        assert torch.allclose(short.run(pixels), module(normal), atol=1e-5)


def test_a_block_becomes_one_node_per_convolution():
    def block(self, x):
        y = F.relu6(self.bn1(self.a(x)))
        return F.relu(self.bn2(self.b(y)) + x)

    module = network(
        block, a=conv(4, 4, padding=1), b=conv(4, 4, 1), bn1=lambda: nn.BatchNorm2d(4), bn2=lambda: nn.BatchNorm2d(4)
    )
    a, b = simplify(capture(module, torch.zeros(1, 4, 8, 8))).nodes
    assert (a.op, a.low, a.high) == ("conv2d", 0.0, 6.0)
    assert (b.op, b.inputs, b.low, b.high) == ("conv2d", ("a", "x"), 0.0, math.inf)


def test_a_value_read_twice_keeps_its_addition_apart():
    def forward(self, x):
        y = self.a(x)
        return (F.relu(y + x) + y).mean((2, 3))

    module = network(forward, a=conv(4, 4, padding=1))
    ops = [node.op for node in simplify(capture(module, torch.zeros(1, 4, 8, 8))).nodes]
    assert ops == ["conv2d", "add", "add", "mean"]


@pytest.mark.parametrize(
    ("forward", "says"),
    [
        (lambda self, x: self.a(x).cumsum(1), "cumsum"),
        (lambda self, x: F.interpolate(self.a(x), scale_factor=2), "upsample"),
        (lambda self, x: F.pad(self.a(x), (1, 1, 1, 1), mode="reflect"), "reflect"),
        (lambda self, x: self.a(x) / self.a(x), "division"),
        (lambda self, x: (self.a(x), x), "one tensor"),
        (lambda self, x: self.a(x) if x.sum() > 0 else x, "torch.export"),
        (lambda self, x: self.a(x).reshape(-1, 3), "batch"),
        (lambda self, x: torch.ones(3, 3), "does not depend"),
    ],
)
def test_what_cannot_be_taken_is_named(forward, says):
    with pytest.raises(IntqError, match=says):
        capture(network(forward, a=conv()), torch.zeros(1, 4, 8, 8))


def test_the_error_names_the_module():
    inner = network(lambda self, x: torch.cumsum(x, 1))
    module = nn.Sequential(nn.Conv2d(4, 4, 1), inner)
    with pytest.raises(IntqError, match=r"^1: cumsum"):
        capture(module, torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_broken_weights_are_named(value):
    module = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    module[1].running_mean[2] = value
    with pytest.raises(IntqError, match=r"1\.running_mean"):
        capture(module, torch.zeros(1, 4, 8, 8))


def test_the_model_is_not_changed():
    module = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout(), nn.BatchNorm2d(4)).train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    capture(module, torch.zeros(1, 4, 8, 8))
    assert module.training and module[1].training
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
