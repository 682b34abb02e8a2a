"""Convolutions, linear layers, batch normalisation."""

from __future__ import annotations

import torch
from torch import Tensor

from intq.aten.build import Unsupported, affine, pair, parameter, swap, takes


def bias_of(bias, weight: Tensor) -> Tensor:
    return torch.zeros(weight.shape[0]) if bias is None else parameter(bias, "bias")


@takes("conv2d")
def _conv2d(build, input, weight, bias, stride, padding, dilation, groups):
    weight = parameter(weight, "weight")
    dilation, kernel = pair(dilation), weight.shape[2:]
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        sides = (total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2)
    else:
        h, w = (0, 0) if padding == "valid" else pair(padding)
        sides = (h, w, h, w)
    parameters = {"weight": weight, "bias": bias_of(bias, weight)}
    attrs = {"stride": pair(stride), "padding": sides, "dilation": dilation, "groups": int(groups)}
    return build.emit("conv2d", input, parameters=parameters, **attrs)


@takes("linear")
def _linear(build, input, weight, bias):
    weight = parameter(weight, "weight")
    return build.emit("linear", input, parameters={"weight": weight, "bias": bias_of(bias, weight)})


@takes("matmul", "mm")
def _matmul(build, other=None, self=None, mat2=None):
    weight = parameter(other if mat2 is None else mat2, "second operand")
    if not isinstance(self, str) or weight.ndim != 2:
        raise Unsupported("only a product with a two-dimensional parameter on the right is taken; use torch.nn.Linear")
    return _linear(build, self, weight.T.contiguous(), None)


@takes("addmm")
def _addmm(build, self, mat1, mat2, beta, alpha):
    if (beta, alpha) != (1, 1):
        raise Unsupported("beta and alpha must be 1")
    return _linear(build, mat1, parameter(mat2, "weight").T.contiguous(), self)


@takes("batch_norm")
def _batch_norm(build, input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled):
    if running_mean is None or running_var is None or training:
        raise Unsupported("it has no running statistics; use track_running_stats=True and settle them first")
    mean, variance = parameter(running_mean, "mean").double(), parameter(running_var, "variance").double()
    if bool((variance + eps <= 0).any()):
        raise Unsupported("its running variance is negative; the checkpoint is broken, export it again")
    scale = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * parameter(weight, "weight").double()
    shift = -mean * scale if bias is None else parameter(bias, "bias").double() - mean * scale
    if len(build.shapes[input]) == 3:
        return swap(build, affine(build, swap(build, input), scale, shift))
    return affine(build, input, scale, shift)
