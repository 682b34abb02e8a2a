"""The reference: NumPy. What it computes is what an integer graph means; when another backend differs, it is wrong.

Sums of products are taken by float64 matrix products, whose every partial sum is an integer below 2**53 (the graph's
proof bounds them by 2**31) and therefore exact in any order; a test compares them with int64 loops.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from intq import dims
from intq.graph import Graph, Node
from intq.ops import OPS
from intq.ops.attention import ZERO_POINT, split
from intq.ops.contract import masked
from intq.ops.log_mel import frame_count
from intq.ops.op import window_shape
from intq.ops.relative import met, places
from intq.value import DTYPE_RANGE, check_inputs


class NumpyDialect:
    """How bodies are spelled in NumPy (see :mod:`intq.fixedpoint`)."""

    @staticmethod
    def wide(x):
        return np.asarray(x).astype(np.int64)

    @staticmethod
    def shift_right(x, shift):
        return np.right_shift(x, shift)  # int64 where x is wide, int32 where a curve has narrowed it

    @staticmethod
    def lookup(table, x):
        return table[x]

    @staticmethod
    def pad2d(x, padding, value):
        top, left, bottom, right = padding
        n, h, w, c = x.shape
        out = np.empty((n, h + top + bottom, w + left + right, c), x.dtype)
        out[:] = value
        out[:, top : top + h, left : left + w] = x
        return out

    @staticmethod
    def shift_left(x, places):
        return np.left_shift(x, np.asarray(places, x.dtype))

    @staticmethod
    def low_bits(x, count: int):
        return np.bitwise_and(x, (1 << count) - 1)

    @staticmethod
    def narrow(x):
        return np.asarray(x).astype(np.int32)

    @staticmethod
    def within(x, low: int, high: int):
        """``x``, of which a bound is proven on paper that intervals cannot see; here it is checked in every run."""
        if np.size(x) and not (np.min(x) >= low and np.max(x) <= high):
            raise AssertionError(f"expected integers in [{low}, {high}], found [{np.min(x)}, {np.max(x)}]")
        return x

    @staticmethod
    def matmul(a, b, terms: int):
        """(..., i, k) x (..., k, j): at most ``terms`` products are summed."""
        return _exact_matmul(a, b)

    @staticmethod
    def swap(x):
        """The last two axes exchanged."""
        return np.swapaxes(x, -1, -2)

    @staticmethod
    def row_max(x):
        return np.max(x, axis=-1, keepdims=True)

    @staticmethod
    def row_sum(x, terms: int):
        """The sum over the last axis, which has at most ``terms`` elements, in the width of ``x``."""
        return np.sum(x, axis=-1, keepdims=True, dtype=x.dtype)

    @staticmethod
    def frame_sum(x, terms: int):
        """The same over the second axis of (n, frames, channels)."""
        return np.sum(x, axis=1, keepdims=True, dtype=x.dtype)

    clamp = staticmethod(np.clip)
    where = staticmethod(np.where)
    reshape = staticmethod(np.reshape)
    transpose = staticmethod(np.transpose)
    concat = staticmethod(np.concatenate)


def run(
    graph: Graph,
    *inputs: np.ndarray,
    observe: Callable[[str, np.ndarray], None] | None = None,
) -> tuple[np.ndarray, ...]:
    """The graph's outputs for ``inputs`` (arrays of the declared dtypes and shapes, any batch).

    ``observe(name, array)`` is called with every value as it is computed. Values are freed after their last use.
    Raises IntqError when an input's dtype or shape is not as declared.
    """
    check_inputs(graph.inputs, inputs)
    last_use = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
    known = dict(zip((v.name for v in graph.inputs), inputs, strict=True))
    for i, node in enumerate(graph.nodes):
        known[node.name] = run_node(node, [known[name] for name in node.inputs])
        if observe:
            observe(node.name, known[node.name])
        for name in {*node.inputs, node.name}:
            if last_use.get(name, i) == i and name not in graph.outputs:
                del known[name]
    return tuple(known[name] for name in graph.outputs)


def run_node(node: Node, inputs: list[np.ndarray]) -> np.ndarray:
    """One node: its loop turns the inputs into operands, its body does the arithmetic."""
    op = OPS[node.op]
    operands = _LOOPS[op.loop](inputs, node)
    result = op.body(NumpyDialect, operands, node.constants, node.attrs)
    if op.loop == "attention":
        result = result.transpose(0, 2, 1, 3).reshape(inputs[0].shape)  # (n, heads, tokens, size) -> (n, tokens, all)
    if op.loop == "spectrum":
        result = result.transpose(1, 2, 0)  # (band, n, frame) -> (n, frame, band)
    return np.ascontiguousarray(result.astype(node.output.dtype, copy=False))


def _pointwise(inputs, node):
    return tuple(x.astype(np.int32) for x in inputs)


def _move(inputs, node):
    return tuple(inputs)


def _exact_matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.matmul(a.astype(np.float64), b.astype(np.float64)).astype(np.int32)


def _windows(x: np.ndarray, kernel, stride, dilation=(1, 1)) -> np.ndarray:
    """Views of a padded (n, h, w, c) image: (n, oh, ow, kh, kw, c)."""
    (kh, kw), (dh, dw) = kernel, dilation
    view = np.lib.stride_tricks.sliding_window_view(x, (dh * (kh - 1) + 1, dw * (kw - 1) + 1), axis=(1, 2))
    view = view[:, :: stride[0], :: stride[1], :, ::dh, ::dw]  # (n, oh, ow, c, kh, kw)
    return view.transpose(0, 1, 2, 4, 5, 3)


def _conv1d(inputs, node):
    """A convolution over an image that is one pixel wide."""
    x, residual = _unmasked(inputs, node)
    a, c = node.attrs, node.constants
    before, after = a["padding"]
    padded = NumpyDialect.pad2d(x[:, :, None], (before, 0, after, 0), c["pad_value"])
    total = _convolved(padded, c["weight"][:, :, None], (a["stride"], 1), (a["dilation"], 1), a["groups"])
    return (total[:, :, 0], *residual)


def _conv2d(inputs, node):
    x, residual = _unmasked(inputs, node)
    a, c = node.attrs, node.constants
    padded = NumpyDialect.pad2d(x, a["padding"], c["pad_value"])
    return (_convolved(padded, c["weight"], a["stride"], a["dilation"], a["groups"]), *residual)


def _unmasked(inputs, node):
    """(a convolution's input, in which frames that the mask leaves out count as padding; its residual, if any)."""
    x, *further = inputs
    if masked(inputs, node.constants):
        mask = further.pop()
        x = np.where(mask.reshape(*mask.shape, *[1] * (x.ndim - 2)) == 1, x, node.constants["pad_value"])
    return x, tuple(f.astype(np.int32) for f in further)


def _convolved(padded: np.ndarray, weight: np.ndarray, stride, dilation, groups: int) -> np.ndarray:
    """(n, h, w, ci) with (co, kh, kw, ci/groups) -> int32 (n, oh, ow, co)."""
    co, kh, kw, ci = weight.shape
    windows = _windows(padded, (kh, kw), stride, dilation)
    n, oh, ow = windows.shape[:3]
    if ci == 1:  # depthwise: a sum of kh * kw products, not a matrix product
        taps = weight.reshape(groups, co // groups, kh, kw).astype(np.int32)  # (c, multiplier, kh, kw)
        total = np.zeros((n, oh, ow, groups, co // groups), np.int32)
        for i in range(kh):
            for j in range(kw):
                total += windows[:, :, :, i, j, :, None].astype(np.int32) * taps[:, :, i, j]
        return total.reshape(n, oh, ow, co)
    outs = []
    for g in range(groups):
        rows = windows[..., g * ci : (g + 1) * ci].reshape(n * oh * ow, kh * kw * ci)
        columns = weight[g * co // groups : (g + 1) * co // groups].reshape(co // groups, -1)
        outs.append(_exact_matmul(rows, columns.T).reshape(n, oh, ow, co // groups))
    return outs[0] if groups == 1 else np.concatenate(outs, axis=-1)


def _linear(inputs, node):
    x, *further = inputs
    return (_exact_matmul(x, node.constants["weight"].T), *(f.astype(np.int32) for f in further))


def _pooled(x: np.ndarray, node: Node, pad_value, reduce) -> np.ndarray:
    """Accumulate over the taps of the window, each a strided view of the padded image."""
    a = node.attrs
    (kh, kw), (sh, sw) = a["kernel"], a["stride"]
    oh, ow = window_shape(x.shape[1:3], a["kernel"], a["stride"], a["padding"])
    padded = NumpyDialect.pad2d(x, a["padding"], pad_value)
    total = None
    for i in range(kh):
        for j in range(kw):
            tap = padded[:, i : i + (oh - 1) * sh + 1 : sh, j : j + (ow - 1) * sw + 1 : sw].astype(np.int32)
            total = tap if total is None else reduce(total, tap)
    return total


def _sum2d(inputs, node):
    return (_pooled(inputs[0], node, node.constants["pad_value"], np.add),)


def _max2d(inputs, node):
    (x,) = inputs
    return (_pooled(x, node, DTYPE_RANGE[x.dtype.name][0], np.maximum),)


def _rows(inputs, node):
    return tuple(x.astype(np.int32) for x in inputs)


def _tokens(inputs, node):
    x, mask = (a.astype(np.int32) for a in inputs)
    return np.sum(x * mask[..., None], axis=1, dtype=np.int32), np.sum(mask, axis=1, keepdims=True, dtype=np.int32)


def _attention(inputs, node):
    """(n, tokens, heads * size) -> (n, heads, tokens, size), int32 without the zero point; the result goes back."""
    heads = node.attrs["heads"]
    qkv, bias, mask = split(inputs, node.attrs)
    apart = tuple(_heads_apart(x, heads) for x in qkv)
    return (*apart, *bias, *(m.astype(np.int32)[:, None, None, :] for m in mask))


def _heads_apart(x: np.ndarray, heads: int) -> np.ndarray:
    """(n, tokens, heads * size) -> (n, heads, tokens, size), int32 without the zero point."""
    n, tokens, channels = x.shape
    return (x.astype(np.int32) - ZERO_POINT).reshape(n, tokens, heads, channels // heads).transpose(0, 2, 1, 3)


def _relative(inputs, node):
    table = node.constants["distances"]
    q = _heads_apart(inputs[0], len(table))
    tokens = q.shape[2]
    by_distance = _exact_matmul(q, met(table, tokens).swapaxes(1, 2))  # (n, head, query, distance)
    return (np.take_along_axis(by_distance, np.broadcast_to(places(tokens), (*q.shape[:3], tokens)), 3),)


def _spectrum(inputs, node):
    """The samples in the window of every frame, and those before them: (point, n, frame)."""
    (x, lengths), a = inputs, node.attrs
    fft, frames = node.constants["window"].shape[1], frame_count(x.shape[1], a)
    ends = np.minimum(lengths, x.shape[1]).astype(np.int64)[:, None, None]  # (n, 1, 1)
    frame, point = np.arange(frames)[:, None], np.arange(fft)
    place = np.broadcast_to(frame * a["hop"] + point - fft // 2, (len(x), frames, fft))
    if a["padding"] == "reflect":
        place = np.where(place < 0, -place, np.where(place >= ends, 2 * (ends - 1) - place, place))
    inside = (place >= 0) & (place < ends) & (frame < (ends + a["hop"] * a["extra_frame"]) // a["hop"])
    row = np.arange(len(x))[:, None, None]
    now = np.where(inside, x[row, np.where(inside, place, 0)], 0)
    inside &= place > 0
    before = np.where(inside, x[row, np.where(inside, place - 1, 0)], 0)
    return tuple(v.transpose(2, 0, 1).astype(np.int32) for v in (now, before))


def _frames(inputs, node):
    x, mask = (v.astype(np.int32) for v in inputs)
    return x, mask[..., None]


def _mask(inputs, node):
    x, lengths = inputs
    frames = dims.floor_divided(x.shape[1], node.attrs["add"], node.attrs["divide"])
    return lengths[:, None], np.arange(1, max(0, frames) + 1, dtype=np.int32)[None]


def embedding_rows(ids: np.ndarray, attrs) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of the position's and of the segment's table each token takes, (n, tokens) or (1, tokens)."""
    if attrs["positions"] == "counted":
        token = ids != attrs["padding"]
        positions = attrs["padding"] + np.cumsum(token, axis=1) * token
    else:
        positions = np.arange(ids.shape[1])[None]
    separator = (ids == attrs["separator"]).astype(np.int64)
    return positions, np.cumsum(separator, axis=1) - separator


def _embedding(inputs, node):
    (ids,), c = inputs, node.constants
    positions, segments = embedding_rows(ids, node.attrs)
    segments = np.minimum(segments, len(c["segment"]) - 1)
    rows = (c["word"][ids], c["word_multiplier"][ids][..., None], c["position"][positions], c["segment"][segments])
    return tuple(x.astype(np.int32) for x in rows)


_LOOPS = {
    "pointwise": _pointwise,
    "rows": _rows,
    "tokens": _tokens,
    "attention": _attention,
    "relative": _relative,
    "embedding": _embedding,
    "spectrum": _spectrum,
    "frames": _frames,
    "mask": _mask,
    "move": _move,
    "conv1d": _conv1d,
    "conv2d": _conv2d,
    "linear": _linear,
    "sum2d": _sum2d,
    "max2d": _max2d,
}
