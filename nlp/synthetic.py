"""Networks with random weights, for exactness and speed where no checkpoint is at hand, and random texts.

Quantization only says something about a network whose activations look like a trained one's: weights keep the variance
of what they multiply, and LayerNorm's gains vary, with a few channels far above the rest, as in every trained BERT
(Kovaleva et al., BERT Busters, 2021; Bondarenko et al., 2021).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from intq.nlp.checkpoint import Checkpoint
from intq.nlp.models import LABELS, architecture
from intq.nlp.wrap import FromIds, longest

QUERIES_AND_KEYS = ("query", "key", "q_lin", "k_lin")
ATTENTION_GAIN = 3.0**0.5  # scores with a standard deviation of 3 or so: a few tokens get most of the attention
MANDELBROT, COMMAS, SHORTEST = 2.7, 0.08, 4  # of random texts: the law's shift, commas a word, words a text
OUTLIERS, OUTLIER_GAIN = 4, 6.0  # channels per LayerNorm that stand out, and by how much


def random_checkpoint(name: str, seed: int = 0) -> Checkpoint:
    """The architecture called `name` at full size, a classifier of two labels, with random weights and no tokenizer.

    The same name and seed give the same network. Raises IntqError when there is no such architecture.
    """
    import transformers
    from transformers.initialization import no_init_weights

    known = architecture(name)
    config = getattr(transformers, known.prefix + "Config")(**known.settings, num_labels=len(LABELS))
    with no_init_weights():
        build = getattr(transformers, known.prefix + "ForSequenceClassification")._from_config
        model = build(config, attn_implementation="sdpa", dtype=torch.float32)
    model.eval().requires_grad_(False)
    randomize(model, seed)
    separator = known.separator if getattr(config, "type_vocab_size", 0) > 1 else None
    wrapped = FromIds(model, known.padding, separator).eval()
    return Checkpoint(
        wrapped,
        None,
        LABELS,
        "classification",
        name,
        "",
        longest(config, known.padding),
        known.padding,
        config.vocab_size,
        separator,
        known.functions,
    )


def randomize(model: nn.Module, seed: int = 0) -> None:
    """Fill every parameter of a transformer, in place, as the module's docstring says."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                gain = ATTENTION_GAIN if name.rpartition(".")[2] in QUERIES_AND_KEYS else 1.0
                module.weight.normal_(0, gain * module.in_features**-0.5, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0, 0.04, generator=generator)
            elif isinstance(module, nn.LayerNorm):
                module.weight.uniform_(0.7, 1.1, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
                chosen = torch.randperm(module.weight.numel(), generator=generator)[:OUTLIERS]
                module.weight[chosen] *= OUTLIER_GAIN


def random_ids(
    rows: int, longest: int, vocabulary: int, padding: int, first: int, separator: int, seed: int = 0
) -> np.ndarray:
    """int32 (rows, longest): sentences of random ids and random lengths, from 2 tokens up, filled up with `padding`.

    Each begins with `first` and ends with `separator`; half of them have another in the middle, as pairs do. The first
    row is full.
    """
    generator = np.random.default_rng(seed)
    special = {padding, first, separator}
    ids = generator.integers(0, vocabulary, (rows, longest))
    for taken in special:  # special ids have their places
        ids[ids == taken] = next(other for other in range(vocabulary) if other not in special)
    lengths = generator.integers(min(2, longest), longest + 1, rows)
    lengths[0] = longest
    ids[:, 0] = first
    for row, length in enumerate(lengths):
        if length > 4 and generator.random() < 0.5:
            ids[row, generator.integers(2, length - 2)] = separator
        ids[row, length - 1] = separator
        ids[row, length:] = padding
    return ids.astype(np.int32)


def random_texts(tokenizer: Any, vocabulary: int, count: int, longest: int, seed: int = 0) -> list[str]:
    """Texts of 4 to `longest` words in no order, for a trained network where there are no texts.

    Words are as frequent as in a language (Zipf 1935; Mandelbrot 1953: 1 / (rank + 2.7)): a vocabulary lists its words
    by how frequent they were, or were merged, when it was made. Some words have a comma, and every text ends in a full
    stop, because attention rests on such tokens (Clark et al. 2019, "What does BERT look at?").
    """
    generator = np.random.default_rng(seed)
    special = set(tokenizer.all_special_ids)
    decoded = [tokenizer.decode([i]).strip() for i in range(min(vocabulary, len(tokenizer))) if i not in special]
    words = [word for word in decoded if len(word) > 1 and word.isalpha()] or [word for word in decoded if word]
    share = 1 / (np.arange(len(words)) + MANDELBROT)
    share /= share.sum()
    texts = []
    for _ in range(count):
        length = int(np.exp(generator.uniform(np.log(SHORTEST), np.log(max(longest, SHORTEST) + 1))))
        chosen = generator.choice(words, length, p=share)
        commas = generator.random(length) < COMMAS
        texts.append(" ".join(f"{word}," if comma else word for word, comma in zip(chosen, commas, strict=True)) + ".")
    return texts
