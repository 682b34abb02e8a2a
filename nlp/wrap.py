"""A Hugging Face encoder as a module of token ids alone: what the other inputs say is derived from the ids.

    mask      = ids != padding
    segments  = min(types - 1, number of separators strictly before the token)
    positions = 0, 1, 2, ...                                               BERT, DistilBERT, ELECTRA
              = padding + mask * (number of tokens up to and with this)    RoBERTa and its kin

Everything is integer, so an integer network needs the ids and nothing else. Padding tokens get other segments than a
tokenizer writes there (0); nothing reads them, because they are masked.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

Head = Literal["classification", "regression", "tokens", "embedding"]
Pooling = Literal["mean", "first"]

COUNTED = frozenset({"roberta", "xlm-roberta", "camembert"})  # model types whose positions count from the padding id


def longest(settings: Any, padding: int) -> int:
    """The most tokens that the position table of a configuration has rows for; the padding id and below take none."""
    return settings.max_position_embeddings - (padding + 1 if settings.model_type in COUNTED else 0)


class FromIds(nn.Module):
    """ids int64 (n, s) -> logits (n, labels), of token classification (n, s, labels), of an embedding (n, C).

    model: an encoder of transformers with attn_implementation="sdpa", with a head whose output has `logits`, or a
        bare one, which `pooling` makes a sentence embedding.
    padding: the id that fills a batch. separator: the id that ends a segment, None: all tokens are in segment 0.
    pooling: of a bare encoder: "mean" of the unmasked tokens' last hidden states, or that of the "first" token.
        Embeddings are not normalised to length 1: the cosine of two of them is the same without.
    """

    def __init__(self, model: nn.Module, padding: int, separator: int | None = None, pooling: Pooling | None = None):
        super().__init__()
        self.model, self.padding, self.separator, self.pooling = model, padding, separator, pooling

    def forward(self, ids: Tensor) -> Tensor:
        mask = ids != self.padding  # (n, s)
        given = {"input_ids": ids, "return_dict": True}
        given["attention_mask"] = mask.unsqueeze(1).unsqueeze(1)  # (n, head, query, key): taken as it is
        types = getattr(self.model.config, "type_vocab_size", 0)
        if types:
            given["token_type_ids"] = self._segments(ids, types)
        if self.model.config.model_type in COUNTED:
            given["position_ids"] = mask.long().cumsum(1) * mask + self.padding
        output = self.model(**given)
        if self.pooling is None:
            return output.logits
        hidden = output.last_hidden_state  # (n, s, C)
        if self.pooling == "first":
            return hidden[:, 0]
        weights = mask.unsqueeze(-1).to(hidden.dtype)  # (n, s, 1)
        return (hidden * weights).sum(1) / weights.sum(1)

    def _segments(self, ids: Tensor, types: int) -> Tensor:
        if types == 1 or self.separator is None:
            return torch.zeros_like(ids)
        ends = (ids == self.separator).long()
        return (ends.cumsum(1) - ends).clamp(max=types - 1)
