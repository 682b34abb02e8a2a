"""Vision transformers (Dosovitskiy et al., 2021), also DeiT (Touvron et al., 2021): transformers' own, as published.

DeiT without its distillation token is a ViT, and is published as one.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from intq.vision.huggingface import Logits


def vit(channels: int, layers: int, heads: int, patch: int = 16, size: int = 224) -> Callable[[int], nn.Module]:
    """A builder of ViTs: pixels (n, 3, size, size) to logits (n, classes), from `patch` x `patch` patches."""

    def build(classes: int) -> Logits:
        import transformers

        config = transformers.ViTConfig(
            hidden_size=channels,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * channels,
            image_size=size,
            patch_size=patch,
            num_labels=classes,
        )
        model = transformers.ViTForImageClassification._from_config(config, attn_implementation="sdpa")
        return Logits(model)

    return build
