"""Layers of other widths than 8 bits: what they read, how values are stored for them, and what rounding brings."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_quantize import MEAN, STD, answer, scores, settled_small, smooth_images, sqnr
from torch import nn

import intq
from intq.backends import reference
from intq.backends import torch as torch_backend
from intq.errors import IntqError
from intq.learned_rounding import learn_rounding
from intq.rounding import LIMITS, ROUNDINGS, grouped, making_up, round_weights, rows_at, scales

torch.set_num_threads(1)


model = pytest.fixture(settled_small, scope="module", name="model")
pixels = pytest.fixture(smooth_images, scope="module", name="pixels")


def quantized(model, pixels, **options):
    return intq.quantize(model, [pixels[:32]], mean=MEAN, std=STD, **options)


def layers_of(graph):
    return {node.name: node for node in graph.nodes if "weight" in node.constants}


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({"weight_bits": {"*": 4}}, 15),
        ({"weight_bits": {"*": 2}}, 2),
        ({"bits": {"*": 4}}, 10),
        ({"bits": {"*": 4}, "weight_bits": {"*": 4}}, 9),
        ({"bits": {"*": 16}}, 25),
        ({"bits": {"*": 16}, "weight_bits": {"*": 4}}, 15),
    ],
    ids=["W4A8", "W2A8", "W8A4", "W4A4", "W8A16", "W4A16"],
)
def test_networks_of_every_width_are_proven_and_close(model, pixels, options, least):
    graph = quantized(model, pixels, **options)
    graph.verify()
    assert sqnr(scores(model, pixels[32:]), answer(graph, pixels[32:])) > least
    (got,) = torch_backend.run(graph, torch.from_numpy(pixels[32:]))
    np.testing.assert_array_equal(got.numpy(), reference.run(graph, pixels[32:])[0])
    values, bits = graph.values, options.get("bits", {}).get("*", 8)
    for node in layers_of(graph).values():
        assert node.attrs.get("weight_bits", 8) == options.get("weight_bits", {}).get("*", 8)
        limit = LIMITS[node.attrs.get("weight_bits", 8)]
        assert np.abs(node.constants["weight"].astype(int)).max() <= limit
        x = values[node.inputs[0]]
        if bits == 4 and x.name != graph.inputs[0].name:
            assert x.dtype == "uint8" and (x.low, x.high) == (0, 15), node.name


def test_only_the_layers_that_are_named_are_narrowed(model, pixels):
    graph = quantized(model, pixels, weight_bits={"*": 4, "head": 8, "depthwise": 2}, bits={"project": 4})
    found = {name: node.attrs.get("weight_bits", 8) for name, node in layers_of(graph).items()}
    assert found["head"] == 8 and found["depthwise"] == 2
    assert {bits for name, bits in found.items() if name not in ("head", "depthwise")} == {4}
    values = graph.values
    read = {name: values[node.inputs[0]].high for name, node in layers_of(graph).items()}
    assert {name for name, high in read.items() if high == 15} == {n for n in read if n.startswith("project")}


class Stream(nn.Module):
    """A value that a layer of 4 bits, one of 8 and a sum read."""

    def __init__(self):
        super().__init__()
        self.first, self.narrow, self.wide = (nn.Conv2d(a, 8, 3, padding=1) for a in (3, 8, 8))

    def forward(self, x):
        x = F.relu(self.first(x))
        return F.relu(self.wide(x)) + self.narrow(x) + x


def test_a_value_is_stored_for_its_widest_reader_and_copied_for_the_others(pixels):
    torch.manual_seed(0)
    graph = intq.quantize(Stream().eval(), [pixels[:8]], bits={"narrow": 4})
    copies = [node for node in graph.nodes if node.op == "requantize"]
    assert [(node.name, node.output.high) for node in copies] == [(f"{copies[0].inputs[0]}.4bits", 15)]
    readers = {node.source: graph.values[node.inputs[0]].high for node in layers_of(graph).values()}
    assert readers["narrow"] == 15 and readers["wide"] == 255
    every = intq.quantize(Stream().eval(), [pixels[:8]], bits={"*": 4})
    assert sum(node.op == "requantize" for node in every.nodes) == 1, "the sum still reads 8 bits"


@pytest.mark.parametrize("option", ["bits", "weight_bits"])
def test_widths_that_there_are_not(pixels, option):
    with pytest.raises(IntqError, match=r"of layers have one of .* bits, got 3 for"):
        intq.quantize(Stream().eval(), [pixels[:2]], **{option: {"*": 3}})
    with pytest.raises(IntqError, match="no layer is called 'middle'; there are first, "):
        intq.quantize(Stream().eval(), [pixels[:2]], **{option: {"middle": 4}})


# ---- rounding ----------------------------------------------------------------------------------------------------


def test_scales_of_few_bits_are_those_of_least_error():
    w = torch.from_numpy(np.random.default_rng(0).standard_t(3, (2, 5, 300)))
    for bits in (2, 4):
        limit, chosen = LIMITS[bits], scales(w, bits)

        def error(step, limit=limit):
            return ((w / step[..., None]).round().clamp(-limit, limit) * step[..., None] - w).square().sum(2)

        largest = w.abs().amax(2) / limit
        assert error(chosen).mean() < 0.8 * error(largest).mean()
        assert (error(chosen) <= torch.stack([error(s * largest) for s in (0.3, 0.5, 0.7, 0.9)]).amin(0) * 1.05).all()
    assert torch.equal(scales(w, 8), w.abs().amax(2) / 127)


def test_learned_rounding_answers_closer_than_any_other(model, pixels):
    """On data that it has not seen; it ends in integers next to the real weights, the same for the same seed."""
    wanted, found = scores(model, pixels[32:]), {}
    for rounding in ROUNDINGS:
        graph = quantized(model, pixels, weight_bits={"*": 4}, rounding=rounding)
        found[rounding] = sqnr(wanted, answer(graph, pixels[32:]))
    assert found["learned"] > found["gptq"] > found["nearest"] - 1
    assert found["learned"] > found["nearest"] + 2


def test_learned_rounding_of_a_layer():
    generator = torch.Generator().manual_seed(0)
    node = _linear(torch.randn(6, 20, generator=generator))
    basis = torch.randn(4, 20, generator=generator)  # inputs of few dimensions leave room to round
    x = torch.randn(500, 4, generator=generator) @ basis
    residual = torch.randn(500, 6, generator=generator)
    real = node.parameters["weight"].double()[None]
    scale = scales(real, 2)
    wanted = (x @ node.parameters["weight"].T + node.parameters["bias"] + residual).clamp(0, 6)
    given = (node, real / scale[..., None], scale, node.parameters["bias"].double(), x[:, None], wanted, residual)
    q, bias = learn_rounding(*given, 1, 400, 0)
    again, _ = learn_rounding(*given, 1, 400, 0)
    assert torch.equal(q, again) and set(q.unique().tolist()) <= {-1.0, 0.0, 1.0}
    steps = (real / scale[..., None]).clamp(-1, 1)
    assert ((q - steps).abs() <= 1 + 1e-9).all()

    def error(q, bias):
        weight = (q * scale[..., None])[0].float()
        return ((x @ weight.T + bias.float() + residual).clamp(0, 6) - wanted).square().mean()

    assert error(q, bias) < 0.6 * error(steps.round(), node.parameters["bias"])


def _linear(weight):
    from intq.floatgraph import FloatNode

    parameters = {"weight": weight, "bias": torch.zeros(len(weight))}
    return FloatNode("y", "linear", ("x", "r"), ("n", len(weight)), {"low": 0.0, "high": 6.0}, parameters, "y")


@pytest.mark.parametrize("groups", [1, 2])
def test_weights_make_up_for_what_earlier_layers_lost(groups, monkeypatch):
    """What still lacks is not explained by what the layer reads, and it is less."""
    generator = torch.Generator().manual_seed(groups)
    weight = torch.randn(6, 4 // groups, 3, 3, generator=generator)
    attrs = {"stride": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": groups}
    node = _linear(weight)
    node = replace(node, op="conv2d", shape=("n", 6, 8, 8), attrs=node.attrs | attrs)
    noise = [0.2 * torch.randn(n, 4, 8, 8, generator=generator) for n in (5, 3)]
    exact = [
        [torch.randn(n, 4, 8, 8, generator=generator), torch.randn(n, 6, 8, 8, generator=generator)] for n in (5, 3)
    ]
    rough = [[0.8 * x + e, r + 0.5 * x.mean(1, keepdim=True)] for (x, r), e in zip(exact, noise, strict=True)]
    monkeypatch.setattr("intq.rounding.MAKING_UP", 1e-9)
    moved = making_up(node, exact, rough, seed=0)

    def lacks(weight):
        made = zip(exact, rough, strict=True)
        short = [
            F.conv2d(x, node.parameters["weight"], padding=1, groups=groups)
            + r
            - F.conv2d(y, weight.reshape(6, -1, 3, 3).float(), padding=1, groups=groups)
            - s
            for (x, r), (y, s) in made
        ]
        return torch.cat([each.permute(0, 2, 3, 1).reshape(-1, 6) for each in short])

    rows = torch.cat([rows_at(node, x, torch.arange(len(x) * 64)) for x, _ in rough])  # (p, g, k)
    before, after = (lacks(w) - lacks(w).mean(0) for w in (grouped(node), moved))
    explained = torch.einsum("pgo,pgk->gok", after.unflatten(1, (groups, -1)), rows - rows.mean(0)) / len(rows)
    assert explained.abs().max() < 1e-4 and after.square().mean() < 0.8 * before.square().mean()
    assert torch.equal(making_up(node, exact, exact, seed=0), grouped(node)), "nothing lacks"


def test_weights_of_no_inputs_and_no_size_are_rounded():
    """Channels without weights, inputs that are always zero."""
    weight = torch.zeros(4, 10)
    weight[1] = torch.linspace(-1, 1, 10)
    node = _linear(weight)
    inputs = [[torch.zeros(30, 10), torch.zeros(30, 4)]]
    for rounding in ROUNDINGS:
        for bits in (2, 4):
            chosen = round_weights(node, inputs, [list(x) for x in inputs], rounding, True, 0, bits)
            assert chosen.bits == bits and torch.isfinite(chosen.bias).all()
            assert not chosen.q[0].any() and chosen.q.abs().max() <= LIMITS[bits]
