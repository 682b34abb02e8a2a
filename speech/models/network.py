"""Front end, encoder and head as one network of audio samples."""

from __future__ import annotations

from torch import Tensor, nn


class SpeechModel(nn.Module):
    """Float samples (n, t) in [-1, 1), with `lengths` (n,) of them valid, to logits (n, frames, labels) or (n, labels).

    front: a module from samples to normalised features (n, bands, frames), `front(samples)` of utterances that fill
    their rows or `front(samples, lengths)` of such that may not, with `front.frames(lengths)` that counts the frames
    of so many samples. encoder and head likewise work on (n, channels, frames).

    Without lengths nothing is masked; with them, an utterance in a batch gives what it gives alone, on its first
    `frames(length)` frames.
    """

    def __init__(self, front: nn.Module, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.front, self.encoder, self.decoder = front, encoder, decoder

    def forward(self, samples: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is None:
            return self.decoder(self.encoder(self.front(samples)))
        frames = self.front.frames(lengths)
        encoded = self.encoder(self.front(samples, lengths), frames)
        return self.decoder(encoded, self.encoder.frames(frames))

    def frames(self, samples):
        """How many frames of logits so many samples give (an int or a tensor of them)."""
        return self.encoder.frames(self.front.frames(samples))
