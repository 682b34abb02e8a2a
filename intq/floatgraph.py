"""The float graph: a network as a list of the few operations that intq knows, and its interpreter in torch.

Values are named, channels come second in images (torch's layout) and last elsewhere (:func:`channel_axis`), and the
first axis of every shape is the symbolic batch ``"n"``; a text's tokens are the symbolic axis ``"s"``, a recording's
samples the axis ``"t"``, of which frames are a part (:mod:`intq.dims`). Capture writes
the graph, :mod:`intq.simplify` rewrites it, calibration runs it, :mod:`intq.quantize` turns it into integers.

Operations, ``x`` being the first input (``low``/``high``: an optional clamp of the result, default none):

==============  ==========================  ======================================================================
conv2d          x [, residual]              weight, bias, [pad (ci,)], [residual_scale (co,)],
                                            [channel_high (co,)]; stride, padding (t, l, b, r), dilation, groups
conv1d          x (n, frames, c) [, resid.]  weight (co, ci / groups, k), bias, [pad], [residual_scale], [channel_high];
                                            stride, padding (before, after), dilation, groups
linear          x [, residual]              weight, bias; over the last axis
affine          x                           scale (c,), shift (c,) along the channel axis
shift           x (n, tokens, c)            table (tokens, c): x + table
embedding       ids                         any of word, position, segment (rows, c): the sum of a row of each;
                                            positions, padding, separator as in :mod:`intq.ops.embedding`
mask            ids                         padding: 1 where the id is another, else 0; (n, tokens)
layer_norm      x                           weight, bias; epsilon; over the last axis
attention       q, k, v [, bias] [, mask]   heads, scale, [biased]: softmax(scale q k^T + bias) v per head; (n, tokens,
                                            c), or (n, head, token, size) as captured; bias (n, head, token, token)
relative        q (n, tokens, c)            table (heads, 2 L - 1, size), scale: a bias, :mod:`intq.operators`
mean_tokens     x (n, tokens, c) [, mask]   the mean over the tokens that the mask keeps
log_mel         samples                     settings (JSON of :class:`intq.frontend.FrontEnd`): (n, frames, bands)
normalize_frames  x (n, frames, c)          epsilon, inside, correction, [weight, bias (c,)]: (x - mean) /
                                            (sqrt(variance + inside) + epsilon) * weight + bias over the frames
add, mul        a, b                        equal shapes; mul also takes b as (n, c, 1, 1)
clamp           x                           low, high
function        x                           function (name), arguments; or body: nodes computing it from ``"x"``
avg_pool2d      x                           kernel, stride, padding; divisor (() or (oh, ow)): window sum / divisor
max_pool2d      x                           kernel, stride, padding, dilation
mean            x                           over height and width; keepdim
concat          x, ...                      axis
reshape         x                           shape
permute         x                           order
slice           x                           axis, start, stop, step
pad             x                           padding ((before, after) per axis), value
expand          x                           shape: only as an operand of mul
softmax         x                           only as the last operation
==============  ==========================  ======================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from intq import frontend, operators  # noqa: F401 (torch.ops.intq)
from intq.functions import FUNCTIONS

BATCH, TOKENS, SAMPLES = "n", "s", "t"
CONTRACTIONS = frozenset({"conv1d", "conv2d", "linear"})


@dataclass(frozen=True)
class FloatNode:
    """One operation; ``name`` is also the name of the value it makes, ``module`` the path of its module."""

    name: str
    op: str
    inputs: tuple[str, ...]
    shape: tuple
    attrs: Mapping = field(default_factory=dict)
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    module: str = ""

    def with_attrs(self, **attrs) -> FloatNode:
        return replace(self, attrs={**self.attrs, **attrs})

    def with_parameters(self, **parameters: Tensor) -> FloatNode:
        return replace(self, parameters={**self.parameters, **parameters})

    @property
    def low(self) -> float:
        return self.attrs.get("low", -math.inf)

    @property
    def high(self) -> float:
        return self.attrs.get("high", math.inf)

    @property
    def channel_high(self) -> Tensor:
        """An upper limit per channel, which equalization makes of ``high``; infinite where there is none."""
        return self.parameters.get("channel_high", torch.tensor([math.inf]))

    @property
    def common_high(self) -> float:
        """The upper limit of integers, which all channels share: no channel's own is lower, nor was one seen above it.

        (Equalization widens no channel beyond the widest: it is the other channels' limits that it moves up.)
        """
        return min(self.high, float(self.channel_high.min()))


@dataclass(frozen=True)
class FloatGraph:
    """Nodes in execution order; one input, one output."""

    input: str
    input_shape: tuple
    nodes: tuple[FloatNode, ...]
    output: str
    notices: tuple[str, ...] = ()

    @property
    def reads_tokens(self) -> bool:
        """Whether the input is token ids."""
        return TOKENS in self.input_shape

    @property
    def reads_samples(self) -> bool:
        """Whether the input is recordings."""
        return SAMPLES in self.input_shape

    def real(self) -> dict[str, tuple]:
        """The shapes of all values but token ids and masks: those that have a scale."""
        masks = {node.name for node in self.nodes if node.op == "mask"}
        return {
            k: v for k, v in self.shapes().items() if k not in masks and not (self.reads_tokens and k == self.input)
        }

    def shapes(self) -> dict[str, tuple]:
        return {self.input: self.input_shape} | {node.name: node.shape for node in self.nodes}

    def users(self) -> dict[str, list[FloatNode]]:
        """The nodes that read each value, in order (a node reading it twice is there once)."""
        users: dict[str, list[FloatNode]] = {name: [] for name in self.shapes()}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                users[name].append(node)
        return users

    def done_after(self) -> dict[str, tuple[str, ...]]:
        """By node: the values that nothing after it reads. The output is read by whoever asked."""
        last = {name: node.name for node in self.nodes for name in node.inputs if name != self.output}
        return {node.name: tuple(name for name in last if last[name] == node.name) for node in self.nodes}

    def run(self, x: Tensor) -> Tensor:
        """The network's answer for a float batch ``x`` (n, c, h, w)."""
        for name, value in self.values(x):
            if name == self.output:
                return value
        raise AssertionError("a graph computes its output")

    def values(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Every value in order, the input first. A value is dropped once its last reader has run."""
        done, values = self.done_after(), {self.input: x}
        yield self.input, x
        for node in self.nodes:
            result = evaluate(node, *[values[name] for name in node.inputs])
            for name in done[node.name]:
                del values[name]
            values[node.name] = result
            yield node.name, result

    def text(self) -> str:
        """One line a node, for people."""
        return "\n".join(
            f"{n.name}: {n.op}({', '.join(n.inputs)}) -> {n.shape} "
            + " ".join(f"{k}={v}" for k, v in n.attrs.items() if k != "body")
            for n in self.nodes
        )


def channel_axis(rank: int) -> int:
    """Where the channels of a value of this rank are: second in an image (n, c, h, w), last otherwise."""
    return 1 if rank == 4 else rank - 1


def per_channel(values: Tensor, rank: int) -> Tensor:
    """(c,) in the given rank, to broadcast along the channel axis."""
    return values.reshape([-1 if axis == channel_axis(rank) else 1 for axis in range(rank)])


def by_channel(x: Tensor) -> Tensor:
    """A value as (c, everything else)."""
    return x.movedim(channel_axis(x.ndim), 0).flatten(1)


def pad2d(x: Tensor, padding: tuple[int, int, int, int], value: Tensor | None = None) -> Tensor:
    """Pads height and width of (n, c, h, w) by (top, left, bottom, right), with zero or one value per channel."""
    top, left, bottom, right = padding
    if not any(padding):
        return x
    if value is None or not torch.any(value):
        return F.pad(x, (left, right, top, bottom))
    value = per_channel(value.to(x), 4)
    return F.pad(x - value, (left, right, top, bottom)) + value


def pad_frames(x: Tensor, padding: tuple[int, int], value: Tensor | None = None) -> Tensor:
    """Frames before and after those of (n, frames, c), of zeros or of one value per channel."""
    if value is None or not torch.any(value):
        return F.pad(x, (0, 0, *padding))
    return F.pad(x - value.to(x), (0, 0, *padding)) + value.to(x)


def contraction(node: FloatNode, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution or linear layer of ``node`` with other weights, without its residual and clamp."""
    if node.op == "linear":
        return F.linear(x, weight, bias)
    a = node.attrs
    if node.op == "conv1d":
        x = pad_frames(x, a["padding"], node.parameters.get("pad")).transpose(1, 2)
        return F.conv1d(x, weight, bias, a["stride"], 0, a["dilation"], a["groups"]).transpose(1, 2)
    x = pad2d(x, a["padding"], node.parameters.get("pad"))
    return F.conv2d(x, weight, bias, a["stride"], 0, a["dilation"], a["groups"])


def scaled_residual(node: FloatNode, residual: Tensor) -> Tensor:
    """The residual in the units of the output, where equalization gave the two different ones."""
    scale = node.parameters.get("residual_scale")
    return residual if scale is None else residual * per_channel(scale.to(residual), residual.ndim)


def _contract(node: FloatNode, x: Tensor, residual: Tensor | None = None) -> Tensor:
    y = contraction(node, x, node.parameters["weight"], node.parameters["bias"])
    return y if residual is None else y + scaled_residual(node, residual)


def _affine(node: FloatNode, x: Tensor) -> Tensor:
    scale, shift = node.parameters["scale"].to(x), node.parameters["shift"].to(x)
    return x * per_channel(scale, x.ndim) + per_channel(shift, x.ndim)


def _function(node: FloatNode, x: Tensor) -> Tensor:
    if "body" not in node.attrs:
        return FUNCTIONS[node.attrs["function"]](x, **node.attrs.get("arguments", {}))
    values = {"x": x}
    for inner in node.attrs["body"]:
        values[inner.name] = evaluate(inner, *[values[name] for name in inner.inputs])
    return values[node.attrs["body"][-1].name]


def _avg_pool2d(node: FloatNode, x: Tensor) -> Tensor:
    a = node.attrs
    total = F.avg_pool2d(pad2d(x, a["padding"]), a["kernel"], a["stride"], divisor_override=1)
    return total / node.parameters["divisor"].to(x)


def _max_pool2d(node: FloatNode, x: Tensor) -> Tensor:
    a = node.attrs
    top, left, bottom, right = a["padding"]
    x = F.pad(x, (left, right, top, bottom), value=-math.inf) if any(a["padding"]) else x
    return F.max_pool2d(x, a["kernel"], a["stride"], 0, a["dilation"])


def _slice(node: FloatNode, x: Tensor) -> Tensor:
    a = node.attrs
    return x[(slice(None),) * a["axis"] + (slice(a["start"], a["stop"], a["step"]),)]


def _pad(node: FloatNode, x: Tensor) -> Tensor:
    return F.pad(x, [p for pair in reversed(node.attrs["padding"]) for p in pair], value=node.attrs["value"])


def token_positions(ids: Tensor, attrs: Mapping) -> Tensor:
    """(n or 1, tokens): the row of the position table that each token takes (see :mod:`intq.ops.embedding`)."""
    if attrs.get("positions") != "counted":
        return torch.arange(ids.shape[1], device=ids.device)[None]
    token = (ids != attrs["padding"]).long()
    return attrs["padding"] + token.cumsum(1) * token


def _embedding(node: FloatNode, ids: Tensor) -> Tensor:
    total, ids = 0.0, ids.long()
    for name, table in node.parameters.items():
        if name == "position":
            rows = table[token_positions(ids, node.attrs)]
        elif name == "segment":
            ends = (ids == node.attrs.get("separator", -1)).long()
            rows = table[(ends.cumsum(1) - ends).clamp(max=len(table) - 1)]
        else:
            rows = table[ids]
        total = total + rows
    return total


def _layer_norm(node: FloatNode, x: Tensor) -> Tensor:
    weight, bias = node.parameters["weight"].to(x), node.parameters["bias"].to(x)
    return F.layer_norm(x, x.shape[-1:], weight, bias, node.attrs["epsilon"])


def _normalize_frames(node: FloatNode, x: Tensor) -> Tensor:
    epsilon, correction, inside = (node.attrs[key] for key in ("epsilon", "correction", "inside"))
    y = torch.ops.intq.normalize_frames(x, epsilon, correction, None, inside)
    return y * node.parameters["weight"].to(x) + node.parameters["bias"].to(x) if node.parameters else y


def _attention(node: FloatNode, q: Tensor, k: Tensor, v: Tensor, *more: Tensor) -> Tensor:
    shape, heads = q.shape, node.attrs["heads"]
    if q.ndim == 3:
        q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # (n, head, token, size)
    bias, mask = (more[0], more[1:]) if node.attrs.get("biased") else (None, more)
    for kept in mask:
        left_out = torch.where(kept[:, None, None] > 0, 0.0, -math.inf)
        bias = left_out if bias is None else bias + left_out
    y = F.scaled_dot_product_attention(q, k, v, bias, scale=node.attrs["scale"])
    return y.transpose(1, 2).reshape(shape) if len(shape) == 3 else y


def _mean_tokens(node: FloatNode, x: Tensor, mask: Tensor | None = None) -> Tensor:
    if mask is None:
        return x.mean(1)
    weight = mask.to(x)[:, :, None]
    return (x * weight).sum(1) / weight.sum(1).clamp_min(1)


_EVALUATE: dict[str, Callable[..., Tensor]] = {
    "conv1d": _contract,
    "conv2d": _contract,
    "linear": _contract,
    "affine": _affine,
    "shift": lambda node, x: x + node.parameters["table"].to(x),
    "embedding": _embedding,
    "mask": lambda node, ids: (ids != node.attrs["padding"]).float(),
    "layer_norm": _layer_norm,
    "log_mel": lambda node, x: torch.ops.intq.log_mel(x, node.attrs["settings"]),
    "normalize_frames": _normalize_frames,
    "attention": _attention,
    "relative": lambda node, q: torch.ops.intq.relative_scores(q, node.parameters["table"].to(q), node.attrs["scale"]),
    "mean_tokens": _mean_tokens,
    "add": lambda node, a, b: a + b,
    "mul": lambda node, a, b: a * b,
    "clamp": lambda node, x: x,
    "function": _function,
    "avg_pool2d": _avg_pool2d,
    "max_pool2d": _max_pool2d,
    "mean": lambda node, x: x.mean((2, 3), keepdim=node.attrs["keepdim"]),
    "concat": lambda node, *xs: torch.cat(xs, node.attrs["axis"]),
    "reshape": lambda node, x: x.reshape(x.shape[0], *(-1 if isinstance(d, str) else d for d in node.shape[1:])),
    "permute": lambda node, x: x.permute(node.attrs["order"]),
    "slice": _slice,
    "pad": _pad,
    "expand": lambda node, x: x.expand(-1, *node.shape[1:]),
    "softmax": lambda node, x: torch.softmax(x, node.attrs["axis"]),
}


def evaluate(node: FloatNode, *inputs: Tensor) -> Tensor:
    """What ``node`` computes from its inputs, its clamp included."""
    return limited(node, _EVALUATE[node.op](node, *inputs))


def limited(node: FloatNode, y: Tensor) -> Tensor:
    """``y`` within the node's limits."""
    if "channel_high" in node.parameters:
        y = torch.minimum(y, per_channel(node.channel_high.to(y), y.ndim))
    return y.clamp(node.low, node.high) if math.isfinite(node.low) or math.isfinite(node.high) else y
