"""Arithmetic between values and constants, and functions of one value."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from intq.aten.build import Unsupported, affine, channel_constant, parameter, takes
from intq.aten.text import Derived, masked, token_mean
from intq.functions import FUNCTIONS


def _varies_by_token(build, x: str, constant) -> bool:
    """Whether a constant is (1, tokens, channels), one value for each of a sample's: an image network's positions."""
    shape = build.shapes[x]
    return isinstance(constant, Tensor) and len(shape) == 3 and tuple(constant.shape) == (1, *shape[1:])


@takes("add", "add_")
def _add(build, self, other, alpha=1):
    if isinstance(self, str) and isinstance(other, str):
        if alpha != 1:
            other = affine(build, other, alpha, 0.0)
        if build.shapes[self] != build.shapes[other]:
            raise Unsupported(f"its operands must have one shape, got {build.shapes[self]} and {build.shapes[other]}")
        return build.emit("add", self, other)
    if isinstance(self, str) and _varies_by_token(build, self, other) and alpha == 1:
        return build.emit("shift", self, parameters={"table": other[0].detach().float()})
    if isinstance(self, str):
        return affine(build, self, 1.0, channel_constant(build, self, other) * alpha)
    return affine(build, other, alpha, channel_constant(build, other, self))


@takes("sub")
def _sub(build, self, other, alpha=1):
    if isinstance(self, str) and not isinstance(other, str):
        return affine(build, self, 1.0, -channel_constant(build, self, other) * alpha)
    return _add(build, self, other, -alpha)


@takes("rsub")
def _rsub(build, self, other, alpha=1):
    return _sub(build, other, self, alpha)


@takes("mul")
def _mul(build, self, other):
    if isinstance(self, str) and isinstance(other, str):
        if build.shapes[self] != build.shape:
            self, other = other, self
        a, b = build.shapes[self], build.shapes[other]
        if a != build.shape or b not in (a, (*a[:2], 1, 1)):
            raise Unsupported(f"its operands must have one shape, or (n, c, 1, 1) for a gate; got {a} and {b}")
        return build.emit("mul", self, other)
    x, constant = (self, other) if isinstance(self, str) else (other, self)
    if isinstance(constant, Derived):
        return masked(build, x, constant)
    return affine(build, x, channel_constant(build, x, constant), 0.0)


@takes("div", "true_divide")
def _div(build, self, other):
    if not isinstance(self, str) or isinstance(other, str):
        raise Unsupported("a division by a value of the network has no integer form; divide by a constant")
    if isinstance(other, Derived):
        return token_mean(build, self, other)
    constant = channel_constant(build, self, other)
    if bool((constant == 0).any()):
        raise Unsupported("it divides by zero")
    return affine(build, self, 1.0 / constant, 0.0)


@takes("neg")
def _neg(build, self):
    return affine(build, self, -1.0, 0.0)


def _clamp(build, x: str, low, high) -> str:
    low = -math.inf if low is None else float(low)
    high = math.inf if high is None else float(high)
    if low > high:
        raise Unsupported(f"its lower limit {low} is above its upper limit {high}")
    return build.emit("clamp", x, low=low, high=high)


takes("relu")(lambda build, self: _clamp(build, self, 0.0, None))
takes("relu6")(lambda build, self: _clamp(build, self, 0.0, 6.0))
takes("hardtanh")(lambda build, self, min_val, max_val: _clamp(build, self, min_val, max_val))
takes("clamp")(lambda build, self, min=None, max=None: _clamp(build, self, min, max))
takes("clamp_min")(lambda build, self, min: _clamp(build, self, min, None))
takes("clamp_max")(lambda build, self, max: _clamp(build, self, None, max))


def _function(function: str):
    def take(build, self, **arguments):
        return build.emit("function", self, function=function, arguments=arguments)

    return take


for _name in FUNCTIONS:
    takes(_name)(_function(_name))
takes("elu")(
    lambda build, self, alpha, scale, input_scale: _function("elu")(
        build, self, alpha=alpha, scale=scale, input_scale=input_scale
    )
)
takes("gelu")(
    lambda build, self, approximate="none": _function("gelu_tanh" if approximate == "tanh" else "gelu")(build, self)
)
takes("log_sigmoid")(lambda build, self: _function("log_sigmoid")(build, self))
takes("pow")(lambda build, self, exponent: _power(build, self, exponent))


def _power(build, x: str, exponent) -> str:
    if exponent != 2:
        raise Unsupported(f"only the square is taken, got exponent {exponent}")
    return build.emit("function", x, function="square", arguments={})


@takes("prelu")
def _prelu(build, self, weight):
    slope = parameter(weight, "slope")
    if slope.numel() == 1:
        return build.emit("function", self, function="leaky_relu", arguments={"negative_slope": float(slope)})
    positive = _clamp(build, self, 0.0, None)
    negative = affine(build, _clamp(build, self, None, 0.0), slope, 0.0)
    return build.emit("add", positive, negative)


@takes("softmax", "_softmax", "log_softmax", "_log_softmax")
def _softmax(build, self, dim, **_):
    axis = dim % len(build.shape)
    return build.emit("softmax", self, axis=axis)


@takes("dropout", "feature_dropout", "native_dropout", "alpha_dropout", "feature_alpha_dropout")
def _dropout(build, p, train, input=None, self=None):
    if train and p > 0:
        raise Unsupported("it is active although the model is in evaluation mode; pass training=self.training")
    return self if input is None else input  # the in-place variant names it self


takes("alias", "contiguous", "clone", "detach", "lift_fresh_copy", "lift_fresh")(lambda build, self, **_: self)


@takes("to", "_to_copy", "type_as", "float")
def _to(build, self, dtype=None, **_):
    if isinstance(dtype, torch.dtype) and not dtype.is_floating_point:
        raise Unsupported(f"a conversion to {dtype} inside the network is not taken; remove it")
    return self
