"""What stands behind an encoder, under NeMo's parameter names: (n, C, t) to logits, never softmax."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from intq.speech.models.convolutional import mean_over_time

Head = Literal["ctc", "classification", "frames"]


class Ctc(nn.Module):
    """A label for each frame, or none: logits (n, t, labels + 1), the blank last (Graves et al., 2006)."""

    def __init__(self, channels: int, labels: int) -> None:
        super().__init__()
        self.decoder_layers = nn.Sequential(nn.Conv1d(channels, labels + 1, 1))

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        return self.decoder_layers(x).transpose(1, 2)


class Classifier(nn.Module):
    """One class for the whole utterance, from the mean over its frames: logits (n, labels).

    NeMo's mean runs over the padding of a batch too; here it does not.
    """

    def __init__(self, channels: int, labels: int) -> None:
        super().__init__()
        self.decoder_layers = nn.Sequential(nn.Linear(channels, labels))

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        return self.decoder_layers(mean_over_time(x, frames))


class PerFrame(nn.Module):
    """One class for each frame, as in voice activity detection: logits (n, t, labels)."""

    def __init__(self, channels: int, labels: int) -> None:
        super().__init__()
        self.layer0 = nn.Linear(channels, labels)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        return self.layer0(x.transpose(1, 2))


HEADS: dict[Head, type[nn.Module]] = {"ctc": Ctc, "classification": Classifier, "frames": PerFrame}
