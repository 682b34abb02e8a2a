"""Hugging Face `ibert` checkpoints (Kim et al., I-BERT, 2021): RoBERTa's weights, with learned activation ranges.

I-BERT simulates integers in floating point around RoBERTa's own modules. Without that simulation its network computes
exactly what a RoBERTa of the same weights does, so it becomes one; what its QuantAct modules have learned in training,
the range of each activation, is kept beside it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

# Where I-BERT's QuantAct observes a value of 8 bits: the module of RoBERTa whose own value that is (the context is that
# of `attention.self`). Not here are sums of a branch and its residual: of 22 bits there, they were never clipped.
_OBSERVED = {
    "embeddings.output_activation": "embeddings.LayerNorm",
    "attention.self.query_activation": "attention.self.query",
    "attention.self.key_activation": "attention.self.key",
    "attention.self.value_activation": "attention.self.value",
    "attention.self.output_activation": "attention.self",
    "attention.output.output_activation": "attention.output.LayerNorm",
    "intermediate.output_activation": "intermediate.intermediate_act_fn",
    "output.output_activation": "output.LayerNorm",
}
_UNTRAINED = 1e-5  # the bounds -1e-5 and 1e-5 that a QuantAct starts from
# What the simulation keeps beside the weights.
SIMULATION = r"(_integer|_scaling_factor|\.shift|\.x_min|\.x_max)$"


def as_roberta(model: nn.Module, **options: Any) -> nn.Module:
    """The RoBERTa with the weights of an IBertFor..., and the same head; in evaluation mode, without gradients.

    options: of the class, as the IBertFor... was made with.
    """
    import torch
    import transformers
    from transformers.initialization import no_init_weights

    settings = {key: value for key, value in model.config.to_dict().items() if key not in ("model_type", "dtype")}
    build = getattr(transformers, type(model).__name__.replace("IBert", "Roberta", 1))._from_config
    with no_init_weights():
        config = transformers.RobertaConfig(**settings)
        roberta = build(config, attn_implementation="sdpa", dtype=torch.float32, **options)
    state = {re.sub("^ibert\\.", "roberta.", key): value for key, value in model.state_dict().items()}
    roberta.load_state_dict({key: state[key] for key in roberta.state_dict()})
    return roberta.eval().requires_grad_(False)


def learned_ranges(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, tuple[float, float]]:
    """{module of the RoBERTa: (low, high)} of the values whose ranges an ibert network has learned.

    state: of the IBertFor...; prefix: before the modules' names. Empty where it was never trained with quant_mode.
    """
    ranges = {}
    for key, low in state.items():
        match = re.fullmatch(r"(?:ibert\.)?((?:encoder\.layer\.\d+\.)?)(.+)\.x_min", key)
        if match is None or match[2] not in _OBSERVED:
            continue
        bounds = float(low), float(state[key.removesuffix("x_min") + "x_max"])
        if bounds[0] < -_UNTRAINED or bounds[1] > _UNTRAINED:
            base = "roberta." if key.startswith("ibert.") else ""
            ranges[f"{prefix}{base}{match[1]}{_OBSERVED[match[2]]}"] = bounds
    return ranges
