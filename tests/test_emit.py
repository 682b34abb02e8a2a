"""A plan as integers: what the plan says of weights, padding and limits is what the integer network computes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from intq.backends import reference
from intq.emit import emit
from intq.emit_layers import COARSE
from intq.emit_moves import reshape_groups
from intq.floatgraph import FloatGraph, FloatNode
from intq.plan import Plan, Quant, Weights
from intq.rounding import LIMITS

FRAMES = {"stride": 1, "dilation": 1, "groups": 1, "padding": (2, 1)}


def convolution(parameters: dict[str, torch.Tensor], **attrs) -> FloatGraph:
    """y (n, frames, 4) = a window of 3 over x (n, 12, 5)."""
    rng = np.random.default_rng(0)
    weight = torch.from_numpy(rng.integers(-127, 128, (4, 5, 3))).float()
    given = {"weight": weight, "bias": torch.zeros(4), **parameters}
    shape = ("n", 12 + sum(FRAMES["padding"]) - 2, 4)
    return FloatGraph("x", ("n", 12, 5), (FloatNode("y", "conv1d", ("x",), shape, FRAMES | attrs, given),), "y")


def planned(graph: FloatGraph, wide: bool, **quants: Quant) -> Plan:
    (node,) = graph.nodes
    weights = Weights(node.parameters["weight"].to(torch.int8), torch.ones(4), node.parameters["bias"])
    return Plan(graph, quants, {}, {"y": weights}, reads={"y": 16} if wide else {})


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_a_convolution_pads_with_what_its_input_had_in_place_of_zero(dtype):
    """Of 16 bits both bytes of it; the pad of a channel may be any integer, and ends where the dtype does."""
    real = torch.tensor([0.0, 1.0, 300.0, -77.0, -1e6])
    zero_point, low, high = (100, 0, 255) if dtype == "uint8" else (0, -(2**15), 2**15 - 1)
    plan = planned(
        convolution({"pad": real}), dtype == "int16", x=Quant(dtype, 1.0, zero_point), y=Quant("int32", 1.0, 0)
    )
    graph = emit(plan)
    graph.verify()
    x = np.random.default_rng(1).integers(low, high, (2, 12, 5), dtype, endpoint=True)
    pad = np.clip(real.numpy() + zero_point, low, high)
    padded = np.concatenate([np.broadcast_to(pad, (2, 2, 5)), x, np.broadcast_to(pad, (2, 1, 5))], 1).astype(np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(padded - zero_point, 3, 1)  # (n, frame, channel, tap)
    expected = np.einsum("nfck,ock->nfo", windows, plan.weights["y"].q.numpy().astype(np.int64))
    np.testing.assert_array_equal(reference.run(graph, x)[0], expected)


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_weights_of_16_bits(dtype):
    """Of 8-bit inputs to the last integer; of 16 bits but for the fine weights of the low bytes, less their mean."""
    zero_point, low, high = (100, 0, 255) if dtype == "uint8" else (0, -(2**15), 2**15 - 1)
    weight = np.random.default_rng(2).integers(-LIMITS[16], LIMITS[16], (4, 5, 3), endpoint=True)
    weight[0, 0] = -LIMITS[16], LIMITS[16], 127
    scale = 1.0 if dtype == "uint8" else 2.0**9
    plan = planned(convolution({}), dtype == "int16", x=Quant(dtype, 1.0, zero_point), y=Quant("int32", scale, 0))
    plan = replace(plan, weights={"y": replace(plan.weights["y"], q=torch.from_numpy(weight).to(torch.int16), bits=16)})
    x = np.random.default_rng(1).integers(low, high, (2, 12, 5), dtype, endpoint=True)
    padded = np.pad(x.astype(np.int64) - zero_point, ((0, 0), (2, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 3, 1)  # (n, frame, channel, tap)
    expected = np.einsum("nfck,ock->nfo", windows, weight)
    (y,) = reference.run(emit(plan), x)
    if dtype == "uint8":
        np.testing.assert_array_equal(y, expected)
    else:
        fine = weight - COARSE * np.rint(weight / COARSE).astype(np.int64)
        assert abs(fine).max() <= 127
        left_out = np.einsum("nfck,ock->nfo", windows % 256, fine) - 127.5 * fine.sum((1, 2))
        np.testing.assert_allclose(scale * y, expected - left_out, rtol=0, atol=1.02 * scale)  # it rounds twice


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_no_channel_passes_its_own_limit(dtype):
    """Equalization divides a ReLU6 by each channel's scale; 16 bits reach further than 8, but no further than that."""
    own = torch.tensor([6.0, 7.0, 11.0, 90.0])
    step = {"uint8": 6 / 255, "int16": 9 / 2**15}[dtype]
    graph = convolution({"channel_high": own}, low=0.0)
    plan = planned(graph, False, x=Quant("uint8", 0.1, 128), y=Quant(dtype, step, 0))
    x = np.random.default_rng(1).integers(0, 256, (9, 12, 5), np.uint8)
    (y,) = reference.run(emit(plan), x)
    assert (step * y.max((0, 1)) <= own.numpy()).all() and y.max() == round(6 / step)
    real = plan.run(torch.from_numpy(0.1 * (x - 128.0)).float()).numpy()
    np.testing.assert_array_equal(real == real.max(), y == y.max())  # the plan's arithmetic ends there too


def test_reshape_groups():
    assert reshape_groups(("n", 8, 4, 4), ("n", 2, 4, 4, 4)) == [([0], [0]), ([1], [1, 2]), ([2], [3]), ([3], [4])]
    assert reshape_groups(("n", 6, 1, 1), ("n", 6)) == [([0], [0]), ([1], [1])]
    assert reshape_groups(("n", 2, 3, 4), ("n", 24)) == [([0], [0]), ([1, 2, 3], [1])]
