"""What the functions of this package build with: the registry, the graph while it grows, and shared steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from intq.floatgraph import FloatNode, channel_axis

TAKES: dict[str, Callable] = {}
SWAP = (0, 2, 1)  # (n, c, frames) <-> (n, frames, c)


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
    """The graph while it grows, its nodes by the values they make, and the fx node being taken."""

    shapes: dict[str, tuple]
    nodes: dict[str, FloatNode] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    module: str = ""
    op: str = ""
    shape: Any = None  # of the fx node's result(s), batch symbolic
    symbols: dict[str, str] = field(default_factory=dict)  # torch's names of the symbolic sizes -> ours
    recordings: bool = False
    ids: str = ""  # the input, where it is token ids; then their number, and the masks made so far by padding id
    vocabulary: int = 0
    masks: dict[int, str] = field(default_factory=dict)

    def emit(self, op: str, *inputs: str, shape: tuple | None = None, parameters: dict | None = None, **attrs) -> str:
        layer = op in ("conv1d", "conv2d", "linear", "affine", "layer_norm") or "weight" in (parameters or ())
        base = self.module if layer else f"{self.module}.{self.op}".lstrip(".")
        base = "mask" if op == "mask" else base
        name, count = base or self.op, 1
        while name in self.shapes:
            count += 1
            name = f"{base or self.op}_{count}"
        shape = self.shape if shape is None else shape
        self.shapes[name] = shape
        self.nodes[name] = FloatNode(name, op, inputs, shape, attrs, parameters or {}, self.module)
        return name


def parameter(tensor, what: str) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise Unsupported(f"its {what} must be a parameter, not computed from the input")
    return tensor.detach().to(torch.float32)


def pair(value) -> tuple[int, int]:
    values = [int(v) for v in (value if isinstance(value, (list, tuple)) else [value])]
    return (values[0], values[-1])


def affine(build, x: str, scale, shift, shape: tuple | None = None) -> str:
    """scale * x + shift with numbers or one value per channel."""
    shape = build.shapes[x] if shape is None else shape
    channels = shape[channel_axis(len(shape))]
    vectors = [torch.as_tensor(v, dtype=torch.float32).reshape(-1) for v in (scale, shift)]
    vectors = [v.expand(channels).contiguous() for v in vectors]
    return build.emit("affine", x, shape=shape, parameters={"scale": vectors[0], "shift": vectors[1]})


def channel_constant(build, x: str, constant) -> Tensor:
    """A number, or a tensor that varies along the channel axis alone, as a vector of 1 or c elements."""
    shape = build.shapes[x]
    tensor = torch.as_tensor(constant, dtype=torch.float64)
    if not torch.isfinite(tensor).all():
        raise Unsupported("its constant is not finite")
    if tensor.numel() == 1:
        return tensor.reshape(1)
    axis = channel_axis(len(shape))
    sizes = (1,) * (len(shape) - tensor.ndim) + tuple(tensor.shape)
    if sizes != tuple(shape[axis] if i == axis else 1 for i in range(len(shape))):
        raise Unsupported(f"a constant of shape {tuple(tensor.shape)} does not vary along the channel axis alone")
    return tensor.reshape(-1)


def axis_of(shape: tuple, dim: int) -> int:
    axis = dim % len(shape)
    if axis == 0:
        raise Unsupported("it works along the batch axis; only axes 1 and up are taken")
    return axis


def cut(build, x: str, axis: int, start: int, stop: int, step: int = 1) -> str:
    shape = build.shapes[x]
    length = len(range(start, stop, step))
    if length == 0:
        raise Unsupported("it takes an empty part")
    if (start, stop, step) == (0, shape[axis], 1):
        return x
    result = (*shape[:axis], length, *shape[axis + 1 :])
    return build.emit("slice", x, shape=result, axis=axis, start=start, stop=stop, step=step)


def join(build, parts: list[str], axis: int) -> str:
    shape = build.shapes[parts[0]]
    total = sum(build.shapes[p][axis] for p in parts)
    return (
        parts[0]
        if len(parts) == 1
        else build.emit("concat", *parts, shape=(*shape[:axis], total, *shape[axis + 1 :]), axis=axis)
    )


def swapped(shape: tuple) -> tuple:
    """The shape with channels and frames exchanged: (n, frames, c) of (n, c, frames), and back."""
    return tuple(shape[axis] for axis in SWAP)


def swap(build, x: str) -> str:
    """(n, c, frames) as (n, frames, c), and back."""
    return build.emit("permute", x, shape=swapped(build.shapes[x]), order=SWAP)


def mean_of_frames(build, x: str) -> str:
    """The mean of (n, c, frames) over all frames, in whatever shape is asked for."""
    mean = build.emit("mean_tokens", swap(build, x), shape=build.shapes[x][:2])
    return mean if build.shape == build.shapes[mean] else build.emit("reshape", mean)
