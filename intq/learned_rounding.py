"""Rounding and bias of a layer, learned from what it reads: no labels, and no other layer is touched.

Each weight ``w`` in steps of its scale is rounded down or up, by what leaves the layer's answer, behind its activation,
closest to the float layer's on the inputs seen:

    minimise  mean (f(x W') - f(x' (floor(w) + h(v))' ))^2 + weight of sum 1 - |2 h(v) - 1|^beta
    h(v) = clamp(1.2 sigmoid(v) - 0.1, 0, 1)

``x`` is what the float layer reads, ``x'`` what it reads behind layers that are rounded already; ``f`` adds the bias
and the residual and clamps. ``beta`` falls, and with it every ``h`` goes to 0 or 1 (Nagel et al. 2020, "Up or down?
Adaptive rounding for post-training quantization", eq. 21-25). The bias is learned with the weights (Hubara et al. 2021,
"Accurate post training quantization with small calibration sets", section 3.1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from intq.floatgraph import FloatNode

STRETCH = 1.2  # of the sigmoid, about 1/2, so that it reaches 0 and 1
RATE, BIAS_RATE = 1e-2, 1e-3  # of Adam; the bias in units of the answer's standard deviation
PENALTY = 0.01  # weight of what keeps h from 0 and 1, from when a fifth of the steps are done
WARM = 0.2
SHARPEST, SOFTEST = 2.0, 20.0  # beta at the end and at first
BATCH = 1024  # rows a step


@torch.enable_grad()
def learn_rounding(
    node: FloatNode,
    real: Tensor,
    scale: Tensor,
    bias: Tensor,
    rough: Tensor,
    wanted: Tensor,
    residual: Tensor | None,
    limit: int,
    steps: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Integers (g, co/g, k) within ``limit``, and the bias (co,).

    ``real`` (g, co/g, k): the weights in steps of ``scale`` (g, co/g). ``rough`` (p, g, k): rows that the layer reads;
    ``wanted`` (p, co): what the float layer answers there; ``residual`` (p, co): what is added. The same on every run.
    """
    groups, each, _ = real.shape
    real, scale = real.float(), scale.float()
    base = real.floor()
    v = torch.logit(((real - base) + (STRETCH - 1) / 2).div(STRETCH)).requires_grad_()
    unit = wanted.std().clamp_min(1e-12)
    shift = torch.zeros(groups * each).requires_grad_()
    optimizer = torch.optim.Adam([{"params": [v], "lr": RATE}, {"params": [shift], "lr": BIAS_RATE}])
    generator = torch.Generator().manual_seed(seed)
    high = node.channel_high.to(wanted) if "channel_high" in node.parameters else None
    for step in range(steps):
        at = torch.randint(len(wanted), (min(BATCH, len(wanted)),), generator=generator)
        h = _soft(v)
        weight = (base + h).clamp(-limit, limit) * scale[..., None]  # (g, co/g, k)
        y = torch.einsum("pgk,gok->pgo", rough[at], weight).flatten(1)  # (p, co)
        y = y + bias.float() + shift * unit
        y = y if residual is None else y + residual[at]
        y = y.clamp(node.low, node.high) if high is None else torch.minimum(y.clamp(node.low, node.high), high)
        loss = (y - wanted[at]).square().sum(1).mean() / unit.square()
        done = step / steps
        if done >= WARM:
            beta = SHARPEST + (SOFTEST - SHARPEST) * (1 - (done - WARM) / (1 - WARM))
            loss = loss + PENALTY * (1 - (2 * h - 1).abs() ** beta).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        q = (base + (_soft(v) >= 0.5)).clamp(-limit, limit)
        return q.double(), bias + (shift * unit).double()


def _soft(v: Tensor) -> Tensor:
    return (STRETCH * torch.sigmoid(v) - (STRETCH - 1) / 2).clamp(0, 1)
