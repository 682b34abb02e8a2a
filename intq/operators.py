"""Operators of torch that torch.export keeps whole, for what ATen spells in many steps.

The speech front end has its own in :mod:`intq.frontend`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from intq.backends.torch import by_distance


def differentiable(operator) -> None:
    """Give an operator the gradient of the function that it was made of, which is computed once more for that."""

    def real(x) -> bool:
        return isinstance(x, Tensor) and x.is_floating_point()

    def keep(ctx, inputs, output) -> None:
        ctx.inputs = inputs

    def backward(ctx, gradient):
        inputs = [x.detach().requires_grad_() if real(x) else x for x in ctx.inputs]
        with torch.enable_grad():
            result = operator._init_fn(*inputs)
        found = iter(torch.autograd.grad(result, [x for x in inputs if real(x)], gradient, allow_unused=True))
        return tuple(next(found) if real(x) else None for x in inputs)

    operator.register_autograd(backward, setup_context=keep)


@torch.library.custom_op("intq::relative_scores", mutates_args=())
def relative_scores(q: Tensor, table: Tensor, scale: float) -> Tensor:
    """scale * q[n, i, h] . table[h, L - 1 + j - i] for each head h, query i and key j (:mod:`intq.ops.relative`).

    ``q`` (n, tokens, heads * size); ``table`` (heads, 2 L - 1, size), a vector for each distance j - i from -(L - 1) to
    L - 1. The result (n, heads, tokens, tokens) is what scaled_dot_product_attention takes as ``attn_mask``.
    """
    return by_distance(q.unflatten(-1, (len(table), -1)).transpose(1, 2), table) * scale


@relative_scores.register_fake
def _(q: Tensor, table: Tensor, scale: float) -> Tensor:
    return q.new_empty((q.shape[0], table.shape[0], q.shape[1], q.shape[1]))


differentiable(relative_scores)
