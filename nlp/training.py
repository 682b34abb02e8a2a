"""Labelled texts for fine-tuning: batches of similar length, and the loss of each head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from intq.errors import IntqError
from intq.nlp.data import Examples
from intq.nlp.labels import class_order
from intq.nlp.tokens import Reader, padded

APART = 4.0  # tokens by which lengths are blurred, so that no two epochs have the same batches
IGNORED = -100  # the label of a token that is no word's first


@dataclass(frozen=True)
class Training:
    """Batches of labelled texts as :class:`intq.finetune.Data` describes them.

    ``rows``: the ids of each text. ``targets``: its class, its score, or the class of each token.
    """

    head: str
    rows: Sequence[np.ndarray]
    targets: Sequence[Any]
    padding: int

    @property
    def size(self) -> int:
        return len(self.rows)

    def order(self, batch: int, generator: np.random.Generator) -> list[np.ndarray]:
        lengths = np.array([len(row) for row in self.rows]) + generator.uniform(-APART, APART, self.size)
        order = np.argsort(lengths, kind="stable")
        found = [order[at : at + batch] for at in range(0, max(1, self.size - batch + 1), batch)]
        generator.shuffle(found)
        return found

    def batch(self, chosen: np.ndarray, generator: np.random.Generator) -> tuple[tuple[Tensor, ...], Tensor]:
        ids = torch.from_numpy(padded([self.rows[i] for i in chosen], self.padding))
        if self.head == "tokens":
            wanted = np.full(ids.shape, IGNORED)
            for row, i in zip(wanted, chosen, strict=True):
                row[: len(self.targets[i])] = self.targets[i]
            return (ids,), torch.from_numpy(wanted)
        return (ids,), torch.tensor([self.targets[i] for i in chosen])

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        if self.head == "regression":
            return F.mse_loss(output[..., 0], targets.to(output))
        return F.cross_entropy(output.flatten(0, -2), targets.flatten(), ignore_index=IGNORED)

    def kept(self, output: Tensor, targets: Tensor) -> Tensor | None:
        return (targets != IGNORED).to(output) if self.head == "tokens" else None


def training(examples: Examples, reader: Reader, metadata: Mapping[str, Any]) -> Training:
    """The examples as a network with this metadata reads them.

    Raises IntqError when they have no labels, or others than the network, and for embeddings, which have no loss.
    """
    head, labels = metadata["head"], metadata["labels"]
    if head == "embedding":
        raise IntqError(f"{metadata['model']} makes embeddings: only networks that classify or score can be fine-tuned")
    if examples.labels is None:
        raise IntqError(f"{examples.name} has no labels to train on")
    if head == "tokens":
        rows, words = reader.words(examples.texts, examples.where)
        names = sorted({tag for tags in examples.labels for tag in tags})
        order = dict(zip(names, class_order(names, labels, examples.name, numbered=False), strict=True))
        targets = [np.full(len(row), IGNORED) for row in rows]
        for found, tags, own in zip(targets, examples.labels, words, strict=True):
            for word in own:
                found[word.token] = order[tags[word.index]]
        return Training(head, rows, targets, reader.padding)
    rows = reader.ids(examples.texts, examples.where)
    if head == "regression":
        return Training(head, rows, [float(score) for score in examples.labels], reader.padding)
    values = [examples.classes[v] if examples.classes else str(v).strip() for v in examples.labels]
    names = list(examples.classes) or sorted(set(values))
    order = class_order(names, labels, examples.name, examples.numbered)
    return Training(head, rows, [int(order[names.index(v)]) for v in values], reader.padding)
