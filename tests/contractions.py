"""Convolutions and linear layers at the edges of their shapes, many in one network: it compiles once."""

import numpy as np

from intq.curves import fit
from intq.graph import Graph, make_node
from intq.value import DTYPE_RANGE, Value


def image(name: str, *shape: int, dtype: str = "uint8") -> Value:
    low, high = {"uint8": (0, 255), "int16": (-(2**15), 2**15 - 1)}[dtype]
    return Value(name, ("n", *shape), dtype, low, high)


def spread(weight: np.ndarray, rng: np.random.Generator) -> dict:
    """Rescale constants with which random input reaches most of uint8 and beyond both of its ends."""
    co = len(weight)
    shift = np.full(co, 30 + int(np.log2(max(1.0, (weight.size / co) ** 0.5))) + 6, np.int32)
    zero = rng.integers(0, 255, co).astype(np.int64)
    return {
        "multiplier": rng.integers(2**30, 2**31, co).astype(np.int32),
        "offset": (zero << shift) + (np.int64(1) << (shift - 1)),
        "shift": shift,
    }


def convolution(number, rng, h, w, ci, co, kernel, stride, padding, dilation=(1, 1), groups=1, extreme=False):
    """(input, node) of one convolution with random, or only the largest, weights."""
    x = image(f"x{number}", h, w, ci)
    shape = (co, *kernel, ci // groups)
    weight = np.full(shape, 127) if extreme else rng.integers(-127, 128, shape)
    weight = (weight * np.where(np.arange(co) % 2, -1, 1)[:, None, None, None]).astype(np.int8)
    constants = {"weight": weight, "pad_value": rng.integers(0, 256, ci).astype(np.uint8), **spread(weight, rng)}
    attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "low": 0, "high": 255}
    return (x,), make_node("conv2d", f"y{number}", (x,), dtype="uint8", attrs=attrs, constants=constants)


def shapes(rng) -> Graph:
    """One network of many convolutions and poolings side by side: it compiles once."""
    one, same = (1, 1), (1, 1, 1, 1)
    cases = [  # h, w, ci, co, kernel, stride, padding, dilation, groups
        (7, 7, 192, 96, (1, 1), one, (0, 0, 0, 0)),  # read in place, 49 rows
        (9, 11, 100, 80, (1, 1), one, (0, 0, 0, 0)),  # K beyond one tile, not a multiple of it
        (6, 7, 66, 24, (1, 1), one, (0, 0, 0, 0)),  # K no multiple of four
        (8, 8, 64, 64, (1, 1), (2, 2), (0, 0, 0, 0)),
        (3, 3, 64, 130, (1, 1), one, (0, 0, 0, 0)),  # fewer rows than a tile
        (14, 14, 32, 64, (3, 3), one, same),  # read from a padded copy
        (13, 12, 16, 72, (3, 3), one, (2, 2, 2, 2), (2, 2)),
        (12, 12, 24, 40, (5, 5), one, (2, 2, 2, 2)),
        (17, 17, 32, 48, (7, 1), one, (3, 0, 3, 0)),
        (17, 17, 32, 48, (1, 7), one, (0, 3, 0, 3)),
        (66, 66, 3, 32, (3, 3), (2, 2), same),  # windows gathered tile by tile
        (67, 67, 3, 16, (3, 3), (2, 2), (0, 0, 0, 0)),  # the same without padding
        (64, 64, 3, 64, (7, 7), (2, 2), (3, 3, 3, 3)),
        (16, 16, 64, 64, (3, 3), (2, 2), (0, 0, 1, 1)),
        (10, 10, 32, 64, (3, 3), one, same, one, 4),
        # depthwise: 64, 32 and 16 channels at a time read in place, others from a padded copy
        (7, 7, 64, 64, (3, 3), one, same, one, 64),
        (8, 9, 96, 96, (3, 3), (2, 2), (0, 0, 1, 1), one, 96),
        (12, 11, 144, 144, (5, 5), one, (2, 2, 2, 2), one, 144),
        (6, 6, 32, 32, (5, 5), (2, 2), (2, 2, 2, 2), one, 32),
        (7, 8, 16, 16, (7, 7), one, (3, 3, 3, 3), one, 16),
        (9, 12, 48, 48, (3, 3), one, (2, 2, 2, 2), (2, 2), 48),
        (1, 1, 16, 16, (3, 3), one, same, one, 16),
        (5, 6, 24, 24, (3, 3), one, same, one, 24),
    ]
    parts = [convolution(i, rng, *case) for i, case in enumerate(cases)]
    parts.append(convolution(len(parts), rng, 6, 6, 512, 48, (3, 3), one, same, extreme=True))
    for h, w, c, k, s, pad in [(7, 7, 64, 3, 1, 1), (9, 10, 96, 3, 2, 1), (8, 8, 144, 5, 1, 2), (8, 8, 19, 3, 1, 1)]:
        shift = 30 + (k * k).bit_length()
        constants = {
            "pad_value": rng.integers(0, 256, c).astype(np.uint8),
            "multiplier": np.array(2**30 + 12345, np.int32),
            "offset": np.array(1 << (shift - 1), np.int64),
            "shift": np.array(shift, np.int32),
        }
        x = image(f"x{len(parts)}", h, w, c)
        attrs = {"kernel": (k, k), "stride": (s, s), "padding": (pad,) * 4, "low": 3, "high": 200}
        node = make_node("avg_pool2d", f"y{len(parts)}", (x,), dtype="uint8", attrs=attrs, constants=constants)
        parts.append(((x,), node))
    return Graph(tuple(x for xs, _ in parts for x in xs), tuple(n for _, n in parts), tuple(n.name for _, n in parts))


def linear(number, rng, k, co, dtype="uint8", residual=None, curve=False):
    """(inputs, node) of a linear layer over n texts of s tokens."""
    inputs = (Value(f"x{number}", ("n", "s", k), "uint8", 0, 255),)
    weight = rng.integers(-127, 128, (co, k)).astype(np.int8)
    constants = {"weight": weight, **spread(weight, rng)}
    low, high = DTYPE_RANGE[dtype]
    attrs = {"low": low, "high": high}
    if dtype == "int16":
        constants["shift"] = constants["shift"] - np.int32(7)
    if residual:
        inputs += (Value(f"r{number}", ("n", "s", co), residual, *DTYPE_RANGE[residual]),)
        constants["residual_multiplier"] = rng.integers(-(2**30), 2**30, co).astype(np.int32)
    if curve:
        made = fit(np.tanh, -4.0, 4.0, 2 / high, 3, dtype)
        constants["curve"] = made.coefficients
        constants["shift"] = constants["shift"] - np.int32(7)
        attrs |= {"drop": made.drop, "function": "tanh"}
    node = make_node("linear", f"y{number}", inputs, dtype=dtype, attrs=attrs, constants=constants)
    return inputs, node


def linears(rng) -> Graph:
    """Linear layers side by side: K and columns that fill tiles and that do not."""
    cases = [  # k, co, dtype, residual, curve
        (768, 64, "uint8", None, False),
        (832, 96, "int16", "int16", False),  # 13 steps of K
        (100, 40, "int16", "int32", False),  # the last step overlaps the one before, columns do not fill a block
        (64, 33, "uint8", "uint8", False),
        (36, 3, "int32", None, False),
        (66, 20, "uint8", None, False),  # rows that AMX does not read in place
        (96, 64, "uint8", None, True),
        (48, 40, "int16", None, True),
        (3072, 64, "uint8", None, False),  # the rows of a core's cache are few
    ]
    parts = [linear(i, rng, *case) for i, case in enumerate(cases)]
    return Graph(tuple(x for xs, _ in parts for x in xs), tuple(n for _, n in parts), tuple(n.name for _, n in parts))


def over_frames(number, rng, ci, co, k, stride, dilation, groups=1, dtype="uint8", residual=None, masked=False):
    """(inputs, node) of a convolution over s frames; of stride 1, if there is a residual."""
    inputs = (Value(f"x{number}", ("n", "s", ci), "uint8", 0, 255),)
    weight = rng.integers(-127, 128, (co, k, ci // groups)).astype(np.int8)
    pad = dilation * (k - 1)
    constants = {"weight": weight, "pad_value": rng.integers(0, 256, ci).astype(np.uint8), **spread(weight, rng)}
    attrs = {"stride": stride, "padding": (pad // 2, pad - pad // 2), "dilation": dilation, "groups": groups}
    low, high = DTYPE_RANGE[dtype]
    if residual:
        inputs += (Value(f"r{number}", ("n", "s", co), residual, *DTYPE_RANGE[residual]),)
        constants["residual_multiplier"] = rng.integers(-(2**30), 2**30, co).astype(np.int32)
    if masked:
        inputs += (Value(f"m{number}", ("n", "s"), "uint8", 0, 1),)
    attrs |= {"low": low, "high": high}
    return inputs, make_node("conv1d", f"y{number}", inputs, dtype=dtype, attrs=attrs, constants=constants)


def convolutions_over_frames(rng) -> Graph:
    """Channels that fill the steps of K and that do not, few taps and many."""
    cases = [  # ci, co, k, stride, dilation, groups, dtype, residual, masked
        (64, 64, 11, 2, 1),
        (128, 40, 5, 1, 2, 1, "uint8", "uint8", True),
        (192, 33, 3, 3, 1, 1, "int32"),
        (80, 48, 4, 1, 1, 1, "int16", "int16"),  # taps together, the last step overlaps the one before
        (80, 32, 3, 1, 2, 1, "uint8", None, True),  # tap by tap
        (90, 24, 3, 1, 1),  # K no multiple of four
        (90, 24, 3, 2, 3),
        (10, 24, 3, 1, 2),  # few products
        (1, 16, 10, 5, 1),  # samples
        (320, 64, 1, 2, 1),
        (512, 96, 21, 1, 1, 1, "uint8", "uint8", True),  # rows take little beside the weights
        (96, 64, 5, 1, 1, 2),
    ]
    parts = [over_frames(i, rng, *case) for i, case in enumerate(cases)]
    return Graph(tuple(x for xs, _ in parts for x in xs), tuple(n for _, n in parts), tuple(n.name for _, n in parts))


def many_weights(rng) -> Graph:
    """Convolutions whose threads unpack blocks of narrow weights: of columns of their own, or for rows of their own."""
    one, none, same = (1, 1), (0, 0, 0, 0), (1, 1, 1, 1)
    cases = [  # h, w, ci, co, kernel, stride, padding, dilation, groups
        (7, 7, 512, 160, (3, 3), one, same),  # columns, the last block is narrower
        (7, 6, 1024, 80, (1, 1), one, none),
        (3, 3, 512, 144, (3, 3), one, same),  # windows copied out
        (14, 14, 128, 136, (3, 3), one, same),  # rows
        (40, 40, 64, 130, (3, 3), one, same),  # rows, many tiles of them
        (40, 40, 128, 72, (3, 3), one, same),
        (12, 12, 320, 256, (3, 3), one, same, one, 2),
        (29, 29, 100, 96, (5, 5), (2, 2), (2, 2, 2, 2)),
    ]
    parts = [convolution(i, rng, *case) for i, case in enumerate(cases)]
    parts.append(convolution(len(parts), rng, 6, 6, 512, 48, (3, 3), one, same, extreme=True))
    return Graph(tuple(x for xs, _ in parts for x in xs), tuple(n for _, n in parts), tuple(n.name for _, n in parts))
