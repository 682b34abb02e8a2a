"""The text architectures by name, as published: what `--random` builds at full size, with a head of two labels.

Importing this needs neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from intq.errors import IntqError

LABELS = ("negative", "positive")


@dataclass(frozen=True)
class Architecture:
    """A network by name: the prefix of its transformers classes, and what differs from their configuration's defaults.

    padding, first, separator: the special ids of its published tokenizer. functions: what it was trained with.
    """

    name: str
    prefix: str
    settings: Mapping[str, Any]
    padding: int
    first: int
    separator: int
    functions: Literal["exact", "ibert"] = "exact"


def _bert(channels: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "vocab_size": 30522,
        "hidden_size": channels,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * channels,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }


def _roberta(channels: int, layers: int, heads: int, vocabulary: int = 50265) -> dict[str, Any]:
    return _bert(channels, layers, heads) | {
        "vocab_size": vocabulary,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }


_DISTILBERT = {
    "vocab_size": 30522,
    "dim": 768,
    "n_layers": 6,
    "n_heads": 12,
    "hidden_dim": 3072,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
_BERT_IDS, _ROBERTA_IDS = (0, 101, 102), (1, 0, 2)  # padding, first, separator

ARCHITECTURES = {
    item.name: item
    for item in (
        Architecture("roberta-base", "Roberta", _roberta(768, 12, 12), *_ROBERTA_IDS),
        Architecture("roberta-large", "Roberta", _roberta(1024, 24, 16), *_ROBERTA_IDS),
        Architecture("bert-base", "Bert", _bert(768, 12, 12), *_BERT_IDS),
        Architecture("distilbert-base", "DistilBert", _DISTILBERT, *_BERT_IDS),
        Architecture("xlm-roberta-base", "XLMRoberta", _roberta(768, 12, 12, 250002), *_ROBERTA_IDS),
        Architecture("ibert-roberta-base", "Roberta", _roberta(768, 12, 12), *_ROBERTA_IDS, functions="ibert"),
        Architecture("minilm-l6", "Bert", _bert(384, 6, 12), *_BERT_IDS),
    )
}


def architecture(name: str) -> Architecture:
    """The architecture called `name`; IntqError when there is none."""
    if name not in ARCHITECTURES:
        raise IntqError(f"no architecture is called {name!r}; there are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]
