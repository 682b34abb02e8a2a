"""A BERT classifier's weights under a RoBERTa's names: the same function, computed by the other family's code."""

from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaForSequenceClassification,
)


def as_roberta(folder: Path) -> tuple[RobertaForSequenceClassification, PreTrainedTokenizerBase]:
    """The classifier of single sentences in `folder`, as a RoBERTa with its tokenizer; the logits are the same.

    RoBERTa counts positions from the padding id + 1, here 1, so the position table moves down by one row. It has one
    segment. Its head, out_proj(tanh(dense(x))) of the first token, is BERT's pooler and classifier.
    """
    bert = BertForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    known = bert.config.to_dict()
    same = {key: known[key] for key in RobertaConfig().to_dict() if key in known}
    different = {
        "model_type": "roberta",
        "architectures": ["RobertaForSequenceClassification"],
        "max_position_embeddings": bert.config.max_position_embeddings + 1,
        "type_vocab_size": 1,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
    }
    roberta = RobertaForSequenceClassification(RobertaConfig(**{**same, **different})).eval()
    weights = {_renamed(name): value for name, value in bert.state_dict().items() if not name.endswith("_ids")}
    positions = weights["roberta.embeddings.position_embeddings.weight"]
    weights["roberta.embeddings.position_embeddings.weight"] = torch.cat((torch.zeros_like(positions[:1]), positions))
    segments = weights["roberta.embeddings.token_type_embeddings.weight"]
    weights["roberta.embeddings.token_type_embeddings.weight"] = segments[:1].clone()
    roberta.load_state_dict(weights, strict=True)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return roberta, tokenizer


def _renamed(name: str) -> str:
    for old, new in (("bert.pooler.dense.", "classifier.dense."), ("classifier.", "classifier.out_proj.")):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name.replace("bert.", "roberta.", 1)
