"""Operators of torch that torch.export keeps whole, for what ATen spells in many steps.

The speech front end has its own in :mod:`intq.frontend`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from intq.backends.torch import by_distance


def differentiable(operator) -> None:
    """Give an operator the gradient of the function that it was made of, which is computed once more for that.

    With ``create_graph`` the gradient depends on the inputs as that of the function does, to any order.
    """

    def real(x) -> bool:
        return isinstance(x, Tensor) and x.is_floating_point()

    def keep(ctx, inputs, output) -> None:
        ctx.inputs = inputs

    def backward(ctx, gradient):
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            inputs = [_fresh(x, again) if real(x) else x for x in ctx.inputs]
            result = operator._init_fn(*inputs)
        wanted = [x for x in inputs if real(x)]
        found = iter(torch.autograd.grad(result, wanted, gradient, create_graph=again, allow_unused=True))
        return tuple(next(found) if real(x) else None for x in inputs)

    operator.register_autograd(backward, setup_context=keep)


def _fresh(x: Tensor, linked: bool) -> Tensor:
    """The same numbers as a tensor to differentiate by; ``linked``: which still depends on what made ``x``."""
    return x.view_as(x) if linked and x.requires_grad else x.detach().requires_grad_()


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
