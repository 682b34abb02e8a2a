"""What layers and networks cost: as published, as stored in artifacts, as measured tables say."""

import json
import tempfile
from pathlib import Path

import numpy as np
import published
import pytest
from graphs import random_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from text_graphs import random_text_graph

from intq import artifact
from intq.cost import (
    Geometry,
    Latencies,
    alive_together,
    layer_bops,
    layer_bytes,
    network_bytes,
    network_cost,
    peak_memory,
    products,
    read_latencies,
    value_bits,
    weight_bytes,
    write_latencies,
)
from intq.errors import IntqError
from intq.graph import Graph, make_node
from intq.problem import uniform_plan
from intq.value import Value

# The first and the last layer, which the published lists leave out: ResNet's 7x7 and its classifier with its bias.
ENDS = {
    "resnet18": (Geometry(118_013_952, ((64, 3, 7, 7),)), Geometry(512_000, ((1000, 513),))),
    "resnet50": (Geometry(118_013_952, ((64, 3, 7, 7),)), Geometry(2_048_000, ((1000, 2049),))),
}


@pytest.mark.parametrize("network", published.NETWORKS)
@pytest.mark.parametrize(("scheme", "bits", "ends"), [("uniform8", 8, 8), ("uniform4", 4, 8), ("baseline", 32, 32)])
def test_published_bops_and_sizes_of_uniform_networks(network, scheme, bits, ends):
    """BOPS = products x bits x bits in 10**9, bytes of weights in 2**20; the ends keep 8 bits.

    The BOPS agree to the last digit that is printed (34.7 as 34), and so do the sizes of ResNet-18. ResNet-50's in
    float is that of the file with BatchNorm and its statistics, 0.5 % above the weights, and that of 8 bits a quarter.
    """
    row = published.NETWORKS[network]["published"][f"{network}_{scheme}"]
    problem = published.problem(network)
    inner = uniform_plan(problem, min(bits, 8), min(bits, 8))
    macs = sum(layer["macs"] for layer in published.NETWORKS[network]["layers"]) * 1e6
    bops = macs * bits * bits + sum(layer_bops(layer, ends, ends) for layer in ENDS[network])
    assert abs(bops / 1e9 - row["gbops"]) < 1
    size = inner.costs["size"] * bits / min(bits, 8) + sum(weight_bytes(e.parameters, ends) for e in ENDS[network])
    assert size / 2**20 == pytest.approx(row["size_mb"], abs=0.06, rel=0.008 if network == "resnet50" else 0)


@pytest.mark.parametrize(("network", "plan"), published.PLANS)
def test_published_bops_and_sizes_of_mixed_networks(network, plan):
    """What the published bits give is within 3.5 % of what is printed beside them, sizes above and BOPS below ours.

    No one rule gives all the printed numbers: what they leave for the two ends differs from row to row.
    """
    problem = published.problem(network)
    row = published.NETWORKS[network]["published"][f"{network}_{plan.replace('modelsize_', 'size').replace('_', '')}"]
    costs = published.published_plan(problem, network, plan).costs
    size = costs["size"] + sum(weight_bytes(layer.parameters, 8) for layer in ENDS[network])
    bops = costs["bops"] + sum(layer_bops(layer, 8, 8) for layer in ENDS[network])
    assert 1 <= row["size_mb"] / (size / 2**20) < 1.035
    assert 0.965 < row["gbops"] / (bops / 1e9) < 1


def test_a_layer():
    layer = Geometry(1000, ((3, 5), (2, 2)))
    assert (layer.parameters, layer.channels) == (19, 5)
    assert [weight_bytes(19, bits) for bits in (2, 4, 8, 16)] == [5, 10, 19, 38]
    assert layer_bytes(layer, 4) == 10 + 5 * 13
    assert layer_bops(layer, 4, 8) == 32_000


# ---- integer networks --------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_bytes_are_those_of_the_artifact(seed):
    graph = random_graph(seed)
    with tempfile.TemporaryDirectory() as folder:
        artifact.save(graph, Path(folder, "net"))
        data = Path(folder, "net", artifact.WEIGHTS_FILE).read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    stored = sum(e - s for s, e in (entry["data_offsets"] for key, entry in header.items() if key != "__metadata__"))
    assert network_bytes(graph) == stored


def contraction(op: str, name: str, x: Value, weight: np.ndarray, **attrs):
    channels = len(weight)
    attrs |= {"low": 0, "high": 255}
    constants = {
        "weight": weight.astype(np.int8),
        "multiplier": np.full(channels, 2**30, np.int32),
        "offset": np.full(channels, 2**45),
        "shift": np.full(channels, 40, np.int32),
    }
    if op != "linear":
        constants["pad_value"] = np.zeros(x.shape[-1], np.uint8)
    return make_node(op, name, [x], dtype="uint8", attrs=attrs, constants=constants, source=f"module.{name}")


def small_network(weight_bits: int, high: int) -> Graph:
    """A grouped convolution over frames of any number, then a linear layer."""
    x = Value("x", ("n", "t", 4), "uint8", 0, high, longest=100)
    window = {"stride": 2, "padding": (1, 1), "dilation": 1, "groups": 2}
    bits = {} if weight_bits == 8 else {"weight_bits": weight_bits}
    conv = contraction("conv1d", "conv", x, np.ones((6, 3, 2)), **window, **bits)
    head = contraction("linear", "head", conv.output, np.ones((5, 6)))
    return Graph((x,), (conv, head), ("head",))


def test_products_bytes_and_peak_of_a_network():
    graph = small_network(4, 15)
    conv, head = products(graph, {"t": 9})  # (9 + 2 - 3) // 2 + 1 = 5 frames
    assert (conv.node, conv.source, conv.macs, conv.weight_bits, conv.input_bits) == ("conv", "module.conv", 180, 4, 4)
    assert (head.macs, head.weight_bits, head.input_bits) == (150, 8, 8)
    cost = network_cost(graph, {"t": 9})
    assert cost.macs == 330 and cost.bops == 180 * 16 + 150 * 64
    assert cost.size == 36 // 2 + 30 + 11 * 13 + 4
    assert cost.memory == max(9 * 4 + 5 * 6, 5 * 6 + 5 * 5)
    wider = network_cost(small_network(8, 255), {"t": 9})
    assert wider.size - cost.size == 18 and wider.bops == 330 * 64 and wider.memory == cost.memory
    with pytest.raises(IntqError, match=r"conv has the shape .* say how large the axis 't' is"):
        network_cost(graph)


def test_bits_of_values():
    def bits(dtype, low, high):
        return value_bits(Value("x", ("n", 3), dtype, low, high))

    assert bits("uint8", 0, 15) == 4 and bits("uint8", 0, 16) == 8 and bits("int16", -1, 1) == 16
    assert bits("int32", -(2**31), 0) == 32


def test_attention_multiplies_its_inputs():
    graph = random_text_graph(1)
    node = next(node for node in graph.nodes if node.op == "attention")
    (found,) = (p for p in products(graph, {"s": 7}) if p.node == node.name)
    assert found.macs == 2 * 7 * 7 * node.output.shape[2] and found.bops == 64 * found.macs
    assert network_cost(graph, {"s": 7}).macs > found.macs


def test_what_is_in_memory_together():
    """x -> a -> b; c = a + b; a view of c is the answer."""
    steps = [("a", ["x"]), ("b", ["a"]), ("c", ["a", "b"]), ("v", ["c"]), ("d", ["v"])]
    alive = alive_together(["x"], steps, ["v", "d"], {"v": "c"})
    assert ["".join(sorted(names)) for names in alive] == ["ax", "ab", "abc", "c", "cd"]


def test_a_reshaped_value_takes_no_memory_of_its_own():
    x = Value("x", ("n", 4, 6), "uint8", 0, 255)
    flat = make_node("reshape", "flat", [x], dtype="uint8", attrs={"shape": ("n", 24)})
    head = contraction("linear", "head", flat.output, np.ones((5, 24)))
    assert peak_memory(Graph((x,), (flat, head), ("head",))) == 24 + 5


# ---- tables of latencies -----------------------------------------------------------------------------------------

TABLE = Latencies(
    "small_resnet", "llvm -mcpu=icelake-server", 2, {"conv1": {(8, 8): 1e-4, (4, 8): 2e-4}, "fc": {(2, 16): 0.0}}, 1e-5
)


def test_latencies_are_written_and_read(tmp_path):
    write_latencies(tmp_path / "a.json", TABLE)
    assert read_latencies(tmp_path / "a.json") == TABLE
    assert json.loads((tmp_path / "a.json").read_text())["layers"]["conv1"] == {"W8A8": 1e-4, "W4A8": 2e-4}
    assert TABLE.of("fc", 2, 16) == 0
    with pytest.raises(IntqError, match="no latency of 'head' was measured, only of conv1, fc"):
        TABLE.of("head", 8, 8)
    with pytest.raises(IntqError, match="the latency of 'conv1' at W2A8 was not measured, only at W8A8, W4A8"):
        TABLE.of("conv1", 2, 8)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"target": None}, "target must be a text, found None"),
        ({"threads": 0}, "threads must be a whole number, 1 or more, found 0"),
        ({"layers": []}, "layers must be an object, found []"),
        ({"layers": {"a": 3}}, "layers['a'] must be an object, found 3"),
        ({"layers": {"a": {"8x8": 1.0}}}, "layers['a'] must have keys such as 'W4A8', found '8x8'"),
        ({"layers": {"a": {"W08A8": 1.0}}}, "found 'W08A8'"),
        ({"layers": {"a": {"W8A8": -1.0}}}, "layers['a']['W8A8'] must be a finite number, 0 or more, found -1.0"),
        ({"layers": {"a": {"W8A8": True}}}, "found True"),
        ({"other": "x"}, "other must be a finite number, 0 or more, found 'x'"),
        ({"format": "intq-plan"}, "not of the expected kind"),
        ({"version": 2}, "this intq reads up to 1"),
    ],
)
def test_malformed_tables(changes, says, tmp_path):
    path = tmp_path / "a.json"
    write_latencies(path, TABLE)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(IntqError) as error:
        read_latencies(path)
    assert says in str(error.value) and str(path) in str(error.value)


@settings(max_examples=100)
@given(st.data())
def test_any_damage_is_refused_or_read(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.json")
        write_latencies(path, TABLE)
        text = path.read_text()
        at = data.draw(st.integers(0, len(text) - 1))
        more = data.draw(st.text(alphabet='{}[]",:0eWA9-n ', max_size=3))
        path.write_text(text[:at] + more + text[at + data.draw(st.integers(0, 5)) :])
        try:
            found = read_latencies(path)
        except IntqError:
            return
        assert all(seconds >= 0 for each in found.layers.values() for seconds in each.values())
