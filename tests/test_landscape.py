"""The loss around a network, against parabolas that are known and networks that compute the same."""

import math

import pytest
import torch
from torch import nn

from intq.errors import IntqError
from intq.landscape import FLAT, RISE, landscape, relative
from intq.losses import Loss, of_module, with_own_answers
from intq.spectrum import eigenvalues

torch.set_num_threads(1)
WEIGHT = torch.tensor([[3.0, 4.0], [0.0, 2.0]])  # filters of length 5 and 2
CURVES = torch.tensor([[1.0, 2.0], [0.5, 4.0]])
BATCH = [(torch.zeros(1, 1), torch.zeros(1))]


def parabola(sign: float = 1.0) -> Loss:
    """sum curves (w - WEIGHT)^2 / 2 + 7, least where the weights are."""
    return Loss({"w": WEIGHT}, lambda w, batch, perturb: 7 + sign * (CURVES * (w["w"] - WEIGHT).square()).sum() / 2)


def test_of_a_parabola_it_is_the_parabola():
    loss = relative(parabola())
    top = eigenvalues(loss, BATCH)
    assert top.values == pytest.approx((50, 25), rel=1e-5)  # of diag(curves |w_f|^2): 25, 50, 2, 16
    found = landscape(loss, BATCH, top, points=5)
    reach = math.sqrt(2 * RISE / 50)
    assert found.places == pytest.approx([-reach, -reach / 2, 0, reach / 2, reach]) and found.places[2] == 0
    assert found.middle == 7
    expected = [[7 + 50 * a * a / 2 + 25 * b * b / 2 for a in found.places] for b in found.places]
    for line, wanted in zip(found.loss, expected, strict=True):
        assert line == pytest.approx(wanted, rel=1e-5)
    assert found.loss[2][4] == pytest.approx(7 + RISE)


def test_where_nothing_rises_it_reaches_a_tenth():
    loss = relative(parabola(-1))
    found = landscape(loss, BATCH, eigenvalues(loss, BATCH), points=3)
    assert found.places == (-FLAT, 0, FLAT) and found.middle == max(map(max, found.loss))


def test_networks_that_compute_the_same_have_the_same_landscape():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    moved = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    moved.load_state_dict(network.state_dict())
    with torch.no_grad():
        moved[0].weight *= 1000
        moved[0].bias *= 1000
        moved[2].weight /= 1000
    inputs = [torch.randn(8, 4), torch.randn(5, 4)]
    both = []
    for each in (network, moved):
        batches, loss = with_own_answers(each, inputs), relative(of_module(each))
        top = eigenvalues(loss, batches, tolerance=1e-5)
        both.append((top.values, landscape(loss, batches, top, points=3)))
    (mine, a), (its, b) = both
    assert mine == pytest.approx(its, rel=1e-3)
    assert a.places == pytest.approx(b.places, rel=1e-3) and a.middle == pytest.approx(b.middle, rel=1e-5)


def test_what_has_no_landscape_says_why():
    one = relative(Loss({"w": torch.ones(1, 1)}, lambda w, batch, perturb: w["w"].square().sum()))
    with pytest.raises(IntqError, match="a single eigenvalue"):
        landscape(one, BATCH, eigenvalues(one, BATCH))
    loss = relative(parabola())
    with pytest.raises(IntqError, match="an odd number of points a side, 3 or more, got 4"):
        landscape(loss, BATCH, eigenvalues(loss, BATCH), points=4)
    top = eigenvalues(loss, BATCH)
    steep = Loss(loss.weights, lambda w, batch, perturb: 1 / w["w"].abs().sum().clamp(max=0))
    with pytest.raises(IntqError, match="the loss is not finite near these weights"):
        landscape(steep, BATCH, top, points=3)
