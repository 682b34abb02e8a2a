"""Calibration sentences: token ids without their padding, in batches of one length."""

from __future__ import annotations

import torch
from torch import Tensor

from intq.errors import IntqError
from intq.floatgraph import FloatGraph
from intq.value import Value

BATCH_TOKENS = 1024  # that go through the network together


def tokens_value(graph: FloatGraph) -> Value:
    """The declared input of a network of token ids: its words, and the most tokens that it has positions for."""
    words = positions = 0
    first = 0
    for node in graph.nodes:
        if node.op == "embedding":
            words = len(node.parameters["word"]) if "word" in node.parameters else words
            if "position" in node.parameters:
                positions = len(node.parameters["position"])
                first = node.attrs["padding"] + 1 if node.attrs["positions"] == "counted" else 0
    if not positions:
        raise IntqError("the network has no table of positions, which says how many tokens it takes at most")
    return Value(graph.input, graph.input_shape, "int32", 0, words - 1, longest=positions - first)


def sentences(graph: FloatGraph, batches: list[Tensor]) -> list[Tensor]:
    """The same sentences without padding, which says nothing of what values the network computes with.

    Raises IntqError for ids outside the vocabulary and sentences that are too long.
    """
    padding = next((node.attrs["padding"] for node in graph.nodes if node.op == "mask"), None)
    value, by_length = tokens_value(graph), {}
    for batch in batches:
        if len(batch) and not 0 <= int(batch.min()) <= int(batch.max()) <= value.high:
            raise IntqError(
                f"token ids must lie in [0, {value.high}], found [{int(batch.min())}, {int(batch.max())}]; "
                "the tokenizer is not the network's"
            )
        for row in batch:
            kept = row if padding is None else row[row != padding]
            if len(kept) > value.longest:
                raise IntqError(
                    f"a sentence of {len(kept)} tokens: the network takes {value.longest} at most; truncate it"
                )
            if len(kept):
                by_length.setdefault(len(kept), []).append(kept)
    if not by_length:
        raise IntqError("the calibration sentences hold padding alone")
    groups = [torch.stack(by_length[length]) for length in sorted(by_length)]
    return [part for group in groups for part in group.split(max(1, BATCH_TOKENS // group.shape[1]))]


def spread_tokens(batches: list[Tensor], most: int) -> list[Tensor]:
    """Sentences from all over the data with about ``most`` tokens in all."""
    total = sum(batch.numel() for batch in batches)
    if total <= most:
        return batches
    step = -(-total // most)
    return [part for part in (batch[i % step :: step] for i, batch in enumerate(batches)) if len(part)]
