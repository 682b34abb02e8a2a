"""The model of speed: a bound from below, by the right limit, that no published time goes under."""

import numpy as np
import pytest
from commandline import answer, complaint
from contractions import convolution
from graphs import narrowed, random_graph
from published import NETWORKS

from intq.graph import Graph
from intq.kernels.cuda import speed

SIDES = {1: 56, 2: 28, 3: 14, 4: 7}  # of ResNet's stages


def alone(*case, bits: int = 8) -> Graph:
    (x,), node = convolution(0, np.random.default_rng(0), *case)
    graph = Graph((x,), (node,), (node.name,))
    return narrowed(graph, {node.name: bits}) if bits < 8 else graph


def seconds(graph: Graph, gpu: str = "nvidia/nvidia-t4", batch: int = 8) -> speed.Prediction:
    (prediction,) = speed.predicted(graph, speed.card(gpu), {"n": batch})
    return prediction


@pytest.mark.parametrize("stage", SIDES)
def test_no_published_time_is_below(stage):
    """The 3 x 3 convolutions inside of ResNet-18's stages, as HAWQ-V3's kernels took them on a T4."""
    side, channels = SIDES[stage], 32 * 2**stage
    case = (side, side, channels, channels, (3, 3), (1, 1), (1, 1, 1, 1))
    published = [row for row in NETWORKS["resnet18"]["layers"] if row["name"] == f"stage{stage}.unit2.convbn2"]
    found = seconds(alone(*case))
    assert 1e3 * found.seconds < published[0]["latency_int8"]
    assert published[0]["macs"] * 8e6 * 2 / 130e12 <= found.seconds - speed.GAP  # nor is it below the products alone
    assert 0 < found.filled <= 1


def test_what_a_layer_is_bound_by():
    inside = (512, 512, (3, 3), (1, 1), (1, 1, 1, 1))
    wide = seconds(alone(28, 28, *inside))
    few = seconds(alone(14, 14, *inside))  # its tiles are smaller, so that each operand is brought to more of them
    flat = seconds(alone(56, 56, 64, 64, (1, 1), (1, 1), (0, 0, 0, 0)))
    small = seconds(alone(4, 4, 16, 16, (1, 1), (1, 1), (0, 0, 0, 0)), batch=1)
    assert [p.bound for p in (wide, few, flat, small)] == ["products", "operands", "bytes", "gap"]
    assert flat.seconds - speed.GAP >= 2 * 8 * 56 * 56 * 64 / 320e9
    assert seconds(alone(28, 28, *inside), "nvidia/nvidia-h100").seconds < wide.seconds / 4


def test_a_network_by_the_command():
    found = answer("bench", "small_resnet", "--predict", "nvidia/nvidia-t4", "--batch", 8)
    assert found["gpu"] == "T4" and found["batch"] == 8 and found["sequence"] is None
    assert found["ms"] == pytest.approx(sum(layer["ms"] for layer in found["layers"]))
    assert {layer["bound"] for layer in found["layers"]} <= {"products", "operands", "bytes", "gap"}
    assert "no published limits of 'nvidia/nvidia-v100'" in complaint(
        "bench", "small_resnet", "--predict", "nvidia/nvidia-v100"
    )


def test_every_layer_of_a_random_network():
    graph = random_graph(3)
    found = speed.predicted(graph, speed.card("nvidia/nvidia-a100"), {"n": 4})
    assert [p.name for p in found] == [node.name for node in graph.nodes if node.op != "reshape"]
    assert all(p.seconds >= speed.GAP for p in found)
