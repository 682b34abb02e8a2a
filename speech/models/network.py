"""Front end, encoder and head as one network of audio samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from intq.frontend import FrontEnd, LogMel
from intq.speech.models.conformer import Attention

SECONDS, ATTENTION_SECONDS = 60.0, 30.0  # attention's work grows with the square


class SpeechModel(nn.Module):
    """Float samples (n, t) in [-1, 1), with `lengths` (n,) of them valid, to logits (n, frames, labels) or (n, labels).

    cepstra: how many cepstral coefficients the encoder takes in place of the front end's bands (see `cosines`).
    Its `rate` is in Hz; `seconds` of a recording go through it at a time.

    Without lengths nothing is masked; with them, an utterance in a batch gives what it gives alone, on its first
    `frames(length)` frames.
    """

    def __init__(self, front: FrontEnd, encoder: nn.Module, decoder: nn.Module, cepstra: int | None = None) -> None:
        super().__init__()
        self.front, self.encoder, self.decoder = LogMel(front), encoder, decoder
        self.rate, self.seconds = front.sample_rate, ATTENTION_SECONDS if attends(encoder) else SECONDS
        self.cepstra = nn.Identity() if cepstra is None else cosines(front.bands, cepstra)

    def forward(self, samples: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is None:
            return self.decoder(self.encoder(self.cepstra(self.front(samples))))
        frames = self._features(lengths)
        encoded = self.encoder(self.cepstra(self.front(samples, lengths)), frames)
        return self.decoder(encoded, self.encoder.frames(frames))

    def frames(self, samples):
        """How many frames of logits so many samples give (an int or a tensor of them)."""
        return self.encoder.frames(self._features(samples))

    def _features(self, samples):
        front = self.front.front
        return samples // front.hop + front.extra_frame


def attends(encoder: nn.Module) -> bool:
    """Whether a network has attention."""
    return any(isinstance(module, Attention) for module in encoder.modules())


def cosines(bands: int, count: int) -> nn.Conv1d:
    """Features (n, bands, t) to their first `count` cepstral coefficients: the orthonormal cosine transform (DCT-II).

    c_k = sqrt(2 / bands) sum_b cos(pi k (b + 1/2) / bands) x_b, and c_0 over sqrt(2) of that. A fixed 1x1 convolution.
    """
    k, b = torch.arange(count, dtype=torch.float64)[:, None], torch.arange(bands, dtype=torch.float64)
    matrix = torch.cos(math.pi / bands * k * (b + 0.5)) * math.sqrt(2 / bands)
    matrix[0] /= math.sqrt(2)
    transform = nn.Conv1d(bands, count, 1, bias=False)
    transform.weight = nn.Parameter(matrix.float()[..., None], requires_grad=False)
    return transform
