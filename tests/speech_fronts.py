"""A front end of torch alone for tests of networks: log energies of bands, normalised, alone as in a batch."""

from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional

WEIGHTS_SEED = 5


class Bands(nn.Module):
    """Samples (n, t) to features (n, bands, t // hop): random filters in place of mel bands."""

    def __init__(self, bands: int = 8, hop: int = 160, normalize: str = "per_feature"):
        super().__init__()
        self.hop, self.normalize = hop, normalize
        generator = torch.Generator().manual_seed(WEIGHTS_SEED)
        self.register_buffer("filters", torch.randn(bands, 1, hop, generator=generator))

    def frames(self, samples):
        return samples // self.hop

    def forward(self, samples, lengths=None):
        x = (functional.conv1d(samples[:, None], self.filters, stride=self.hop) ** 2 + 1e-6).log()
        if self.normalize == "none":
            return x
        if lengths is None:
            return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-5)
        count = self.frames(lengths)[:, None, None]
        inside = torch.arange(x.shape[-1]) < count
        mean = (x * inside).sum(-1, keepdim=True) / count
        std = (((x - mean) * inside) ** 2).sum(-1, keepdim=True).div(count - 1).sqrt()
        return (x - mean) / (std + 1e-5) * inside


def front_end(settings):
    """In place of intq.speech.checkpoint.front_end."""
    defaults = {
        "low_hz": 0.0,
        "high_hz": None,
        "window_kind": "hann",
        "preemphasis": 0.97,
        "guard": 2**-24,
        "normalize": "per_feature",
        "padding": "constant",
        "extra_frame": False,
    }
    front = SimpleNamespace(**defaults | dict(settings))
    return front, Bands(front.bands, front.hop, front.normalize)
