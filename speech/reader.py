"""From recordings to what a speech network takes, and how many frames of its answer are theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from intq import dims
from intq.speech.labels import Labels

SAMPLES = "t"  # the axis of samples in an answer's size


@dataclass(frozen=True)
class Reader:
    """rate: in Hz. shortest, longest: in samples, of what goes through the network at a time.

    answer: the size of its answer, of samples "t": "(t+160)//320" frames; "" where it answers once.
    labels: of a CTC network, what its labels spell.
    """

    rate: int
    shortest: int
    longest: int
    answer: str
    labels: Labels | None

    def frames(self, samples: int) -> int:
        """The frames of the answer to so many samples."""
        return dims.size(self.answer, {SAMPLES: samples}) if self.answer else 1

    @property
    def step(self) -> float:
        """Seconds between two frames of the answer."""
        return dims.parts(self.answer)[2] / self.rate


def of_metadata(metadata: Mapping[str, Any]) -> Reader:
    """The reader of a network, from the metadata that travels with it."""
    labels = Labels.from_dict(metadata["spelling"]) if metadata["head"] == "ctc" else None
    return Reader(metadata["sample_rate"], metadata["shortest"], metadata["longest"], metadata["frames"], labels)
