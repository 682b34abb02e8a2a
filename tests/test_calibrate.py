"""Ranges from histograms, channels equalized, weights rounded with compensation."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from intq.calibrate import BINS, Histogram, choose_range, observe_histograms, observe_limits
from intq.capture import capture
from intq.equalize import equalize
from intq.errors import IntqError
from intq.rounding import compensate
from intq.simplify import simplify


def quiet(done, total):
    pass


def histogram(x: torch.Tensor) -> Histogram:
    low, high = float(x.min()), float(x.max())
    return Histogram(low, high, torch.histc(x, BINS, low, high).double())


def squared_error(x, low, high):
    scale = (high - low) / 255
    zero = round(-low / scale)
    return float(((torch.round(x / scale) + zero).clamp(0, 255).sub(zero).mul(scale) - x).square().sum())


@pytest.mark.parametrize("distribution", [torch.randn, torch.rand])
def test_mse_loses_no_more_than_any_other_range_tried(distribution):
    x = distribution(20000, generator=torch.Generator().manual_seed(0)) ** 3
    low, high = choose_range([histogram(x)], "mse")
    found = squared_error(x, low, high)
    for share in torch.linspace(0.3, 1.0, 36).tolist():
        assert found <= squared_error(x, share * min(0.0, float(x.min())), share * float(x.max())) * 1.02


def test_minmax_and_percentile():
    x = torch.cat([torch.linspace(-1, 1, 100_000), torch.tensor([50.0])])
    assert choose_range([histogram(x)], "minmax") == (-1.0, 50.0)
    low, high = choose_range([histogram(x)], "percentile")
    assert low == pytest.approx(-1.0, abs=0.1) and high == pytest.approx(1.0, abs=0.1)


def test_ranges_hold_zero_and_cover_every_value_that_shares_them():
    parts = [histogram(torch.linspace(3, 4, 1000)), histogram(torch.linspace(5, 9, 1000))]
    assert choose_range(parts, "minmax") == (0.0, 9.0)
    assert choose_range([Histogram(0.0, 0.0, torch.zeros(BINS))], "mse") == (0.0, 0.0)


def test_what_a_function_ignores_costs_nothing():
    x = torch.cat([torch.linspace(-50, 0, 5000), torch.linspace(0, 4, 5000)])
    low, high = choose_range([histogram(x)], "mse", torch.nn.functional.relu)
    assert low > -2 and high == pytest.approx(4.0, abs=0.1)


def test_limits_and_histograms_are_exact():
    graph = simplify(capture(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()), torch.zeros(1, 2, 6, 6)))
    x = torch.randn(10, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    batches = list(x.split(4))
    limits = observe_limits(graph, batches, quiet)
    histograms = observe_histograms(graph, batches, limits, quiet)
    y = graph.run(x)
    seen = limits[graph.output]
    assert torch.equal(seen.low.float(), y.amin((0, 2, 3))) and torch.equal(seen.high.float(), y.amax((0, 2, 3)))
    assert torch.allclose(seen.square, y.double().square().mean((0, 2, 3)), rtol=1e-5)
    assert int(histograms[graph.output].counts.sum()) == y.numel()


def test_infinite_values_are_named():
    graph = simplify(capture(nn.Sequential(nn.Conv2d(1, 1, 1)), torch.zeros(1, 1, 2, 2)))
    with pytest.raises(IntqError, match="NaN or infinity"):
        observe_limits(graph, [torch.full((1, 1, 2, 2), torch.inf)], quiet)


class Bottleneck(nn.Module):
    """Expand, depthwise, project, and a residual, with channels of very different reach."""

    def __init__(self):
        super().__init__()
        self.first, self.expand = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 1)
        self.depthwise, self.project = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 5)
        with torch.no_grad():
            self.expand.weight *= torch.logspace(-2, 0, 16).reshape(-1, 1, 1, 1)

    def forward(self, x):
        x = self.first(x)
        y = nn.functional.relu6(self.depthwise(self.expand(x)))
        return self.head((x + self.project(y)).mean((2, 3)))


def test_equalization_keeps_the_function_and_evens_the_channels():
    torch.manual_seed(0)
    graph = simplify(capture(Bottleneck(), torch.zeros(1, 3, 8, 8)))
    x = torch.randn(6, 3, 8, 8)
    with torch.no_grad():
        before = observe_limits(graph, [x], quiet)
        even, limits = equalize(graph, before)
        assert torch.allclose(even.run(x), graph.run(x), atol=1e-5)
        after = observe_limits(even, [x], quiet)
    for name in after:
        assert torch.allclose(limits[name].high, after[name].high, rtol=1e-3, atol=1e-4), name

    def reach(seen):
        return torch.maximum(seen.high, -seen.low)

    def spread(seen):
        return float(reach(seen).max() / reach(seen).min())

    assert spread(after["expand"]) < 0.2 * spread(before["expand"])
    assert float(reach(after["expand"]).max()) == pytest.approx(float(reach(before["expand"]).max()), rel=1e-3)


def test_a_channel_seen_seldom_behind_a_relu_is_left_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    graph = simplify(capture(model, torch.zeros(1, 3, 8, 8)))
    with torch.no_grad():
        few = observe_limits(graph, [torch.randn(4, 3, 8, 8)], quiet)
        many = {name: replace(seen, count=2**20) for name, seen in few.items()}
        first = graph.nodes[0].parameters["weight"]
        assert torch.equal(equalize(graph, few)[0].nodes[0].parameters["weight"], first)
        assert not torch.equal(equalize(graph, many)[0].nodes[0].parameters["weight"], first)


def test_compensation_loses_less_than_rounding_each_weight():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(40, 40, generator=generator, dtype=torch.float64)
    x = torch.randn(2000, 40, generator=generator, dtype=torch.float64) @ mixing  # correlated inputs
    real = 20 * torch.randn(1, 12, 40, generator=generator, dtype=torch.float64)
    q = compensate(real, (x.T @ x)[None])

    def error(integers):
        return float(((integers - real) @ x.T).square().sum())

    assert torch.equal(q, q.round()) and q.abs().max() <= 127
    assert error(q) < 0.5 * error(real.round())


def test_compensation_of_dead_inputs_is_rounding():
    real = 20 * torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(compensate(real, torch.zeros(1, 5, 5, dtype=torch.float64)), real.round())
