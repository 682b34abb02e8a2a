"""From a module to a proven integer graph whose answers are close to the float network's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import intq
from intq import rounding
from intq.artifact import digest
from intq.backends import reference
from intq.errors import IntqError
from intq.floatgraph import FloatNode, contraction
from intq.rounding import round_weights


class Small(nn.Module):
    """Residuals, depthwise and grouped convolutions, a gate, concat, pools: what integers meet in one small network."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.expand, self.depthwise = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.project, self.grouped = nn.Conv2d(32, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.down, self.up = nn.Linear(16, 8), nn.Linear(8, 16)
        self.last, self.head = nn.BatchNorm2d(40), nn.Linear(40 * 4, 7)

    def forward(self, x):
        x = F.relu6(self.bn(self.stem(x)))
        x = x + self.project(F.relu6(self.depthwise(F.relu6(self.expand(x)))))
        gate = F.hardsigmoid(self.up(F.silu(self.down(x.mean((2, 3))))))
        y = F.silu(self.grouped(x)) * gate[:, :, None, None]
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        y = F.relu(self.last(torch.cat([x, y, F.avg_pool2d(y[:, :8], 3, 1, 1)], 1)))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(F.max_pool2d(y, 2), 2), 1)).softmax(-1)


def settled_small() -> nn.Module:
    torch.manual_seed(0)
    small = Small()
    with torch.no_grad():
        for _ in range(20):  # settle the BatchNorm statistics
            small(torch.randn(16, 3, 16, 16))
    return small.eval()


def smooth_images() -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (48, 4, 4, 3))
    return np.kron(coarse, np.ones((1, 4, 4, 1))).astype(np.uint8)


model = pytest.fixture(settled_small, scope="module", name="model")
pixels = pytest.fixture(smooth_images, scope="module", name="pixels")


MEAN, STD = (0.5, 0.4, 0.45), (0.25, 0.2, 0.3)


def scores(model, pixels):
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).reshape(-1, 1, 1)) / torch.tensor(
        STD
    ).reshape(-1, 1, 1)
    with torch.no_grad():
        return model(x).log().numpy()  # logits but for a constant


def sqnr(wanted, got):
    wanted, got = (v - v.mean(1, keepdims=True) for v in (wanted, got))
    return 10 * np.log10((wanted**2).sum() / ((wanted - got) ** 2).sum())


def answer(graph, x):
    (out,) = reference.run(graph, x)
    value = graph.values[graph.outputs[0]]
    return value.scale * (out.astype(np.float64) - value.zero_point)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"residual_bits": 16},
        {"equalize": False, "rounding": "nearest", "bias_correction": False, "method": "minmax"},
        {"method": "percentile"},
    ],
    ids=["default", "residual16", "plain", "percentile"],
)
def test_close_to_float(model, pixels, options):
    graph = intq.quantize(model, [pixels[:32]], mean=MEAN, std=STD, **options)
    assert graph.verify().widest_bits <= 32
    assert graph.inputs[0].dtype == "uint8" and graph.inputs[0].shape == ("n", 16, 16, 3)
    assert graph.values[graph.outputs[0]].dtype == "int32"
    assert sqnr(scores(model, pixels[32:]), answer(graph, pixels[32:])) > 22
    assert "softmax" in graph.metadata["notices"][0]
    assert graph.metadata["layers"][-1]["name"] == "head"
    assert all(np.isfinite(layer["sqnr_db"]) for layer in graph.metadata["layers"])


def test_float_input_and_progress(model, pixels):
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 64 - 2
    seen = []
    graph = intq.quantize(model, [x[:20], x[20:32]], progress=lambda *report: seen.append(report))
    value = graph.inputs[0]
    q = np.rint(x[32:].permute(0, 2, 3, 1).numpy() / value.scale) + value.zero_point
    with torch.no_grad():
        wanted = model(x[32:]).log().numpy()
    assert sqnr(wanted, answer(graph, np.clip(q, 0, 255).astype(np.uint8))) > 22
    assert [stage for stage, _, _ in seen] == sorted(
        (s for s, _, _ in seen), key=["capture", "calibrate", "weights"].index
    )
    assert all(0 <= done <= total for _, done, total in seen)


def test_the_same_twice(model, pixels, tmp_path):
    from intq.artifact import digest

    first, second = (intq.quantize(model, [pixels[:16]], mean=MEAN, std=STD) for _ in range(2))
    assert digest(first) == digest(second)
    first.save(tmp_path / "net")
    assert digest(intq.load(tmp_path / "net")) == digest(first)


def test_one_node_per_block():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.c = nn.Conv2d(8, 8, 1)

        def forward(self, x):
            return F.relu(self.b(self.a(x)) + self.c(x)).mean((2, 3))

    graph = intq.quantize(Block().eval(), [torch.randn(4, 8, 6, 6)])
    assert [node.op for node in graph.nodes] == ["conv2d", "conv2d", "avg_pool2d", "reshape"]
    assert "residual_multiplier" in graph.nodes[1].constants


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)),
        lambda: nn.Sequential(nn.Linear(8, 4), nn.GELU(), nn.Linear(4, 3)),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid()),
        lambda: nn.MaxPool2d(2),
        lambda: nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(3, 4, 1, padding=1), nn.Hardswish(), nn.AvgPool2d(3, 2, 1)),
    ],
)
def test_small_shapes(make):
    torch.manual_seed(0)
    model = make().eval()
    shape = (8,) if isinstance(model, nn.Sequential) and isinstance(model[0], nn.Linear) else (3, 8, 8)
    x = torch.randn(12, *shape)
    graph = intq.quantize(model, [x])
    value = graph.inputs[0]
    laid = x.permute(0, 2, 3, 1) if x.ndim == 4 else x
    got = answer(graph, np.clip(np.rint(laid.numpy() / value.scale) + value.zero_point, 0, 255).astype(np.uint8))
    with torch.no_grad():
        wanted = model(x)
    wanted = (wanted.permute(0, 2, 3, 1) if wanted.ndim == 4 else wanted).numpy()
    assert 10 * np.log10((wanted**2).sum() / ((wanted - got) ** 2).sum()) > 25


@pytest.mark.parametrize("seed", range(3))
def test_degenerate_networks(seed):
    """Dead channels, constant activations, negative ranges, no variance: quantized without complaint."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 1), nn.SiLU(), nn.Conv2d(8, 4, 1)
    )
    with torch.no_grad():
        model[0].weight[:3] = 0
        model[1].bias[:5] = -50
        model[3].bias -= 10
        if seed == 1:
            model[5].weight.zero_()
        if seed == 2:
            model[0].weight.zero_()
            model[1].bias.fill_(-1)
    graph = intq.quantize(model.eval(), [np.full((2, 6, 6, 3), 9, np.uint8)])
    graph.verify()
    reference.run(graph, np.full((1, 6, 6, 3), 255, np.uint8))


@pytest.mark.parametrize(
    ("calibration", "options", "says"),
    [
        ([], {}, "no calibration data"),
        ([np.zeros((0, 8, 8, 3), np.uint8)], {}, "no calibration data"),
        ([np.zeros((2, 8, 8), np.uint8)], {}, "pixels"),
        ([np.zeros((2, 8, 8, 3), np.int64)], {}, "uint8 pixels"),
        ([np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 9, 8, 3), np.uint8)], {}, "agree in shape"),
        ([torch.full((1, 3, 8, 8), float("nan"))], {}, "NaN"),
        ([torch.zeros(1, 3, 8, 8)], {"mean": MEAN}, "mean and std"),
        ([np.zeros((1, 8, 8, 3), np.uint8)], {"std": (1.0, 0.0, 1.0)}, "positive"),
        ([np.zeros((1, 8, 8, 3), np.uint8)], {"mean": (0.5,)}, "one per channel"),
        ([np.zeros((1, 8, 8, 3), np.uint8)], {"method": "entropy"}, "method must be one of"),
        ([np.zeros((1, 8, 8, 3), np.uint8)], {"rounding": "random"}, "rounding must be one of"),
        ([np.zeros((1, 8, 8, 3), np.uint8)], {"residual_bits": 12}, "residual_bits must be one of"),
        ([np.zeros((1, 8, 8, 4), np.uint8)], {}, "torch.export"),
    ],
)
def test_bad_input_is_one_sentence(calibration, options, says):
    with pytest.raises(IntqError, match=says):
        intq.quantize(nn.Conv2d(3, 4, 3), calibration, **options)


@pytest.mark.parametrize("asked", [{"bits": {"*": 16}}, {"bits": {"0": 16}}])
def test_a_layer_that_is_asked_for_16_bits_reads_8_where_there_are_no_more(asked):
    """The network's own input: it came out as if its bytes were the high ones of words."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 6)).eval(), torch.randn(32, 8)
    assert digest(intq.quantize(model, x, **asked)) == digest(intq.quantize(model, x))


def test_convolutions_that_read_16_bits_in_a_row():
    """Two values had one name: the high bytes of what a layer makes, and its products with those of what it reads."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3) for _ in range(3))).eval()
    x = torch.randn(16, 4, 9, 9)
    graph = intq.quantize(model, [x], bits={"1": 16, "2": 16})
    value = graph.inputs[0]
    q = np.clip(np.rint(x.permute(0, 2, 3, 1).numpy() / value.scale) + value.zero_point, 0, 255).astype(np.uint8)
    with torch.no_grad():
        wanted = model(x).permute(0, 2, 3, 1).numpy()
    assert 10 * np.log10((wanted**2).sum() / ((wanted - answer(graph, q)) ** 2).sum()) > 35


LAYERS = {
    "linear": ((24, 60), (3, 50, 60), {}),
    "conv1d": ((24, 20, 3), (3, 90, 20), {"stride": 2, "padding": (2, 1), "dilation": 2, "groups": 1}),
    "conv2d": ((24, 12, 3, 2), (3, 12, 20, 17), {"stride": (2, 1), "padding": (1, 0, 2, 1), "dilation": (1, 2)}),
}


@pytest.mark.parametrize("op", LAYERS)
def test_products_too_many_for_one_compensation(op, monkeypatch):
    """They are taken in pieces: worse than whole, better than each weight alone; the bias takes the mean error."""
    shape, size, attrs = LAYERS[op]
    torch.manual_seed(0)
    channels = 1 if op == "conv2d" else 2
    mixed = torch.randn(size).movedim(channels, -1) @ (
        torch.randn(shape[1], shape[1]) / 3
    )  # inputs that belong together
    x, parameters = (1 + mixed).movedim(-1, channels), {"weight": torch.randn(shape), "bias": torch.zeros(24)}
    if op != "linear":
        parameters["pad"], attrs = torch.rand(shape[1]), {"groups": 1, **attrs}
    node = FloatNode("y", op, ("x",), ("n",), attrs, parameters)

    def noise(choice: str) -> float:
        chosen = round_weights(node, [[x]], [[x]], choice, True, 0)
        short = contraction(node, x, parameters["weight"], None) - contraction(node, x, chosen.real(), None)
        by_channel = short.movedim(channels, 0).flatten(1) - chosen.bias[:, None].float()
        assert by_channel.mean(1).abs().max() < 1e-5
        return float(by_channel.square().mean())

    nearest, whole = noise("nearest"), noise("gptq")
    monkeypatch.setattr(rounding, "LARGEST", 40)
    monkeypatch.setattr(rounding, "PIECE", 30)
    assert whole < noise("gptq") < 0.9 * nearest
