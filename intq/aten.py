"""The operations of ATen that intq takes, one function each: what it is in the operations of the float graph.

To take another: write ``f(build, **arguments named as in the operation's schema)`` under ``@takes(name)``. An in-place
variant (``relu_``) arrives as the operation itself. Raise :class:`Unsupported` with the reason for a form that has no
integer meaning; capture adds where it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from intq.floatgraph import FloatNode
from intq.functions import FUNCTIONS

TAKES: dict[str, Callable] = {}


def takes(*names: str):
    """Registers a function for aten operations: ``f(build, **arguments named as in the operation's schema)``.

    A value of the graph arrives as its name (str), a constant as a Tensor; the result is a name (or a list of names).
    """

    def register(function: Callable) -> Callable:
        TAKES.update(dict.fromkeys(names, function))
        return function

    return register


class Unsupported(Exception):
    """Why an operation cannot be taken; capture adds where it is."""


@dataclass
class Build:
    """The graph while it grows, and the fx node being taken."""

    shapes: dict[str, tuple]
    nodes: list[FloatNode] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    module: str = ""
    op: str = ""
    shape: Any = None  # of the fx node's result(s), batch symbolic

    def emit(self, op: str, *inputs: str, shape: tuple | None = None, parameters: dict | None = None, **attrs) -> str:
        base = self.module if op in ("conv2d", "linear", "affine") else f"{self.module}.{self.op}".lstrip(".")
        name, count = base or self.op, 1
        while name in self.shapes:
            count += 1
            name = f"{base or self.op}_{count}"
        shape = self.shape if shape is None else shape
        self.shapes[name] = shape
        self.nodes.append(FloatNode(name, op, inputs, shape, attrs, parameters or {}, self.module))
        return name


# ---- contractions ------------------------------------------------------------------------------------------------


def _parameter(tensor, what: str) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise Unsupported(f"its {what} must be a parameter, not computed from the input")
    return tensor.detach().to(torch.float32)


def _bias(bias, weight: Tensor) -> Tensor:
    return torch.zeros(weight.shape[0]) if bias is None else _parameter(bias, "bias")


def _pair(value) -> tuple[int, int]:
    values = [int(v) for v in (value if isinstance(value, (list, tuple)) else [value])]
    return (values[0], values[-1])


@takes("conv2d")
def _conv2d(build, input, weight, bias, stride, padding, dilation, groups):
    weight = _parameter(weight, "weight")
    dilation, kernel = _pair(dilation), weight.shape[2:]
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        sides = (total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2)
    else:
        h, w = (0, 0) if padding == "valid" else _pair(padding)
        sides = (h, w, h, w)
    parameters = {"weight": weight, "bias": _bias(bias, weight)}
    attrs = {"stride": _pair(stride), "padding": sides, "dilation": dilation, "groups": int(groups)}
    return build.emit("conv2d", input, parameters=parameters, **attrs)


@takes("linear")
def _linear(build, input, weight, bias):
    weight = _parameter(weight, "weight")
    return build.emit("linear", input, parameters={"weight": weight, "bias": _bias(bias, weight)})


@takes("matmul", "mm")
def _matmul(build, other=None, self=None, mat2=None):
    weight = _parameter(other if mat2 is None else mat2, "second operand")
    if not isinstance(self, str) or weight.ndim != 2:
        raise Unsupported("only a product with a two-dimensional parameter on the right is taken; use torch.nn.Linear")
    return _linear(build, self, weight.T.contiguous(), None)


@takes("addmm")
def _addmm(build, self, mat1, mat2, beta, alpha):
    if (beta, alpha) != (1, 1):
        raise Unsupported("beta and alpha must be 1")
    return _linear(build, mat1, _parameter(mat2, "weight").T.contiguous(), self)


@takes("batch_norm")
def _batch_norm(build, input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled):
    if running_mean is None or running_var is None or training:
        raise Unsupported("it has no running statistics; use track_running_stats=True and settle them first")
    mean, variance = _parameter(running_mean, "mean").double(), _parameter(running_var, "variance").double()
    if bool((variance + eps <= 0).any()):
        raise Unsupported("its running variance is negative; the checkpoint is broken, export it again")
    scale = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * _parameter(weight, "weight").double()
    shift = -mean * scale if bias is None else _parameter(bias, "bias").double() - mean * scale
    return _affine(build, input, scale, shift)


def _affine(build, x: str, scale, shift, shape: tuple | None = None) -> str:
    """scale * x + shift with numbers or one value per channel (axis 1)."""
    shape = build.shapes[x] if shape is None else shape
    channels = shape[1]
    vectors = [torch.as_tensor(v, dtype=torch.float32).reshape(-1) for v in (scale, shift)]
    vectors = [v.expand(channels).contiguous() for v in vectors]
    return build.emit("affine", x, shape=shape, parameters={"scale": vectors[0], "shift": vectors[1]})


# ---- arithmetic --------------------------------------------------------------------------------------------------


def _channel_constant(build, x: str, constant) -> Tensor:
    """A number, or a tensor that varies along axis 1 alone, as a vector of 1 or c elements."""
    shape = build.shapes[x]
    tensor = torch.as_tensor(constant, dtype=torch.float64)
    if not torch.isfinite(tensor).all():
        raise Unsupported("its constant is not finite")
    if tensor.numel() == 1:
        return tensor.reshape(1)
    sizes = (1,) * (len(shape) - tensor.ndim) + tuple(tensor.shape)
    if len(sizes) != len(shape) or sizes != (1, shape[1]) + (1,) * (len(shape) - 2):
        raise Unsupported(f"a constant of shape {tuple(tensor.shape)} does not vary along the channel axis alone")
    return tensor.reshape(-1)


@takes("add", "add_")
def _add(build, self, other, alpha=1):
    if isinstance(self, str) and isinstance(other, str):
        if alpha != 1:
            other = _affine(build, other, alpha, 0.0)
        if build.shapes[self] != build.shapes[other]:
            raise Unsupported(f"its operands must have one shape, got {build.shapes[self]} and {build.shapes[other]}")
        return build.emit("add", self, other)
    if isinstance(self, str):
        return _affine(build, self, 1.0, _channel_constant(build, self, other) * alpha)
    return _affine(build, other, alpha, _channel_constant(build, other, self))


@takes("sub")
def _sub(build, self, other, alpha=1):
    if isinstance(self, str) and not isinstance(other, str):
        return _affine(build, self, 1.0, -_channel_constant(build, self, other) * alpha)
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
    return _affine(build, x, _channel_constant(build, x, constant), 0.0)


@takes("div", "true_divide")
def _div(build, self, other):
    if not isinstance(self, str) or isinstance(other, str):
        raise Unsupported("a division by a value of the network has no integer form; divide by a constant")
    constant = _channel_constant(build, self, other)
    if bool((constant == 0).any()):
        raise Unsupported("it divides by zero")
    return _affine(build, self, 1.0 / constant, 0.0)


@takes("neg")
def _neg(build, self):
    return _affine(build, self, -1.0, 0.0)


# ---- functions of one value --------------------------------------------------------------------------------------


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
takes("log_sigmoid")(lambda build, self: _function("log_sigmoid")(build, self))
takes("pow")(lambda build, self, exponent: _power(build, self, exponent))


def _power(build, x: str, exponent) -> str:
    if exponent != 2:
        raise Unsupported(f"only the square is taken, got exponent {exponent}")
    return build.emit("function", x, function="square", arguments={})


@takes("prelu")
def _prelu(build, self, weight):
    slope = _parameter(weight, "slope")
    if slope.numel() == 1:
        return build.emit("function", self, function="leaky_relu", arguments={"negative_slope": float(slope)})
    positive = _clamp(build, self, 0.0, None)
    negative = _affine(build, _clamp(build, self, None, 0.0), slope, 0.0)
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


# ---- pooling -----------------------------------------------------------------------------------------------------


def _window(build, x: str, kernel, stride, padding, dilation=(1, 1)) -> tuple[tuple, tuple, tuple]:
    """(kernel, stride, padding (t, l, b, r)), the far sides padded just as far as the last window reaches."""
    kernel, padding = _pair(kernel), _pair(padding)
    stride = _pair(stride) if stride else kernel
    sides = []
    for size, out, k, s, p, d in zip(
        build.shapes[x][2:], build.shape[2:], kernel, stride, padding, dilation, strict=True
    ):
        sides.append(max(0, (out - 1) * s + d * (k - 1) + 1 - size - p))
    return kernel, stride, (*padding, *sides)


@takes("max_pool2d")
def _max_pool2d(build, self, kernel_size, stride, padding, dilation, ceil_mode):
    dilation = _pair(dilation)
    if dilation != (1, 1):
        raise Unsupported(f"dilation must be 1, got {dilation}")
    kernel, stride, sides = _window(build, self, kernel_size, stride, padding)
    return build.emit("max_pool2d", self, kernel=kernel, stride=stride, padding=sides, dilation=dilation)


@takes("avg_pool2d")
def _avg_pool2d(build, self, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override):
    kernel, strides, sides = _window(build, self, kernel_size, stride, padding)
    ones = torch.ones(1, 1, *build.shapes[self][2:])
    average = torch.nn.functional.avg_pool2d(
        ones, kernel, strides, _pair(padding), ceil_mode, count_include_pad, divisor_override
    )
    top, left, bottom, right = sides
    padded = torch.nn.functional.pad(ones, (left, right, top, bottom))
    divisor = torch.nn.functional.avg_pool2d(padded, kernel, strides, divisor_override=1)[0, 0] / average[0, 0]
    divisor = divisor.round()
    if bool((divisor == divisor.flatten()[0]).all()):
        divisor = divisor.flatten()[0]
    return build.emit("avg_pool2d", self, kernel=kernel, stride=strides, padding=sides, parameters={"divisor": divisor})


@takes("adaptive_avg_pool2d", "_adaptive_avg_pool2d")
def _adaptive_avg_pool2d(build, self, output_size):
    size, out = build.shapes[self][2:], build.shape[2:]
    if out == (1, 1):
        return build.emit("mean", self, keepdim=True)
    if out == size:
        return self
    if all(s % o == 0 for s, o in zip(size, out, strict=True)):
        kernel = tuple(s // o for s, o in zip(size, out, strict=True))
        divisor = torch.tensor(float(kernel[0] * kernel[1]))
        return build.emit(
            "avg_pool2d", self, kernel=kernel, stride=kernel, padding=(0, 0, 0, 0), parameters={"divisor": divisor}
        )
    return _uneven_pool(build, self, size, out)


def _uneven_pool(build, x: str, size: tuple, out: tuple) -> str:
    """Windows of unequal size, torch's [floor(i * s / o), ceil((i + 1) * s / o)): one slice and one mean each."""
    n, c = build.shapes[x][:2]
    bounds = [[(i * s // o, -(-(i + 1) * s // o)) for i in range(o)] for s, o in zip(size, out, strict=True)]
    rows = []
    for top, bottom in bounds[0]:
        band = _cut(build, x, 2, top, bottom)
        cells = [
            build.emit("mean", _cut(build, band, 3, left, right), shape=(n, c, 1, 1), keepdim=True)
            for left, right in bounds[1]
        ]
        rows.append(_join(build, cells, 3))
    return _join(build, rows, 2)


@takes("mean")
def _mean(build, self, dim=None, keepdim=False, dtype=None):
    rank = len(build.shapes[self])
    axes = sorted(d % rank for d in (dim if isinstance(dim, (list, tuple)) else [dim]))
    if rank != 4 or axes not in ([2, 3], [2], [3]):
        raise Unsupported(f"only a mean over height and width of (n, c, h, w) is taken, got axes {axes} of rank {rank}")
    if axes == [2, 3]:
        return build.emit("mean", self, keepdim=bool(keepdim))
    shape = build.shapes[self]
    kernel = (shape[2], 1) if axes == [2] else (1, shape[3])
    pooled = (*shape[:2], 1, shape[3]) if axes == [2] else (*shape[:3], 1)
    divisor = torch.tensor(float(kernel[0] * kernel[1]))
    pool = build.emit(
        "avg_pool2d",
        self,
        shape=pooled,
        kernel=kernel,
        stride=kernel,
        padding=(0, 0, 0, 0),
        parameters={"divisor": divisor},
    )
    return pool if keepdim else build.emit("reshape", pool)


@takes("adaptive_max_pool2d")
def _adaptive_max_pool2d(build, self, output_size):
    shapes = build.shape
    size, out = build.shapes[self][2:], shapes[0][2:]
    if any(s % o for s, o in zip(size, out, strict=True)):
        raise Unsupported(f"an output of {out} does not divide the input of {size}; choose one that does")
    kernel = tuple(s // o for s, o in zip(size, out, strict=True))
    pool = build.emit(
        "max_pool2d", self, shape=shapes[0], kernel=kernel, stride=kernel, padding=(0, 0, 0, 0), dilation=(1, 1)
    )
    return [pool, pool]


@takes("amax")
def _amax(build, self, dim, keepdim):
    shape = build.shapes[self]
    if len(shape) != 4 or sorted(d % 4 for d in dim) != [2, 3]:
        raise Unsupported("only a maximum over height and width of (n, c, h, w) is taken")
    kernel, pooled = shape[2:], (*shape[:2], 1, 1)
    pool = build.emit(
        "max_pool2d", self, shape=pooled, kernel=kernel, stride=kernel, padding=(0, 0, 0, 0), dilation=(1, 1)
    )
    return pool if keepdim else build.emit("reshape", pool)


@takes("sum")
def _sum(build, self, dim, keepdim, dtype):
    count = math.prod(build.shapes[self][2:])
    mean = _mean(build, self, dim, keepdim)
    if build.nodes[-1].op != "mean":
        raise Unsupported("only a sum over height and width of (n, c, h, w) is taken")
    return _affine(build, mean, float(count), 0.0)


# ---- movement ----------------------------------------------------------------------------------------------------


def _reshape(build, self, **_):
    return self if build.shape == build.shapes[self] else build.emit("reshape", self)


for _name in (
    "view",
    "reshape",
    "flatten",
    "unflatten",
    "squeeze",
    "unsqueeze",
    "_unsafe_view",
    "view_as",
    "reshape_as",
):
    takes(_name)(_reshape)


def _permute(build, x: str, order) -> str:
    order = tuple(int(o) % len(order) for o in order)
    if order[0] != 0:
        raise Unsupported("the batch must stay the first axis")
    return x if order == tuple(range(len(order))) else build.emit("permute", x, order=order)


takes("permute")(lambda build, self, dims: _permute(build, self, dims))


@takes("transpose", "swapaxes", "swapdims")
def _transpose(build, self, dim0=None, dim1=None, axis0=None, axis1=None):
    rank = len(build.shapes[self])
    order = list(range(rank))
    i, j = (dim0 if dim0 is not None else axis0) % rank, (dim1 if dim1 is not None else axis1) % rank
    order[i], order[j] = order[j], order[i]
    return _permute(build, self, order)


@takes("movedim")
def _movedim(build, self, source, destination):
    rank = len(build.shapes[self])
    source, destination = (
        [d % rank for d in (v if isinstance(v, (list, tuple)) else [v])] for v in (source, destination)
    )
    order = [d for d in range(rank) if d not in source]
    for to, at in sorted(zip(destination, source, strict=True)):
        order.insert(to, at)
    return _permute(build, self, order)


@takes("channel_shuffle", "native_channel_shuffle")
def _channel_shuffle(build, self, groups):
    n, c, h, w = build.shapes[self]
    split = build.emit("reshape", self, shape=(n, groups, c // groups, h, w))
    swapped = build.emit("permute", split, shape=(n, c // groups, groups, h, w), order=(0, 2, 1, 3, 4))
    return build.emit("reshape", swapped)


@takes("expand", "expand_as")
def _expand(build, self, **_):
    return self if build.shape == build.shapes[self] else build.emit("expand", self)


@takes("cat", "concat", "concatenate")
def _cat(build, tensors, dim=0):
    if not all(isinstance(t, str) for t in tensors):
        raise Unsupported("every part must be computed from the input; a constant part is not taken")
    return tensors[0] if len(tensors) == 1 else build.emit("concat", *tensors, axis=_axis(build.shape, dim))


@takes("stack")
def _stack(build, tensors, dim=0):
    axis = _axis(build.shape, dim)
    one = (*build.shape[:axis], 1, *build.shape[axis + 1 :])
    return build.emit("concat", *[build.emit("reshape", t, shape=one) for t in tensors], axis=axis)


def _axis(shape: tuple, dim: int) -> int:
    axis = dim % len(shape)
    if axis == 0:
        raise Unsupported("it works along the batch axis; only axes 1 and up are taken")
    return axis


def _cut(build, x: str, axis: int, start: int, stop: int, step: int = 1) -> str:
    shape = build.shapes[x]
    length = len(range(start, stop, step))
    if length == 0:
        raise Unsupported("it takes an empty part")
    if (start, stop, step) == (0, shape[axis], 1):
        return x
    result = (*shape[:axis], length, *shape[axis + 1 :])
    return build.emit("slice", x, shape=result, axis=axis, start=start, stop=stop, step=step)


def _join(build, parts: list[str], axis: int) -> str:
    shape = build.shapes[parts[0]]
    total = sum(build.shapes[p][axis] for p in parts)
    return (
        parts[0]
        if len(parts) == 1
        else build.emit("concat", *parts, shape=(*shape[:axis], total, *shape[axis + 1 :]), axis=axis)
    )


@takes("slice")
def _slice(build, self, dim=0, start=None, end=None, step=1):
    shape = build.shapes[self]
    axis = dim % len(shape)
    if axis == 0:
        whole = (start is None or start == 0) and (end is None or not isinstance(end, int) or end >= 2**31)
        if whole and step == 1:
            return self
        raise Unsupported("it takes part of the batch; only axes 1 and up are taken")
    start, stop, step = slice(start, end, step).indices(shape[axis])
    return _cut(build, self, axis, start, stop, step)


@takes("narrow")
def _narrow(build, self, dim, start, length):
    return _cut(build, self, _axis(build.shapes[self], dim), int(start), int(start) + int(length))


@takes("select")
def _select(build, self, dim, index):
    shape = build.shapes[self]
    axis = _axis(shape, dim)
    index = int(index) % shape[axis]
    return build.emit("reshape", _cut(build, self, axis, index, index + 1))


def _split(build, self, dim=0, **_):
    """chunk, split, tensor_split: the shapes of the parts say where to cut."""
    axis, parts, start = _axis(build.shapes[self], dim), [], 0
    for shape in build.shape:
        parts.append(_cut(build, self, axis, start, start + shape[axis]))
        start += shape[axis]
    return parts


for _name in ("chunk", "split", "split_with_sizes", "unsafe_split", "unsafe_chunk", "tensor_split"):
    takes(_name)(_split)


@takes("unbind")
def _unbind(build, self, dim=0):
    axis = _axis(build.shapes[self], dim)
    return [
        build.emit("reshape", _cut(build, self, axis, i, i + 1), shape=shape) for i, shape in enumerate(build.shape)
    ]


@takes("pad", "constant_pad_nd", "zero_pad2d")
def _pad(build, self, pad, mode="constant", value=None):
    if mode != "constant":
        raise Unsupported(f"padding mode {mode!r} is not taken; use 'constant'")
    rank = len(build.shapes[self])
    pairs = [(int(pad[i]), int(pad[i + 1])) for i in range(0, len(pad), 2)]
    padding = [(0, 0)] * (rank - len(pairs)) + pairs[::-1]
    value = 0.0 if value is None else float(value)
    if padding[0] != (0, 0):
        raise Unsupported("it pads the batch axis")
    x = self
    for axis, (before, after) in enumerate(padding):  # a negative amount cuts
        if before < 0 or after < 0:
            size = build.shapes[x][axis]
            x = _cut(build, x, axis, max(0, -before), size - max(0, -after))
    padding = tuple((max(0, b), max(0, a)) for b, a in padding)
    return x if not any(map(any, padding)) else build.emit("pad", x, padding=padding, value=value)
