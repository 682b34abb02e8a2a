"""Optimizers of fine-tuning: torch's AdamW and SGD, and AdaHessian."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from intq.backends.straight_through import IntegerNetwork
from intq.errors import IntqError

OPTIMIZERS = ("adamw", "sgd", "adahessian")
UNITS = {"int16": 2.0**15, "int32": 2.0**23}  # the size of a layer's results, where its clamp does not say it


class AdaHessian(torch.optim.Optimizer):
    """``w -= lr * m / sqrt(v)``: Adam with the diagonal of the Hessian, averaged over each output's weights, in place
    of the gradient (Yao et al. 2021, "AdaHessian", eq. 8-12; Hessian power 1).

    ``step(diagonal)``: one tensor for each parameter in order, an estimate of its Hessian's diagonal.
    """

    def __init__(self, params, lr: float = 0.1, betas=(0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, diagonal: Iterable[Tensor]) -> None:
        left = iter(diagonal)
        for group in self.param_groups:
            one, two = group["betas"]
            for p in group["params"]:
                curvature = next(left).abs()
                if p.ndim > 1:  # spatial averaging, eq. 8: over all but the outputs
                    curvature = curvature.mean(tuple(range(1, p.ndim)), keepdim=True).expand_as(p)
                state = self.state[p]
                if not state:
                    state |= {"step": torch.zeros(()), "mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
                state["step"] += 1
                state["mean"].mul_(one).add_(p.grad, alpha=1 - one)
                state["square"].mul_(two).addcmul_(curvature, curvature, value=1 - two)
                t = float(state["step"])
                mean, square = state["mean"] / (1 - one**t), state["square"] / (1 - two**t)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.addcdiv_(mean, square.sqrt().add_(group["eps"]), value=-group["lr"])


def optimizer_of(
    network: IntegerNetwork, name: str, lr: float, step_lr: float, weight_decay: float, momentum: float
) -> torch.optim.Optimizer:
    """An optimizer over an integer network, whose rates are relative: ``lr`` 0.001 moves a weight by a thousandth of
    the largest integer at most (AdamW), whatever its bits, and a bias by a thousandth of its layer's range.

    ``step_lr``: of learned steps, in powers of two. Gradient descent's rates go with the square of the unit, because
    its steps are in units of the gradient.
    """
    if name not in OPTIMIZERS:
        raise IntqError(f"the optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}")
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for module in network.nodes:
        if module.contracts:
            y, attrs = module.node.output, module.node.attrs
            span = UNITS.get(y.dtype, attrs["high"] - attrs["low"])
            groups.setdefault((float(module.limit), True), []).append(module.weight)
            groups.setdefault((float(span), False), []).append(module.bias)
    order = 2 if name == "sgd" else 1
    params = [
        {"params": members, "lr": lr * unit**order, "weight_decay": weight_decay * decays / unit**order}
        for (unit, decays), members in groups.items()
    ]
    steps = [*network.value_steps, *network.weight_steps]
    if steps:
        params.append({"params": steps, "lr": step_lr, "weight_decay": 0.0})
    if name == "sgd":
        return torch.optim.SGD(params, lr=lr, momentum=momentum)
    return (AdaHessian if name == "adahessian" else torch.optim.AdamW)(params, lr=lr)
