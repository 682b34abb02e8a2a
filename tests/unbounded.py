"""The definition of every operation on Python's integers, which never wrap: its body, and its loop written out."""

import itertools
import math

import numpy as np

from intq.backends.reference import NumpyDialect
from intq.graph import Node
from intq.ops import OPS
from intq.ops.attention import ZERO_POINT
from intq.value import DTYPE_RANGE


class Unbounded:
    """How bodies are spelled on arrays of Python's integers; roots and quotients are those of the language."""

    wide = staticmethod(lambda x: np.asarray(x).astype(object))
    shift_right = staticmethod(lambda x, shift: x >> np.asarray(shift).astype(object))
    clamp = staticmethod(lambda x, low, high: np.minimum(np.maximum(x, low), high))
    lookup = staticmethod(lambda table, x: table[x.astype(np.int64)].astype(object))
    shift_left = staticmethod(lambda x, places: x << places)
    low_bits = staticmethod(lambda x, count: x & ((1 << count) - 1))
    narrow = staticmethod(lambda x: x)
    isqrt = staticmethod(lambda x: np.vectorize(math.isqrt, otypes=[object])(x))
    reciprocal = staticmethod(lambda d, bits: (1 << bits) // d)
    matmul = staticmethod(lambda a, b, terms: a @ b)
    row_max = staticmethod(lambda x: x.max(-1, keepdims=True))
    row_sum = staticmethod(lambda x, terms: x.sum(-1, keepdims=True))
    frame_sum = staticmethod(lambda x, terms: x.sum(1, keepdims=True))
    quotient = staticmethod(lambda n, d: n // d)
    where, reshape, transpose, concat = np.where, np.reshape, np.transpose, np.concatenate
    pad2d, within, swap = NumpyDialect.pad2d, NumpyDialect.within, NumpyDialect.swap

    @staticmethod
    def leading(x):
        place = np.vectorize(lambda v: v.bit_length() - 1, otypes=[object])(x)
        return place, x << (61 - place)


def padded(x: np.ndarray, padding, value) -> np.ndarray:
    top, left, bottom, right = padding
    n, h, w, c = x.shape
    out = np.zeros((n, h + top + bottom, w + left + right, c), object) + np.asarray(value).astype(object)
    out[:, top : top + h, left : left + w] = x
    return out


def windows(x: np.ndarray, kernel, stride, dilation=(1, 1)):
    """((row, column), (n, kh, kw, c)) of every window."""
    (kh, kw), (sh, sw), (dh, dw) = kernel, stride, dilation
    oh, ow = (
        (size - d * (k - 1) - 1) // s + 1 for size, k, s, d in zip(x.shape[1:3], kernel, stride, dilation, strict=True)
    )
    for i, j in itertools.product(range(oh), range(ow)):
        yield (i, j), x[:, i * sh : i * sh + dh * (kh - 1) + 1 : dh, j * sw : j * sw + dw * (kw - 1) + 1 : dw]


def loop_conv2d(node, x, *further):
    weight, a = node.constants["weight"].astype(np.int64), node.attrs
    co, groups = len(weight), a["groups"]
    if len(further) > ("residual_multiplier" in node.constants):
        *further, mask = further
        x = np.where(mask.astype(bool)[:, :, None, None], x, node.constants["pad_value"])
    x = padded(x, a["padding"], node.constants["pad_value"]).astype(np.int64)
    every = list(windows(x, weight.shape[1:3], a["stride"], a["dilation"]))
    out = np.zeros((len(x), *(1 + at for at in every[-1][0]), co), object)
    for (i, j), window in every:
        taps = window.reshape(*window.shape[:3], groups, -1)  # (n, kh, kw, group, ci)
        kernels = weight.reshape(groups, co // groups, *weight.shape[1:])  # (group, co, kh, kw, ci)
        out[:, i, j] = np.einsum("nhwgc,gohwc->ngo", taps, kernels).reshape(len(x), co)
    return (out, *further)


def loop_conv1d(node, x, *further):
    """Frame by frame, tap by tap."""
    weight, a = node.constants["weight"].astype(object), node.attrs
    further = list(further)
    mask = further.pop() if len(further) > ("residual_multiplier" in node.constants) else np.ones(x.shape[:2], object)
    (co, k, per), (n, frames, _) = weight.shape, x.shape
    places = (frames + sum(a["padding"]) - a["dilation"] * (k - 1) - 1) // a["stride"] + 1
    out = np.zeros((n, places, co), object)
    for row, place, tap, o in itertools.product(range(n), range(places), range(k), range(co)):
        at = place * a["stride"] + tap * a["dilation"] - a["padding"][0]
        first = o // (co // a["groups"]) * per
        inside = 0 <= at < frames and mask[row, at]
        taken = x[row, at] if inside else node.constants["pad_value"].astype(object)
        out[row, place, o] += (taken[first : first + per] * weight[o, tap]).sum()
    return (out, *further)


def loop_linear(node, x, *further):
    return (np.einsum("...k,ok->...o", x.astype(np.int64), node.constants["weight"].astype(np.int64)), *further)


def loop_pool(node, x, pad_value, reduce):
    out = np.zeros((len(x), *node.output.shape[1:]), object)
    for (i, j), window in windows(
        padded(x, node.attrs["padding"], pad_value), node.attrs["kernel"], node.attrs["stride"]
    ):
        out[:, i, j] = reduce(window, axis=(1, 2))
    return (out,)


def loop_tokens(node, x, mask):
    total = np.array(
        [
            sum((row * m for row, m in zip(*pair, strict=True)), start=0 * pair[0][0])
            for pair in zip(x, mask, strict=True)
        ]
    )
    return total, np.array([[sum(row)] for row in mask], object)


def loop_attention(node, q, k, v, *mask):
    """(n, heads, tokens, size) without the zero point; masks (n, 1, 1, tokens)."""
    size = node.attrs["size"]
    heads = [slice(at, at + size) for at in range(0, q.shape[-1], size)]
    split = [np.stack([x[..., head] - ZERO_POINT for head in heads], 1) for x in (q, k, v)]
    return (*split, *(m[:, None, None] for m in mask))


def loop_embedding(node, ids):
    """Token by token, as a reader of the documentation would count."""
    a, c = node.attrs, node.constants
    rows = np.zeros((4, *ids.shape), object)  # of every operand
    for n, sentence in enumerate(ids):
        tokens = separators = 0
        for at, word in enumerate(sentence):
            tokens += word != a["padding"]
            counted = a["padding"] + (tokens if word != a["padding"] else 0)
            position = counted if a["positions"] == "counted" else at
            rows[:, n, at] = word, word, position, min(separators, len(c["segment"]) - 1)
            separators += word == a["separator"]
    word, again, position, segment = rows.astype(np.int64)
    return c["word"][word], c["word_multiplier"][again][..., None], c["position"][position], c["segment"][segment]


def loop_spectrum(node, x, lengths):
    """Sample by sample, from each row padded as it would be if it were alone."""
    a, fft = node.attrs, node.constants["window"].shape[1]
    rows = []
    for row, length in zip(x, lengths, strict=True):
        row = list(row[:length])
        pairs = {i: (v, row[i - 1] if i else 0) for i, v in enumerate(row)}
        if a["padding"] == "reflect":
            last = len(row) - 1
            pairs |= {-i: pairs[i] for i in range(1, last + 1)} | {
                last + i: pairs[last - i] for i in range(1, last + 1)
            }
        frames = [{} for _ in range((x.shape[1] + a["hop"] * a["extra_frame"]) // a["hop"])]
        for f in range((len(row) + a["hop"] * a["extra_frame"]) // a["hop"]):
            frames[f] = {j: pairs.get(f * a["hop"] + j - fft // 2, (0, 0)) for j in range(fft)}
        rows.append([[frame.get(j, (0, 0)) for j in range(fft)] for frame in frames])
    return np.array(rows, object).transpose(3, 2, 0, 1)  # (n, frame, point, now and before) ->


def loop_mask(node, x, lengths):
    count = (x.shape[1] + node.attrs["add"]) // node.attrs["divide"]
    return lengths[:, None], np.arange(1, count + 1)[None]


UNBOUNDED_LOOPS = {
    "pointwise": lambda node, *xs: xs,
    "rows": lambda node, x: (x,),
    "tokens": loop_tokens,
    "attention": loop_attention,
    "embedding": loop_embedding,
    "spectrum": loop_spectrum,
    "frames": lambda node, x, mask: (x, mask[..., None]),
    "mask": loop_mask,
    "move": lambda node, *xs: xs,
    "conv1d": loop_conv1d,
    "conv2d": loop_conv2d,
    "linear": loop_linear,
    "sum2d": lambda node, x: loop_pool(node, x, node.constants["pad_value"], np.sum),
    "max2d": lambda node, x: loop_pool(node, x, DTYPE_RANGE[node.output.dtype][0], np.max),
}


def unbounded(node: Node, *inputs: np.ndarray) -> np.ndarray:
    op = OPS[node.op]
    operands = UNBOUNDED_LOOPS[op.loop](node, *(x.astype(object) for x in inputs))
    operands = tuple(np.asarray(x).astype(object) for x in operands)
    result = op.body(Unbounded, operands, node.constants, node.attrs)
    if op.loop == "spectrum":
        return result.transpose(1, 2, 0)
    return np.concatenate(list(result.swapaxes(0, 1)), -1) if op.loop == "attention" else result
