"""Real weights -> int8 weights."""

from __future__ import annotations

import torch
from torch import Tensor

from intq.floatgraph import FloatNode, contraction
from intq.plan import Weights

LIMIT = 127


def round_weights(node: FloatNode, exact, rough, options) -> Weights:
    weight, bias = node.parameters["weight"].double(), node.parameters["bias"].double()
    flat = weight.flatten(1)
    scale = flat.abs().amax(1) / LIMIT
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    q = torch.round(flat / scale[:, None]).clamp(-LIMIT, LIMIT)
    result = Weights(q.reshape(weight.shape).to(torch.int8), scale, bias)
    if options.bias_correction:
        real, n, total = result.real(), 0, 0
        for k in range(len(exact)):
            a = contraction(node, exact[k][0], node.parameters["weight"], None)
            b = contraction(node, rough[k][0], real, None)
            d = (a - b).double()
            if len(exact[k]) > 1:
                d = d + (exact[k][1] - rough[k][1])
            d = d.transpose(0, 1).flatten(1) if node.op == "conv2d" else d.flatten(0, -2).T
            total = total + d.sum(1)
            n += d.shape[1]
        result = Weights(result.q, scale, bias + total / n)
    return result
