"""Operations that rearrange tensors: shapes, axes, parts."""

from __future__ import annotations

import torch
from torch import Tensor

from intq.aten.build import Unsupported, axis_of, cut, parameter, takes


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
    if isinstance(self, Tensor):
        return self  # a constant, the same for every sample
    return self if build.shape == build.shapes[self] else build.emit("expand", self)


@takes("cat", "concat", "concatenate")
def _cat(build, tensors, dim=0):
    if not all(isinstance(t, str) for t in tensors):
        return _prepend(build, tensors, axis_of(build.shape, dim))
    return tensors[0] if len(tensors) == 1 else build.emit("concat", *tensors, axis=axis_of(build.shape, dim))


def _prepend(build, tensors, axis: int) -> str:
    """Constant tokens (1, k, channels) before those computed: room for them, then a table that is added."""
    *constants, x = tensors
    shape = build.shape
    if axis != 1 or len(shape) != 3 or not isinstance(x, str) or any(isinstance(c, str) for c in constants):
        raise Unsupported("every part must be computed from the input, except for constant tokens before the others")
    rows = torch.cat([parameter(c, "part")[0] for c in constants])
    table = torch.zeros(shape[1:])
    table[: len(rows)] = rows
    padded = build.emit("pad", x, padding=((0, 0), (len(rows), 0), (0, 0)), value=0.0)
    return build.emit("shift", padded, parameters={"table": table})


@takes("stack")
def _stack(build, tensors, dim=0):
    axis = axis_of(build.shape, dim)
    one = (*build.shape[:axis], 1, *build.shape[axis + 1 :])
    return build.emit("concat", *[build.emit("reshape", t, shape=one) for t in tensors], axis=axis)


@takes("slice")
def _slice(build, self, dim=0, start=None, end=None, step=1):
    shape = build.shapes[self]
    axis = dim % len(shape)
    if axis == 0:
        whole = (start is None or start == 0) and (end is None or not isinstance(end, int) or end >= 2**31)
        if whole and step == 1:
            return self
        raise Unsupported("it takes part of the batch; only axes 1 and up are taken")
    if isinstance(shape[axis], str):
        return _without_last(build, self, axis, start, end, step)
    start, stop, step = slice(start, end, step).indices(shape[axis])
    return cut(build, self, axis, start, stop, step)


def _without_last(build, x: str, axis: int, start, end, step) -> str:
    """All of a symbolic axis, its first, or all but its last, which :func:`intq.frames.fewer_frames` takes care of."""
    if build.shape == build.shapes[x]:
        return x
    if start not in (None, 0) or step != 1 or not (isinstance(end, int) and (end < 0 or end == 1)):
        raise Unsupported(
            f"of the axis {build.shapes[x][axis]!r}, of unknown length, only the first alone is taken, or the last are "
            "left out"
        )
    return build.emit("slice", x, axis=axis, start=0, stop=end, step=1)


@takes("narrow")
def _narrow(build, self, dim, start, length):
    return cut(build, self, axis_of(build.shapes[self], dim), int(start), int(start) + int(length))


@takes("select")
def _select(build, self, dim, index):
    shape = build.shapes[self]
    axis = axis_of(shape, dim)
    if isinstance(shape[axis], str) and index != 0:
        raise Unsupported(f"of the axis {shape[axis]!r}, of unknown length, only the first element can be taken")
    index = int(index) % shape[axis] if index else 0
    return build.emit("reshape", cut(build, self, axis, index, index + 1))


def _split(build, self, dim=0, **_):
    """chunk, split, tensor_split: the shapes of the parts say where to cut."""
    axis, parts, start = axis_of(build.shapes[self], dim), [], 0
    for shape in build.shape:
        parts.append(cut(build, self, axis, start, start + shape[axis]))
        start += shape[axis]
    return parts


for _name in ("chunk", "split", "split_with_sizes", "unsafe_split", "unsafe_chunk", "tensor_split"):
    takes(_name)(_split)


@takes("unbind")
def _unbind(build, self, dim=0):
    axis = axis_of(build.shapes[self], dim)
    return [build.emit("reshape", cut(build, self, axis, i, i + 1), shape=shape) for i, shape in enumerate(build.shape)]


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
            x = cut(build, x, axis, max(0, -before), size - max(0, -after))
    padding = tuple((max(0, b), max(0, a)) for b, a in padding)
    return x if not any(map(any, padding)) else build.emit("pad", x, padding=padding, value=value)
