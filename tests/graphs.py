"""Random small integer networks that use every operation of a vision network, for tests of backends and artifacts.

Scales are chosen so that values spread over their range: some clamp, most do not, and roundings are not trivial.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from intq.fixedpoint import dyadic_terms, offset_of
from intq.graph import Graph, Node, make_node
from intq.ops import OPS
from intq.ops.contract import weight_limit
from intq.ops.op import window_shape
from intq.value import DTYPE_RANGE, Value

# What a value of each dtype typically deviates from its zero point by, after the rescales chosen here.
SPREAD = {"uint8": 60.0, "int16": 9000.0, "int32": 2.0**22}
FUNCTIONS = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "tanh": np.tanh,
}


@dataclass
class Network:
    """A graph under construction."""

    rng: np.random.Generator
    nodes: list[Node] = field(default_factory=list)

    def emit(self, op, inputs, dtype, scale, zero_point, attrs=None, constants=None) -> Value:
        name = f"{op}.{len(self.nodes)}"
        node = make_node(
            op,
            name,
            inputs,
            dtype=dtype,
            scale=scale,
            zero_point=zero_point,
            attrs=attrs,
            constants={key: np.asarray(value) for key, value in (constants or {}).items()},
            source=f"module.{len(self.nodes)}",
        )
        self.nodes.append(node)
        return node.output

    def one_of(self, *choices):
        return choices[self.rng.integers(len(choices))]

    def meaning(self, dtype: str) -> tuple[float, int]:
        """A scale and a zero point for a new value."""
        scale = float(self.rng.uniform(0.02, 0.06)) * SPREAD["uint8"] / SPREAD[dtype]
        return scale, int(self.rng.integers(0, 160)) if dtype == "uint8" else 0


def _limits(net: Network, dtype: str, zero_point: int) -> dict:
    """A range to clamp to: the dtype's, or a fused ReLU's."""
    low, high = DTYPE_RANGE[dtype]
    return {"low": net.one_of(low, max(low, zero_point)), "high": high}


def _bias(net: Network, dtype: str, channels: int) -> np.ndarray:
    return net.rng.normal(0, 0.4 * SPREAD[dtype], channels)


def contraction(
    net: Network, op: str, x: Value, weight: np.ndarray, dtype: str, attrs: dict, residual=None, zero_point=None
) -> Value:
    scale, free = net.meaning(dtype)
    zero_point = free if zero_point is None else zero_point
    products = weight[0].size
    spread = np.sqrt(products) * weight.std(axis=tuple(range(1, weight.ndim))) * SPREAD["uint8"] + 1.0
    reals = [SPREAD[dtype] / spread * net.rng.uniform(0.5, 1.5, len(weight))]
    inputs, constants = [x], {"weight": weight}
    bias = _bias(net, dtype, len(weight))
    bias -= reals[0] * weight.reshape(len(weight), -1).sum(1, dtype=np.int64) * x.zero_point
    if residual is not None:
        reals.append(np.full(len(weight), SPREAD[dtype] / SPREAD[residual.dtype]))
        bias -= reals[1] * residual.zero_point
        inputs.append(residual)
    multipliers, shift = dyadic_terms(reals)
    constants |= dict(zip(("multiplier", "residual_multiplier"), multipliers, strict=False))
    constants |= {"offset": offset_of(bias, shift, zero_point), "shift": shift}
    if op == "conv2d":
        constants["pad_value"] = np.full(x.channels, x.zero_point, np.uint8)
    attrs = attrs | _limits(net, dtype, zero_point)
    return net.emit(op, inputs, dtype, scale, zero_point, attrs, constants)


def convolution(net: Network, x: Value, co: int, kernel=1, stride=1, groups=1, dtype="uint8", residual=None) -> Value:
    kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
    x = eight_bits(net, x)
    padding = (kh // 2, kw // 2, (kh - 1) // 2, (kw - 1) // 2)
    if net.rng.random() < 0.3:  # where an even side is halved, some frameworks pad one side only
        padding = (padding[2], padding[3], padding[0], padding[1])
    weight = np.clip(np.rint(net.rng.normal(0, 40, (co, kh, kw, x.channels // groups))), -127, 127).astype(np.int8)
    attrs = {"stride": (stride, stride), "padding": padding, "dilation": (1, 1), "groups": groups}
    return contraction(net, "conv2d", x, weight, dtype, attrs, residual)


def eight_bits(net: Network, x: Value) -> Value:
    """x as uint8, which contractions and tables take."""
    return x if x.dtype == "uint8" else requantize(net, x, "uint8")


def requantize(net: Network, x: Value, dtype: str) -> Value:
    scale, zero_point = net.meaning(dtype)
    (multiplier,), shift = dyadic_terms([SPREAD[dtype] / SPREAD[x.dtype]])
    offset = offset_of(-x.zero_point * SPREAD[dtype] / SPREAD[x.dtype], shift, zero_point)
    constants = {"multiplier": multiplier, "offset": offset, "shift": shift}
    return net.emit("requantize", [x], dtype, scale, zero_point, _limits(net, dtype, zero_point), constants)


# ---- blocks: each takes a network and an (n, h, w, c) value and returns one -------------------------------------


def bottleneck(net: Network, x: Value) -> Value:
    """ResNet: two convolutions and the sum with the input inside the second."""
    inner = convolution(net, x, net.one_of(8, 24), kernel=1)
    return convolution(net, inner, x.channels, 3, dtype=net.one_of("uint8", "int16"), residual=x)


def inverted_residual(net: Network, x: Value) -> Value:
    """MobileNetV2: expand, depthwise, project, add; the sum in 16 bits."""
    wide = convolution(net, x, 2 * x.channels)
    wide = convolution(net, wide, wide.channels, net.one_of(3, 5), net.one_of(1, 2), groups=wide.channels)
    out = convolution(net, wide, net.one_of(x.channels, 12), dtype=net.one_of("uint8", "int16"))
    return add(net, x, out) if out.shape == x.shape else out


def add(net: Network, a: Value, b: Value) -> Value:
    dtype = net.one_of("uint8", "int16")
    scale, zero_point = net.meaning(dtype)
    reals = [SPREAD[dtype] / SPREAD[v.dtype] for v in (a, b)]
    (m_a, m_b), shift = dyadic_terms(reals)
    offset = offset_of(-reals[0] * a.zero_point - reals[1] * b.zero_point, shift, zero_point)
    constants = {"multiplier_a": m_a, "multiplier_b": m_b, "offset": offset, "shift": shift}
    return net.emit("add", [a, b], dtype, scale, zero_point, _limits(net, dtype, zero_point), constants)


def squeeze_excitation(net: Network, x: Value) -> Value:
    """A gate per channel from the mean of the image, by a sigmoid's table; and the product with it."""
    gate = lookup(net, convolution(net, mean(net, x), x.channels), "sigmoid")
    scale, zero_point = net.meaning("uint8")
    real = SPREAD["uint8"] / SPREAD[x.dtype] / 100
    (multiplier,), shift = dyadic_terms([real])
    constants = {"multiplier": multiplier, "offset": offset_of(0.0, shift, zero_point), "shift": shift}
    attrs = {"zero_point_a": x.zero_point, "zero_point_b": gate.zero_point, **_limits(net, "uint8", zero_point)}
    return net.emit("mul", [x, gate], "uint8", scale, zero_point, attrs, constants)


def activation(net: Network, x: Value) -> Value:
    return lookup(net, x, net.one_of(*FUNCTIONS))


def lookup(net: Network, x: Value, function: str) -> Value:
    """The table of a function, its output's range the function's over the input's."""
    x = eight_bits(net, x)
    y = FUNCTIONS[function](x.scale * (np.arange(256) - x.zero_point))
    scale = float(max(y.max() - y.min(), 1e-3)) / 255
    zero_point = int(np.clip(np.rint(-y.min() / scale), 0, 255))
    table = np.clip(np.floor(y / scale + zero_point + 0.5), 0, 255).astype(np.uint8)
    return net.emit("lookup", [x], "uint8", scale, zero_point, {"function": function}, {"table": table})


def inception(net: Network, x: Value) -> Value:
    """Branches of other kernels, and a pooled one, side by side; all brought to one scale."""
    branches = [convolution(net, x, 8), convolution(net, x, 12, (1, 5)), average_pool(net, eight_bits(net, x), 3, 1)]
    scale, zero_point = branches[0].scale, branches[0].zero_point
    aligned = [branches[0]]
    for branch in branches[1:]:
        (multiplier,), shift = dyadic_terms([branch.scale / scale])
        offset = offset_of(-branch.zero_point * branch.scale / scale, shift, zero_point)
        constants = {"multiplier": multiplier, "offset": offset, "shift": shift}
        aligned.append(net.emit("requantize", [branch], "uint8", scale, zero_point, {"low": 0, "high": 255}, constants))
    return net.emit("concat", aligned, "uint8", scale, zero_point, {"axis": 3})


def grouped(net: Network, x: Value) -> Value:
    return convolution(net, convolution(net, x, 24), 16, 3, groups=4)


def shuffle(net: Network, x: Value) -> Value:
    """ShuffleNet: channels of two groups interleaved, then every second one."""
    n, h, w, c = x.shape
    for shape, perm in (((n, h, w, 2, c // 2), (0, 1, 2, 4, 3)), ((n, h, w, c), None)):
        x = net.emit("reshape", [x], x.dtype, x.scale, x.zero_point, {"shape": shape})
        if perm:
            x = net.emit("transpose", [x], x.dtype, x.scale, x.zero_point, {"perm": perm})
    attrs = {"axis": 3, "start": 0, "stop": c, "step": 2}
    return net.emit("slice", [x], x.dtype, x.scale, x.zero_point, attrs)


def padded_max_pool(net: Network, x: Value) -> Value:
    attrs, constants = {"padding": (0, 1, 1, 0)}, {"pad_value": np.full(x.channels, x.zero_point, x.dtype)}
    x = net.emit("pad", [x], x.dtype, x.scale, x.zero_point, attrs, constants)
    attrs = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1, 1, 1)}
    return net.emit("max_pool2d", [x], x.dtype, x.scale, x.zero_point, attrs)


def average_pool(net: Network, x: Value, kernel: int, stride: int) -> Value:
    """Padding is not counted: a multiplier per output pixel."""
    pad = kernel // 2 if kernel % 2 and kernel <= 3 else 0
    padding = (pad, pad, pad, pad)
    oh, ow = window_shape(x.shape[1:3], (kernel, kernel), (stride, stride), padding)
    ones = np.pad(np.ones(x.shape[1:3]), pad)
    counts = np.array(
        [[ones[i * stride :, j * stride :][:kernel, :kernel].sum() for j in range(ow)] for i in range(oh)]
    )
    scale, zero_point = net.meaning("uint8")
    real = 1.2 * SPREAD["uint8"] / SPREAD[x.dtype] / counts[:, :, None]
    (multiplier,), shift = dyadic_terms([real])
    offset = offset_of(-real * kernel * kernel * x.zero_point, shift, zero_point)
    constants = {"multiplier": multiplier, "offset": offset, "shift": shift}
    constants["pad_value"] = np.full(x.channels, x.zero_point, x.dtype)
    attrs = {"kernel": (kernel, kernel), "stride": (stride, stride), "padding": padding, "low": 0, "high": 255}
    return net.emit("avg_pool2d", [x], "uint8", scale, zero_point, attrs, constants)


def mean(net: Network, x: Value) -> Value:
    """Global average pooling: (n, h, w, c) -> (n, 1, 1, c)."""
    scale, zero_point = net.meaning("uint8")
    h, w = x.shape[1:3]
    real = 1.5 * SPREAD["uint8"] / SPREAD[x.dtype] / (h * w)
    (multiplier,), shift = dyadic_terms([real])
    offset = offset_of(-real * h * w * x.zero_point, shift, zero_point)
    constants = {"multiplier": multiplier, "offset": offset, "shift": shift}
    constants["pad_value"] = np.full(x.channels, x.zero_point, x.dtype)
    attrs = {"kernel": (h, w), "stride": (1, 1), "padding": (0, 0, 0, 0), "low": 0, "high": 255}
    return net.emit("avg_pool2d", [x], "uint8", scale, zero_point, attrs, constants)


BLOCKS = (
    bottleneck,
    inverted_residual,
    squeeze_excitation,
    activation,
    inception,
    grouped,
    shuffle,
    padded_max_pool,
)


def random_graph(seed: int, blocks: int = 4, side: int = 12) -> Graph:
    """An image network of ``blocks`` random blocks between a first convolution and a classifier of 32 bits."""
    net = Network(np.random.default_rng(seed))
    pixels = Value("pixels", ("n", side, side + 1, 3), "uint8", 0, 255, 0.0175, 116)
    x = convolution(net, pixels, 16, 3, 2)
    for _ in range(blocks):
        x = net.one_of(*BLOCKS)(net, x)
    x = mean(net, x)
    x = net.emit("reshape", [x], x.dtype, x.scale, x.zero_point, {"shape": ("n", x.channels)})
    weight = net.rng.integers(-127, 128, (10, x.channels)).astype(np.int8)
    scores = contraction(net, "linear", x, weight, "int32", {})
    return Graph((pixels,), tuple(net.nodes), (scores.name,), {"name": f"random {seed}"})


def pixels(graph: Graph, batch: int = 2, seed: int = 0) -> np.ndarray:
    """A random input of a graph of images."""
    shape = (batch, *graph.inputs[0].shape[1:])
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def narrowed(graph: Graph, bits: Mapping[str, int]) -> Graph:
    """The same network with the weights of some nodes cut down to so many bits, their shifts with them."""
    values, nodes = {x.name: x for x in graph.inputs}, []
    for node in graph.nodes:
        constants, attrs, output = dict(node.constants), dict(node.attrs), node.output
        if node.name in bits:
            fewer, share = 8 - bits[node.name], weight_limit(bits[node.name]) / 127
            constants["weight"] = np.rint(constants["weight"] * share).astype(np.int8)
            constants["shift"] = constants["shift"] - np.int32(fewer)
            constants["offset"] = constants["offset"] >> fewer
            attrs["weight_bits"] = bits[node.name]
        inputs, facts = [values[name] for name in node.inputs], {"dtype": output.dtype, "scale": output.scale}
        again = make_node(node.op, node.name, inputs, **facts, attrs=attrs, constants=constants, source=node.source)
        values[node.name] = again.output
        nodes.append(again)
    return Graph(graph.inputs, tuple(nodes), graph.outputs, graph.metadata)


def every_operation(names) -> Graph:
    """Every sample of these operations of the registry, side by side."""
    rng = np.random.default_rng(7)
    inputs, nodes = [], []
    for name in names:
        for number, sample in enumerate(OPS[name].samples(rng)):
            values = [replace(v, name=f"{name}{number}.{v.name}") for v in sample.inputs]
            inputs += values
            given = {"dtype": sample.dtype, "attrs": sample.attrs, "constants": sample.constants}
            nodes.append(make_node(name, f"{name}{number}", values, **given))
    return Graph(tuple(inputs), tuple(nodes), tuple(n.name for n in nodes))
