"""Real functions by name: what a float graph evaluates, a table of 256 entries holds, and training differentiates."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Kim et al., I-BERT: Integer-only BERT Quantization, 2021: erf(x) ~ sgn(x) (a (min(|x|, -b) + b)**2 + 1), equation 8,
# and exp(p) ~ a (p + b)**2 + c for p in (-ln 2, 0], equation 13.
IBERT_ERF = {"a": -0.2888, "b": -1.769}
IBERT_EXP = {"a": 0.3585, "b": 1.353, "c": 0.344}


def ibert_gelu(x: Tensor) -> Tensor:
    """x / 2 (1 + erf(x / sqrt 2)) with I-BERT's erf; up to 1.8e-2 from GELU."""
    a, b = IBERT_ERF["a"], IBERT_ERF["b"]
    z = x / math.sqrt(2)
    return x / 2 * (1 + z.sign() * (a * (z.abs().clamp(max=-b) + b) ** 2 + 1))


def ibert_exp(x: Tensor) -> Tensor:
    """exp(x) = 2**-z exp(p) for x = p - z ln 2 <= 0, z whole, with I-BERT's exp(p); up to 2.1e-3 from exp."""
    z = (-x / math.log(2)).floor()
    p = x + z * math.log(2)
    return torch.exp2(-z) * (IBERT_EXP["a"] * (p + IBERT_EXP["b"]) ** 2 + IBERT_EXP["c"])


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "sigmoid": torch.sigmoid,
    "hardsigmoid": lambda x: F.relu6(x + 3) / 6,  # F.hardsigmoid to the bit; its gradient has no derivative
    "silu": F.silu,
    "hardswish": F.hardswish,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "leaky_relu": F.leaky_relu,
    "elu": torch.ops.aten.elu,
    "selu": F.selu,
    "celu": F.celu,
    "softplus": F.softplus,
    "mish": F.mish,
    "log_sigmoid": F.logsigmoid,
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
    "exp": torch.exp,
    "abs": torch.abs,
    "neg": torch.neg,
    "square": torch.square,
    "erf": torch.erf,
    "softsign": F.softsign,
    "ibert_gelu": ibert_gelu,
    "ibert_exp": ibert_exp,
}
