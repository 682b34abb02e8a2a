"""Tiny text networks of every family, with random weights: 2 layers, 32 channels, 4 heads, 60 words, 40 positions."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from torch import Tensor

from intq.nlp.wrap import FromIds, Head

VOCABULARY, CHANNELS, LABELS, POSITIONS = 60, 32, 3, 40
_LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_BERT = {"vocab_size": VOCABULARY, "hidden_size": CHANNELS, "max_position_embeddings": POSITIONS, **_LAYERS}
_ROBERTA = {**_BERT, "type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
_DISTILBERT = {"vocab_size": VOCABULARY, "dim": CHANNELS, "max_position_embeddings": POSITIONS}
_DISTILBERT |= {"n_layers": 2, "n_heads": 4, "hidden_dim": 64}
FAMILIES = {  # family: (prefix of its classes, options of its configuration)
    "bert": ("Bert", _BERT),
    "roberta": ("Roberta", _ROBERTA),
    "distilbert": ("DistilBert", _DISTILBERT),
    "xlm-roberta": ("XLMRoberta", _ROBERTA),
    "camembert": ("Camembert", _ROBERTA),
    "electra": ("Electra", {**_BERT, "embedding_size": 16}),
}
_SUFFIX = {
    "classification": "ForSequenceClassification",
    "regression": "ForSequenceClassification",
    "tokens": "ForTokenClassification",
    "embedding": "Model",
}
BERT_SEPARATOR = 3


def tiny_transformer(family: str, head: Head = "classification", seed: int = 0, **options):
    """The network as transformers has it, in evaluation mode, every parameter random: gains near 1, biases not 0."""
    prefix, settings = FAMILIES[family]
    labels = 1 if head == "regression" else LABELS
    config = getattr(transformers, prefix + "Config")(**{**settings, "num_labels": labels, **options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, prefix + _SUFFIX[head])._from_config(config, attn_implementation="sdpa")
        for name, value in model.named_parameters():
            with torch.no_grad():
                if "norm" in name.lower() and name.endswith("weight"):
                    value.uniform_(0.7, 1.3)
                else:
                    value.normal_(0, 0.2)
    return model.eval().requires_grad_(False)


def tiny(family: str, head: Head = "classification", seed: int = 0) -> FromIds:
    """The network as a module of ids int64 (n, s), s <= `longest(family)`; padding id `.padding`."""
    model = tiny_transformer(family, head, seed)
    separator = BERT_SEPARATOR if family in ("bert", "electra") else None
    return FromIds(model, model.config.pad_token_id, separator, "mean" if head == "embedding" else None).eval()


def longest(family: str) -> int:
    """The most tokens that the family's position table has rows for."""
    return POSITIONS - 2 if "roberta" in family or family == "camembert" else POSITIONS


def tiny_ids(family: str, n: int, s: int, seed: int = 0, full: bool = False) -> Tensor:
    """int64 (n, s): a first token, words, at random places the separator, and padding to the right of most rows.

    At least one row is unpadded; all of them when `full`.
    """
    settings = FAMILIES[family][1]
    generator = torch.Generator().manual_seed(seed)
    padding, first, separator = settings.get("pad_token_id", 0), settings.get("bos_token_id", 2), 3
    if "eos_token_id" in settings:
        separator = settings["eos_token_id"]
    ids = torch.randint(5, VOCABULARY, (n, s), generator=generator)
    ids[:, 0] = first
    for row in range(n):
        length = s if full or row == 0 else int(torch.randint(1, s + 1, (1,), generator=generator))
        if length > 2:
            ids[row, int(torch.randint(1, length, (1,), generator=generator))] = separator
            ids[row, length - 1] = separator
        ids[row, length:] = padding
    return ids


WORDS = ("good", "bad", "fine", "dull", "film", "plot", "is", "not", "very", "a", "the", "it", "was", "and", "but", ",")


def tiny_tokenizer(family: str):
    """A tokenizer of the family's special tokens and ids, of WORDS and of "word9" and up, as transformers has it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    counted = "eos_token_id" in FAMILIES[family][1]
    names = ("<s>", "<pad>", "</s>", "<unk>", "<mask>") if counted else ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    vocabulary = {word: index for index, word in enumerate((*names, *WORDS))}
    vocabulary |= {f"word{index}": index for index in range(len(vocabulary), VOCABULARY)}
    roles = ("cls", "pad", "sep", "unk", "mask") if counted else ("pad", "unk", "cls", "sep", "mask")
    special = dict(zip(roles, names, strict=True))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, special["unk"]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    first, end = special["cls"], special["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first}:0 $A:0 {end}:0",
        pair=f"{first} $A {end} {end} $B {end}" if counted else f"{first}:0 $A:0 {end}:0 $B:1 {end}:1",
        special_tokens=[(first, vocabulary[first]), (end, vocabulary[end])],
    )
    given = ["input_ids", "token_type_ids", "attention_mask"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=longest(family),
        model_input_names=given if family in ("bert", "electra") else given[::2],
        **{role + "_token": name for role, name in special.items()},
    )


def save_tiny(folder: Path, family: str, head: Head = "classification", seed: int = 0, **options):
    """The network, saved as save_pretrained saves it with its tokenizer; `options` go to its configuration."""
    model = tiny_transformer(family, head, seed, **options)
    model.save_pretrained(folder)
    tiny_tokenizer(family).save_pretrained(folder)
    return model
