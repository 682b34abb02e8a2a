"""The torch backend: the reference's integers exactly, on any device. (:mod:`intq.backends.straight_through` trains.)

Sums of products run as float32 convolutions and matrix products. A float32 product of an 8-bit value and a weight is
an integer, and float32 adds integers exactly, in any order, while every partial sum stays within 2**24. So the input
channels are split into runs for which the weights themselves prove that (one or two runs for a trained layer), and the
runs are added as integers. Attention's products of 8 bits are float32 while their count proves the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from intq import dims
from intq.graph import Graph, Node
from intq.ops import OPS
from intq.ops.attention import ZERO_POINT, split
from intq.ops.contract import masked
from intq.ops.log_mel import frame_count
from intq.ops.op import Attrs, window_shape
from intq.ops.relative import met, places
from intq.value import DTYPE_RANGE, Value, check_inputs

EXACT_FLOAT32 = 2**24  # float32 holds every integer up to here
LARGEST_PRODUCT = 2**15  # of two values of 8 bits, one of them signed
FRAME_ELEMENTS = 2**20  # samples of so many frames that the calls of a transform cost less than its arithmetic
CACHED_ELEMENTS = 2**15  # of int64, per thread: a body's few temporaries of them stay in a core's second-level cache

Tensors = dict[str, Tensor]


class TorchDialect:
    """How bodies are spelled on integer tensors (see :mod:`intq.fixedpoint`)."""

    @staticmethod
    def wide(x: Tensor) -> Tensor:
        return x.to(torch.int64)

    @staticmethod
    def shift_right(x: Tensor, shift: Tensor | int) -> Tensor:
        return x >> shift

    @staticmethod
    def lookup(table: Tensor, x: Tensor) -> Tensor:
        return table[x.to(torch.int64)]

    @staticmethod
    def shift_left(x: Tensor, places: int) -> Tensor:
        return x << places

    @staticmethod
    def low_bits(x: Tensor, count: int) -> Tensor:
        return x & ((1 << count) - 1)

    @staticmethod
    def narrow(x: Tensor) -> Tensor:
        return x.to(torch.int32)

    @staticmethod
    def within(x: Tensor, low: int, high: int) -> Tensor:
        """Proven on paper; the reference, which every run of this backend can be compared with, checks it."""
        return x

    @staticmethod
    def matmul(a: Tensor, b: Tensor, terms: int) -> Tensor:
        """(..., i, k) x (..., k, j), values of 8 bits: exact in float32 up to k = 512."""
        dtype = torch.float32 if a.shape[-1] * LARGEST_PRODUCT <= EXACT_FLOAT32 else torch.float64
        return (a.to(dtype) @ b.to(dtype)).to(torch.int32)

    @staticmethod
    def swap(x: Tensor) -> Tensor:
        return x.transpose(-1, -2)

    @staticmethod
    def row_max(x: Tensor) -> Tensor:
        return x.amax(-1, keepdim=True)

    @staticmethod
    def row_sum(x: Tensor, terms: int) -> Tensor:
        return x.sum(-1, keepdim=True, dtype=x.dtype)

    @staticmethod
    def frame_sum(x: Tensor, terms: int) -> Tensor:
        return x.sum(1, keepdim=True, dtype=x.dtype)

    @staticmethod
    def pad2d(x: Tensor, padding, value: Tensor) -> Tensor:
        top, left, bottom, right = padding
        n, h, w, c = x.shape
        out = value.to(x).expand(n, h + top + bottom, w + left + right, c).clone()
        out[:, top : top + h, left : left + w] = x
        return out

    clamp = staticmethod(torch.clamp)
    where = staticmethod(torch.where)
    reshape = staticmethod(torch.reshape)
    transpose = staticmethod(torch.permute)
    concat = staticmethod(torch.cat)


# ---- loops: what turns inputs, integers in any type, into operands ---------------------------------------------


@dataclass(frozen=True)
class Run:
    """Some input channels of a contraction and their weights: sums of products are exact in the weights' float type."""

    channels: slice
    weight: Tensor


def exact_runs(weight: Tensor, dtype: str, groups: int = 1) -> list[Run]:
    """Split a contraction over its last axis so that every sum of products is exact.

    ``weight``: integers (co, ..., ci) in a float type; ``dtype``: of the input x. Positive and negative products are
    summed apart, which bounds every partial sum of every order of additions, as in :mod:`intq.bounds`.
    float32 where each run's sums stay within 2**24; float64 (exact to 2**53, and the graph's proof is 2**31) for
    inputs wider than 8 bits and for grouped convolutions that would need a split. Eight bits are also exact in the
    bfloat16 and TF32 in which torch may have been told to multiply float32.
    """
    if dtype != "uint8":
        return [Run(slice(None), weight.double())]
    limit = EXACT_FLOAT32 // DTYPE_RANGE[dtype][1]
    with torch.no_grad():
        parts = (weight.clamp(min=0), -weight.clamp(max=0))
        parts = [p.sum(tuple(range(1, p.ndim - 1))) if p.ndim > 2 else p for p in parts]
        sums = torch.cat(parts).cumsum(1, dtype=torch.float64)  # (co of either sign, sum over the first ci channels)
    ends = [0]
    while ends[-1] < weight.shape[-1]:
        before = sums[:, ends[-1] - 1 : ends[-1]] if ends[-1] else 0.0
        ends.append(int(((sums - before).amax(0) <= limit).sum()))
        if ends[-1] == ends[-2]:  # one channel alone passes 2**24
            return [Run(slice(None), weight.double())]
    if len(ends) == 2:
        return [Run(slice(None), weight.float())]
    if groups > 1:
        return [Run(slice(None), weight.double())]
    return [Run(slice(a, b), weight[..., a:b].float()) for a, b in pairwise(ends)]


def _summed(runs: list[Run], dtype: torch.dtype, multiply: Callable[[Run], Tensor]) -> Tensor:
    """The sum over all runs: in ``dtype``, or of a single run as it is."""
    if len(runs) == 1:
        return multiply(runs[0])
    total = multiply(runs[0]).to(dtype)
    for run_ in runs[1:]:
        total = total + multiply(run_).to(dtype)
    return total


def _images(x: Tensor) -> Tensor:
    """(n, h, w, c) as torch's (n, c, h, w): a view, in the channels-last memory format where x is contiguous."""
    return x.permute(0, 3, 1, 2)


def convolve(x: Tensor, weight: Tensor, *, stride, padding, dilation, groups) -> Tensor:
    """Float convolution of (n, h, w, ci) with (co, kh, kw, ci/groups), padded by zeros on both sides alike.

    Only sums of products: of the CPU's convolutions these are all but NNPACK's. Other devices' may be Winograd's or
    Fourier's, which are not exact, so there it is written as a matrix product.
    """
    if x.device.type == "cpu":
        weight = _images(weight).contiguous(memory_format=torch.channels_last)
        with torch.backends.nnpack.flags(enabled=False):
            return F.conv2d(_images(x), weight, None, stride, padding, dilation, groups).permute(0, 2, 3, 1)
    return convolve_unfolded(x, weight, stride=stride, padding=padding, dilation=dilation, groups=groups)


def convolve_unfolded(x: Tensor, weight: Tensor, *, stride, padding, dilation, groups) -> Tensor:
    """:func:`convolve` as a product of matrices."""
    n, h, w, _ = x.shape
    co, kh, kw, ci = weight.shape
    oh, ow = window_shape((h, w), (kh, kw), stride, (*padding, *padding), dilation)
    taps = F.unfold(_images(x), (kh, kw), dilation, padding, stride)  # (n, ci * kh * kw of every group, oh * ow)
    taps = taps.reshape(n, groups, ci * kh * kw, oh * ow)
    rows = _images(weight).reshape(groups, co // groups, ci * kh * kw)
    return (rows @ taps).reshape(n, co, oh, ow).permute(0, 2, 3, 1)


def _masked(x: Tensor, mask: Tensor | None, constants: Tensors) -> Tensor:
    """x (n, frames, ...) with padding where a mask (n, frames) leaves frames out."""
    if mask is None:
        return x
    kept = mask.reshape(*mask.shape, *[1] * (x.ndim - 2)) == 1
    return torch.where(kept, x, constants["pad_value"].to(x))


def _conv2d(x: Tensor, runs: list[Run], node: Node, constants: Tensors, dtype: torch.dtype, mask=None) -> Tensor:
    a, x = node.attrs, _masked(x.to(runs[0].weight.dtype), mask, constants)
    top, left, bottom, right = a["padding"]
    geometry = {key: a[key] for key in ("stride", "dilation", "groups")} | {"padding": (top, left)}
    alike = (top, left) == (bottom, right)
    if not alike or (any(a["padding"]) and node.constants["pad_value"].any()):
        x, geometry["padding"] = TorchDialect.pad2d(x, a["padding"], constants["pad_value"]), (0, 0)
    return _summed(runs, dtype, lambda r: convolve(x[..., r.channels], r.weight, **geometry))


def _conv1d(x: Tensor, runs: list[Run], node: Node, constants: Tensors, dtype: torch.dtype, mask=None) -> Tensor:
    """A convolution over an image that is one pixel wide; frames that the mask leaves out count as padding."""
    a, (before, after) = node.attrs, node.attrs["padding"]
    x = _masked(x.to(runs[0].weight.dtype), mask, constants)
    x = TorchDialect.pad2d(x[:, :, None], (before, 0, after, 0), constants["pad_value"])
    geometry = {"stride": (a["stride"], 1), "dilation": (a["dilation"], 1), "groups": a["groups"], "padding": (0, 0)}
    total = _summed(runs, dtype, lambda r: convolve(x[..., r.channels], r.weight[:, :, None], **geometry))
    return total[:, :, 0]


def _linear(x: Tensor, runs: list[Run], node: Node, constants: Tensors, dtype: torch.dtype) -> Tensor:
    x = x.to(runs[0].weight.dtype)
    return _summed(runs, dtype, lambda r: F.linear(x[..., r.channels], r.weight))


def _window(x: Tensor, dtype: torch.dtype, padding, pad_value: Tensor) -> Tensor:
    x = x.to(dtype)
    return _images(TorchDialect.pad2d(x, padding, pad_value) if any(padding) else x)


def _sum2d(x: Tensor, node: Node, constants: Tensors) -> Tensor:
    x, a = _window(x, torch.float64, node.attrs["padding"], constants["pad_value"]), node.attrs
    return F.avg_pool2d(x, a["kernel"], a["stride"], divisor_override=1).permute(0, 2, 3, 1)


def _max2d(x: Tensor, node: Node, constants: Tensors) -> Tensor:
    a, least = node.attrs, torch.tensor(DTYPE_RANGE[node.output.dtype][0])
    x = _window(x, carrier(node.output), a["padding"], least)
    return F.max_pool2d(x, a["kernel"], a["stride"]).permute(0, 2, 3, 1)


def _tokens(inputs, node: Node, constants: Tensors, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x, mask = (x.to(dtype) for x in inputs)
    return (x * mask[..., None]).sum(1, dtype=dtype), mask.sum(1, keepdim=True, dtype=dtype)


def _attention(inputs, node: Node, constants: Tensors, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """(n, tokens, heads * size) -> (n, heads, tokens, size) without the zero point; :func:`arranged` takes it back."""
    qkv, bias, mask = split(inputs, node.attrs)
    apart = [_heads_apart(x.to(dtype), node.attrs["heads"]) for x in qkv]
    return (*apart, *(b.to(dtype) for b in bias), *(m.to(dtype)[:, None, None, :] for m in mask))


def _heads_apart(x: Tensor, heads: int) -> Tensor:
    """(n, tokens, heads * size) -> (n, heads, tokens, size) without the zero point."""
    return (x - ZERO_POINT).unflatten(-1, (heads, -1)).transpose(1, 2)


def _relative(inputs, node: Node, constants: Tensors, dtype: torch.dtype) -> tuple[Tensor]:
    table = constants["distances"]
    return (by_distance(_heads_apart(inputs[0].to(torch.float64), len(table)), table).to(dtype),)


def by_distance(q: Tensor, table: Tensor) -> Tensor:
    """q (n, heads, tokens, size) . the table's vector of each distance -> (n, heads, query, key)."""
    tokens = q.shape[2]
    products = q @ met(table, tokens).to(q).transpose(1, 2)  # (n, head, query, distance)
    at = torch.from_numpy(places(tokens)).to(q.device)
    return products.gather(3, at.expand(*q.shape[:2], -1, -1))


def _spectrum(inputs, node: Node, constants: Tensors, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The samples in the window of every frame, and those before them: (point, n, frame)."""
    (x, lengths), a, device = inputs, node.attrs, inputs[0].device
    fft, frames = constants["window"].shape[1], frame_count(x.shape[1], a)
    ends = lengths.long().clamp(max=x.shape[1])[:, None, None]  # (n, 1, 1)
    frame, point = torch.arange(frames, device=device)[:, None], torch.arange(fft, device=device)
    place = (frame * a["hop"] + point - fft // 2).expand(len(x), -1, -1)
    if a["padding"] == "reflect":
        place = torch.where(place < 0, -place, torch.where(place >= ends, 2 * (ends - 1) - place, place))
    inside = (place >= 0) & (place < ends) & (frame < (ends + a["hop"] * a["extra_frame"]) // a["hop"])
    row = torch.arange(len(x), device=device)[:, None, None]
    taken = [(inside, place), (inside & (place > 0), place - 1)]
    found = (torch.where(there, x[row, torch.where(there, at, 0)], 0) for there, at in taken)
    return tuple(v.permute(2, 0, 1).to(dtype) for v in found)


def _frames(inputs, node: Node, constants: Tensors, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x, mask = (v.to(dtype) for v in inputs)
    return x, mask[..., None]


def _mask(inputs, node: Node, constants: Tensors, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x, lengths = inputs
    frames = max(0, dims.floor_divided(x.shape[1], node.attrs["add"], node.attrs["divide"]))
    return lengths[:, None].to(dtype), torch.arange(1, frames + 1, device=x.device)[None].to(dtype)


def embedding_rows(ids: Tensor, attrs: Attrs) -> tuple[Tensor, Tensor]:
    """Which rows of the position's and of the segment's table each token takes, (n, tokens) or (1, tokens)."""
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    if attrs["positions"] == "counted":
        token = ids != attrs["padding"]
        positions = attrs["padding"] + token.cumsum(1) * token
    separator = ids == attrs["separator"]
    return positions, separator.cumsum(1) - separator.long()


def _embedding(inputs, node: Node, constants: Tensors, dtype: torch.dtype) -> tuple[Tensor, ...]:
    ids = inputs[0].long()
    positions, segments = embedding_rows(ids, node.attrs)
    rows = {"word": ids, "position": positions, "segment": segments.clamp(max=len(constants["segment"]) - 1)}
    word, position, segment = (constants[table][row].to(dtype) for table, row in rows.items())
    return word, constants["word_multiplier"][ids][..., None].to(dtype), position, segment


CONTRACTIONS = {"conv1d": _conv1d, "conv2d": _conv2d, "linear": _linear}
WINDOWS = {"sum2d": _sum2d, "max2d": _max2d}
SEQUENCES = {
    "tokens": _tokens,
    "attention": _attention,
    "relative": _relative,
    "embedding": _embedding,
    "spectrum": _spectrum,
    "frames": _frames,
    "mask": _mask,
}


def operands_of(node: Node, inputs, constants: Tensors, runs: list[Run], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The operands of a node's body, integers in any type; what a loop adds up is added up in ``dtype``."""
    loop, (x, *further) = OPS[node.op].loop, inputs
    if loop in ("conv1d", "conv2d") and masked(inputs, node.constants):
        *further, mask = further
        return (CONTRACTIONS[loop](x, runs, node, constants, dtype, mask), *further)
    if loop in CONTRACTIONS:
        return (CONTRACTIONS[loop](x, runs, node, constants, dtype), *further)
    if loop in WINDOWS:
        return (WINDOWS[loop](x, node, constants),)
    if loop in SEQUENCES:
        return SEQUENCES[loop](inputs, node, constants, dtype)
    return tuple(inputs)


def arranged(node: Node, result: Tensor) -> Tensor:
    """A body's result in the layout of the node's output: attention's heads side by side, a spectrum's bands last."""
    loop = OPS[node.op].loop
    if loop == "spectrum":
        return result.permute(1, 2, 0)
    return result.transpose(1, 2).flatten(2) if loop == "attention" else result


def exact_result(node: Node, operands, constants: Tensors) -> Tensor:
    """The node's integers in its dtype: its body on integer operands, in blocks that stay in a core's cache."""
    op, dtype = OPS[node.op], getattr(torch, node.output.dtype)
    if op.loop == "move":
        return op.body(TorchDialect, operands, constants, node.attrs)
    # What is proven to fit int32 does not change in int64. Attention's many scores profit from the narrower type.
    width = torch.int32 if op.loop == "attention" else torch.int64

    def body(*operands: Tensor) -> Tensor:
        return op.body(TorchDialect, tuple(x.to(width) for x in operands), constants, node.attrs).to(dtype)

    first = operands[0]
    if op.loop == "spectrum":  # frames are independent
        step = max(1, FRAME_ELEMENTS // max(1, first[..., :1].numel()))
        blocks = zip(*(x.split(step, -1) for x in operands), strict=True)
        return arranged(node, torch.cat([body(*block) for block in blocks], -1))
    if first.device.type != "cpu" or op.loop not in (*CONTRACTIONS, "attention"):
        return arranged(node, body(*operands))
    if op.loop == "attention":  # a sentence's heads are independent
        batch, tokens = first.shape[:2], first.shape[2]
        operands = [x.expand(*batch, -1, -1).flatten(0, 1) for x in operands]
        elements = tokens * tokens
    else:  # a contraction's constants are per channel
        operands = [x.flatten(0, -2) for x in operands]
        elements = first.shape[-1]
    step = -(-CACHED_ELEMENTS * torch.get_num_threads() // elements)
    blocks = zip(*(x.split(step) for x in operands), strict=True)
    return arranged(node, torch.cat([body(*block) for block in blocks]).reshape(first.shape))


def tensors_of(constants) -> Tensors:
    return {name: torch.from_numpy(np.array(array)) for name, array in constants.items()}


def carrier(value: Value) -> torch.dtype:
    """The float type that holds every integer of a value."""
    return torch.float64 if value.dtype == "int32" else torch.float32


# ---- the backend -----------------------------------------------------------------------------------------------


def prepare(graph: Graph, device: torch.device | str = "cpu") -> Callable[..., tuple[Tensor, ...]]:
    """The graph as a function ``outputs = function(*inputs, observe=None)`` of integer tensors or arrays.

    It computes on ``device`` and equals :func:`intq.backends.reference.run` in every bit; constants are converted once,
    here. ``observe(name, tensor)`` is called with every value as it is computed. The function raises IntqError when an
    input's dtype or shape is not as declared.
    """
    steps, values = [], graph.values
    for node in graph.nodes:
        constants, runs = {k: v.to(device) for k, v in tensors_of(node.constants).items()}, []
        if OPS[node.op].loop in CONTRACTIONS:
            weight = constants.pop("weight").float()
            runs = exact_runs(weight, values[node.inputs[0]].dtype, node.attrs.get("groups", 1))
        steps.append((node, constants, runs))
    return partial(_execute, graph, steps, device)


def run(graph: Graph, *inputs: Tensor, observe: Callable[[str, Tensor], None] | None = None) -> tuple[Tensor, ...]:
    """The graph's outputs for integer tensors, on their device: :func:`prepare` for a single call."""
    return prepare(graph, inputs[0].device)(*inputs, observe=observe)


@torch.no_grad()
def _execute(graph: Graph, steps, device, *inputs: Tensor, observe=None) -> tuple[Tensor, ...]:
    check_inputs(graph.inputs, inputs)
    last_use = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
    known = {v.name: torch.as_tensor(x, device=device) for v, x in zip(graph.inputs, inputs, strict=True)}
    for i, (node, constants, runs) in enumerate(steps):
        operands = operands_of(node, [known[name] for name in node.inputs], constants, runs, torch.int64)
        known[node.name] = exact_result(node, operands, constants).contiguous()
        if observe:
            observe(node.name, known[node.name])
        for name in {*node.inputs, node.name}:
            if last_use.get(name, i) == i and name not in graph.outputs:
                del known[name]
    return tuple(known[name] for name in graph.outputs)
