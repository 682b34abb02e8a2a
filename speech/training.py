"""Transcribed recordings for fine-tuning: batches of similar length, CTC as the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from intq.errors import IntqError
from intq.speech import audio
from intq.speech.data import Utterance
from intq.speech.labels import normalized
from intq.speech.reader import Reader

BLUR = 0.05  # share by which durations are blurred, so that no two epochs have the same batches
LONGEST = 20.0  # seconds; longer recordings are left out


@dataclass(frozen=True)
class Training:
    """Batches of utterances as :class:`intq.finetune.Data` describes them; targets are (labels, how many, frames)."""

    utterances: Sequence[Utterance]
    reader: Reader

    @property
    def size(self) -> int:
        return len(self.utterances)

    def order(self, batch: int, generator: np.random.Generator) -> list[np.ndarray]:
        durations = np.array([each.duration for each in self.utterances])
        order = np.argsort(durations * generator.uniform(1 - BLUR, 1 + BLUR, self.size), kind="stable")
        found = [order[at : at + batch] for at in range(0, max(1, self.size - batch + 1), batch)]
        generator.shuffle(found)
        return found

    def batch(self, chosen: np.ndarray, generator: np.random.Generator) -> tuple[tuple[Tensor, ...], tuple]:
        given, reader = [self.utterances[i] for i in chosen], self.reader
        heard = [audio.read(each.path, reader.rate, each.offset, each.duration, reader.shortest)[0] for each in given]
        lengths = np.array([len(samples) for samples in heard], np.int32)
        whole = np.zeros((len(heard), lengths.max()), np.int16)
        for row, samples in zip(whole, heard, strict=True):
            row[: len(samples)] = samples
        labels = [torch.tensor(reader.labels.spelled(normalized(each.text)), dtype=torch.long) for each in given]
        frames = torch.tensor([reader.frames(int(length)) for length in lengths])
        return (torch.from_numpy(whole), torch.from_numpy(lengths)), (labels, frames)

    def loss(self, output: Tensor, targets: tuple) -> Tensor:
        labels, frames = targets
        counts = torch.tensor([len(each) for each in labels])
        logs = F.log_softmax(output.float(), -1).transpose(0, 1)
        return F.ctc_loss(logs, torch.cat(labels), frames, counts, self.reader.labels.blank, zero_infinity=True)

    def kept(self, output: Tensor, targets: tuple) -> Tensor:
        return (torch.arange(output.shape[1])[None] < targets[1][:, None]).to(output)


def training(utterances: Sequence[Utterance], reader: Reader) -> Training:
    """The utterances that a CTC network can learn from. Raises IntqError when there are none, or for another head."""
    if reader.labels is None:
        raise IntqError("this network does not transcribe: only those that do (CTC) can be fine-tuned on recordings")
    longest = min(LONGEST, reader.longest / reader.rate)
    kept = [each for each in utterances if each.text.strip() and each.duration <= longest]
    if not kept:
        raise IntqError(f"there are no transcribed recordings of up to {longest:g} seconds to train on")
    return Training(kept, reader)
