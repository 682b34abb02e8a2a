"""BatchNorm settled on data: the statistics of that data, in a copy."""

import numpy as np
import pytest
import torch
from torch import nn

from intq.batchnorm import settled
from intq.errors import IntqError


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()


def test_the_statistics_are_those_of_the_data():
    model, pixels = network(), np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3)).astype(np.uint8)
    found = settled(model, [pixels[:6], pixels[6:]], mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
    x = (torch.from_numpy(pixels).float() / 255 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.2, 0.1])
    with torch.no_grad():
        parts = model[0](x.permute(0, 3, 1, 2)).split(6)
    torch.testing.assert_close(found[1].running_mean, torch.stack([y.mean((0, 2, 3)) for y in parts]).mean(0))
    torch.testing.assert_close(found[1].running_var, torch.stack([y.var((0, 2, 3)) for y in parts]).mean(0))
    assert not found.training and not found[1].training and found[1].momentum == 0.1
    assert torch.equal(model[1].running_mean, torch.zeros(4)), "the model itself stays as it is"


def test_what_cannot_be_settled():
    with pytest.raises(IntqError, match="no BatchNorm whose statistics"):
        settled(nn.Conv2d(3, 4, 3), [])
    with pytest.raises(IntqError, match="take larger ones"):
        settled(network(), [np.zeros((1, 3, 3, 3), np.uint8)])
