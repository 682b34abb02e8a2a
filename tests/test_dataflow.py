"""What the search reads off a float graph: sizes of layers, ties as HAWQ-V3 wrote them down, memory as it is needed."""

import numpy as np
import published
import pytest
import torch
from small_speech import RATE, recording, small
from text_models import tiny, tiny_ids
from torch import nn

from intq.capture import capture
from intq.cost import network_cost, peak_memory, products
from intq.dataflow import input_readers, layers, moments, results, ties
from intq.errors import IntqError
from intq.problem import Choice, Layer, Problem
from intq.quantize import quantize
from intq.search import search
from intq.simplify import simplify
from intq.vision.models import architecture
from intq.vision.synthetic import random_images, random_model


def float_graph(model: nn.Module, *shape: int):
    return simplify(capture(model.eval(), torch.zeros(2, *shape)))


def by_published_name(name: str) -> str:
    """stage2.unit1.identity_convbn is layer2.0.downsample.0 of torchvision."""
    stage, unit, layer = name.split(".")
    layer = "downsample.0" if layer.startswith("identity") else f"conv{layer[-1]}"
    return f"layer{stage[-1]}.{int(unit[4:]) - 1}.{layer}"


@pytest.fixture(scope="module", params=published.NETWORKS)
def resnet(request):
    known = architecture(request.param)
    return request.param, float_graph(known.build(1000), 3, 224, 224)


def test_resnets_ties_are_those_that_hawq_wrote_by_hand(resnet):
    network, graph = resnet
    expected = {frozenset(map(by_published_name, tie)) for tie in published.ties(network)}
    assert {frozenset(tie) for tie in ties(graph)} == expected


def test_resnets_layers_are_as_published(resnet):
    network, graph = resnet
    found, rows = layers(graph), published.NETWORKS[network]["layers"]
    names = list(found)
    assert (names[0], names[-1], len(names)) == ("conv1", "fc", len(rows) + 2)
    for row in rows:
        geometry = found[by_published_name(row["name"])]
        assert geometry.parameters == round(row["parameters"] * published.PARAMETERS[network])
        if (
            network == "resnet18"
        ):  # theirs strides in another convolution of the bottleneck than torchvision's ResNet-50
            assert geometry.macs == round(row["macs"] * 1e6)
    assert input_readers(graph) == {"conv1"}


class Shared(nn.Module):
    """Reads one value by two layers, one of them twice; sums, concatenates and takes maxima."""

    def __init__(self):
        super().__init__()
        self.stem, self.twice = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.left, self.right, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(8, 2, 1)
        self.alone = nn.Conv2d(2, 3, 1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        y = self.twice(x)
        z = torch.relu(y + self.twice(torch.relu(y)))
        both = torch.cat([self.left(torch.max_pool2d(z, 3, 1, 1)), self.right(z)], 1)
        return self.alone(torch.relu(self.last(both))).flatten(1)


def test_ties_follow_what_shares_integers():
    graph = float_graph(Shared(), 1, 8, 8)
    # `twice` ties what it reads in both places; a maximum is of the integers it chose from; sums tie nothing
    assert ties(graph) == (("left", "right"),)
    found = layers(graph)
    assert found["twice"].shapes == ((4, 4, 1, 1), (4, 4, 1, 1)) and found["twice"].macs == 2 * 64 * 16
    assert found["last"].macs == 64 * 16


def test_a_layer_used_twice_ties_what_it_reads():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            x = torch.relu(self.a(x))
            return self.a(x) + self.b(x) + self.c(torch.relu(self.b(x)))

    graph = float_graph(Twice(), 4)
    assert ties(graph) == (("a", "b"),) and input_readers(graph) == {"a"}


def test_inceptions_branches_are_tied():
    graph = float_graph(architecture("small_inception").build(10), 1, 28, 28)
    found = {name: tie for tie in ties(graph) for name in tie}
    block = {f"Mixed_2b.{branch}.conv" for branch in ("branch1x1", "branch3x3_1", "branch3x3dbl_1")}
    assert set(found["Mixed_2b.branch1x1.conv"]) == block  # the pooled branch reads averages, which are other integers
    # the maxima of Mixed_3a are concatenated with its convolutions' results: what reads either is tied
    assert "Mixed_3a.branch3x3.conv" in found["Mixed_3b.branch1x1.conv"]
    assert "Mixed_2b.branch3x3_2.conv" not in found


def test_attention_projections_are_tied():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.norm = *(nn.Linear(16, 16) for _ in range(3)), nn.LayerNorm(16)
            self.out, self.up, self.down = nn.Linear(16, 16), nn.Linear(16, 32), nn.Linear(32, 16)

        def forward(self, x):
            y = self.norm(x)
            q, k, v = (each(y).unflatten(2, (2, 8)).transpose(1, 2) for each in (self.q, self.k, self.v))
            y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            x = x + self.out(y.transpose(1, 2).flatten(2))
            return x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))

    graph = float_graph(Net(), 6, 16)
    assert ("q", "k", "v") in ties(graph)


def test_layers_of_a_transformer_are_found_in_its_integers():
    model, ids = tiny("bert"), tiny_ids("bert", 4, 12)
    graph, integer = simplify(capture(model, ids)), quantize(model, [ids], rounding="nearest")
    made, counted = results(graph), {}
    for product in products(integer, {"s": 9}):
        if product.node in made:
            counted[made[product.node]] = counted.get(made[product.node], 0) + product.macs
    assert counted == {name: geometry.macs for name, geometry in layers(graph, {"s": 9}).items()}
    assert any(name.endswith("attention.self.query") for tie in ties(graph) for name in tie)
    # within a few bytes for the masks and copies that a float graph does not have
    needed = max(sum(live.bytes(8) for live in moment) for moment in moments(graph, {"s": 9}))
    assert 0.9 * peak_memory(integer, {"s": 9}) <= needed <= peak_memory(integer, {"s": 9})


def test_layers_of_a_speech_network_are_found_in_its_integers():
    checkpoint, audio = small("quartznet"), [recording(1.0, seed) for seed in range(2)]
    graph = simplify(capture(checkpoint.model, torch.from_numpy(np.stack(audio))))
    integer = quantize(checkpoint.model, [torch.from_numpy(np.stack(audio))], rounding="nearest", longest=RATE)
    counted = {p.node: p.macs for p in products(integer, {"t": RATE})}
    expected = layers(graph, {"t": RATE})
    made = results(graph)
    assert {made[node]: macs for node, macs in counted.items()} == {n: g.macs for n, g in expected.items()}
    assert network_cost(integer, {"t": RATE}).macs == sum(geometry.macs for geometry in expected.values())


# ---- memory ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["small_resnet", "small_mobilenet_v2", "small_squeezenext", "small_inception"])
def test_costs_agree_with_the_integer_network(name):
    """Of a network quantized to 8 bits: multiplications, BOPS, and the peak of memory."""
    known, model = architecture(name), random_model(name)
    pixels = random_images(4, known.size, 0, known.preprocess.channels)
    integer = quantize(model, [pixels], mean=known.preprocess.mean, std=known.preprocess.std, rounding="nearest")
    graph = float_graph(model, 1, 28, 28)
    found, cost = layers(graph), network_cost(integer)
    assert {p.source: p.macs for p in products(integer, {})} == {n: g.macs for n, g in found.items()}
    assert cost.bops == 64 * sum(geometry.macs for geometry in found.values())
    every = tuple(Layer(layer, (Choice(8, 8, 0.0),)) for layer in found)
    assert search(Problem(every, ties(graph), moments(graph)), {}).costs["memory"] == peak_memory(integer)


def test_wide_inputs_take_two_bytes():
    graph = float_graph(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten()), 1, 8, 8)
    pixels, middle, scores = 64, 4 * 36, 4 * 2 * 36
    every = [
        tuple(Layer(n, tuple(Choice(8, b, 1 / b) for b in widths)) for n, widths in (("0", [8]), ("2", wide)))
        for wide in ([8], [16], [4])
    ]
    peaks = [search(Problem(layers, (), moments(graph)), {}).costs["memory"] for layers in every]
    assert peaks == [middle + scores, 2 * middle + scores, middle + scores]
    assert any(sum(live.elements for live in moment) == pixels + middle for moment in moments(graph))


def test_residual_streams_of_16_bits():
    graph = float_graph(random_model("small_resnet"), 1, 28, 28)
    narrow, wide = (
        max(sum(live.bytes(8) for live in moment) for moment in moments(graph, residual_bits=bits)) for bits in (8, 16)
    )
    assert wide > narrow


def test_symbolic_axes_need_a_size():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    graph = simplify(capture(model, torch.ones(2, 7, dtype=torch.long)))
    with pytest.raises(IntqError, match=r"1 has the shape \('n', 's', 6\): say how large the axis 's' is"):
        layers(graph)
    assert {name: geometry.macs for name, geometry in layers(graph, {"s": 5}).items()} == {"1": 120, "3": 60}
    # ids of 32 bits and the embeddings; these and a layer's result; that and the scores of 32 bits
    bits = {"1": 8, "3": 16}
    peaks = [sum(live.bytes(bits.get(live.layer, 8)) for live in moment) for moment in moments(graph, {"s": 5})]
    assert peaks == [5 * 4 + 20 * 2, 20 * 2 + 30 * 2, 30 * 2 + 10 * 4]
