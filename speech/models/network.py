"""Front end, encoder and head as one network of audio samples."""

from __future__ import annotations

from torch import Tensor, nn

from intq.frontend import FrontEnd, LogMel


class SpeechModel(nn.Module):
    """Float samples (n, t) in [-1, 1), with `lengths` (n,) of them valid, to logits (n, frames, labels) or (n, labels).

    Without lengths nothing is masked; with them, an utterance in a batch gives what it gives alone, on its first
    `frames(length)` frames.
    """

    def __init__(self, front: FrontEnd, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.front, self.encoder, self.decoder = LogMel(front), encoder, decoder

    def forward(self, samples: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is None:
            return self.decoder(self.encoder(self.front(samples)))
        frames = self._features(lengths)
        encoded = self.encoder(self.front(samples, lengths), frames)
        return self.decoder(encoded, self.encoder.frames(frames))

    def frames(self, samples):
        """How many frames of logits so many samples give (an int or a tensor of them)."""
        return self.encoder.frames(self._features(samples))

    def _features(self, samples):
        front = self.front.front
        return samples // front.hop + front.extra_frame
