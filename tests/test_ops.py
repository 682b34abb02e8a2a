"""Every operation of the registry, found there: the reference computes its definition, every backend the same.

The reference is compared with `unbounded`: the same body on Python's integers, which never wrap, with loops written out
here. A backend is compared with the reference.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intq.backends import reference
from intq.backends import torch as torch_backend
from intq.backends.reference import NumpyDialect
from intq.errors import IntqError
from intq.graph import Graph, Node, make_node
from intq.ops import LOOPS, OPS, Sample
from intq.ops.op import window_shape
from intq.value import DTYPE_RANGE, Value, bind_shape

torch.set_num_threads(1)

BACKENDS = {"torch": lambda graph, *xs: [y.numpy() for y in torch_backend.run(graph, *map(torch.from_numpy, xs))]}
SAMPLES = {
    f"{name}-{i}": (name, s) for name, op in OPS.items() for i, s in enumerate(op.samples(np.random.default_rng(7)))
}
every_sample = pytest.mark.parametrize(("name", "sample"), SAMPLES.values(), ids=SAMPLES)


def node_of(name: str, sample: Sample) -> Node:
    return make_node(
        name, "y", sample.inputs, dtype=sample.dtype, attrs=sample.attrs, constants=sample.constants, source="test"
    )


def graph_of(node: Node, inputs) -> Graph:
    return Graph(tuple(inputs), (node,), ("y",))


def fill(value: Value, batch: int, make) -> np.ndarray:
    return make(value.low, value.high, bind_shape(value.shape, {"n": batch})).astype(value.dtype)


def input_sets(inputs, seed: int = 0, batch: int = 2):
    """Random inputs; then everything at one end of its range, in every combination of the inputs' ends."""
    rng = np.random.default_rng(seed)
    yield [fill(v, batch, lambda low, high, s: rng.integers(low, high, s, endpoint=True)) for v in inputs]
    for ends in itertools.product((0, 1), repeat=len(inputs)):
        yield [
            fill(v, batch, lambda low, high, s, e=end: np.full(s, (low, high)[e]))
            for v, end in zip(inputs, ends, strict=True)
        ]


# ---- the definition on Python's integers -----------------------------------------------------------------------


class Unbounded:
    """How bodies are spelled on arrays of Python's integers."""

    wide = staticmethod(lambda x: np.asarray(x).astype(object))
    shift_right = staticmethod(lambda x, shift: x >> np.asarray(shift).astype(object))
    clamp = staticmethod(lambda x, low, high: np.minimum(np.maximum(x, low), high))
    lookup = staticmethod(lambda table, x: table[x.astype(np.int64)].astype(object))
    where, reshape, transpose, concat = np.where, np.reshape, np.transpose, np.concatenate
    pad2d = NumpyDialect.pad2d


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
    x = padded(x, a["padding"], node.constants["pad_value"]).astype(np.int64)
    out = np.zeros((len(x), *node.output.shape[1:3], co), object)
    for (i, j), window in windows(x, weight.shape[1:3], a["stride"], a["dilation"]):
        taps = window.reshape(*window.shape[:3], groups, -1)  # (n, kh, kw, group, ci)
        kernels = weight.reshape(groups, co // groups, *weight.shape[1:])  # (group, co, kh, kw, ci)
        out[:, i, j] = np.einsum("nhwgc,gohwc->ngo", taps, kernels).reshape(len(x), co)
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


UNBOUNDED_LOOPS = {
    "pointwise": lambda node, *xs: xs,
    "move": lambda node, *xs: xs,
    "conv2d": loop_conv2d,
    "linear": loop_linear,
    "sum2d": lambda node, x: loop_pool(node, x, node.constants["pad_value"], np.sum),
    "max2d": lambda node, x: loop_pool(node, x, DTYPE_RANGE[node.output.dtype][0], np.max),
}


def unbounded(node: Node, *inputs: np.ndarray) -> np.ndarray:
    op = OPS[node.op]
    operands = UNBOUNDED_LOOPS[op.loop](node, *(x.astype(object) for x in inputs))
    operands = tuple(np.asarray(x).astype(object) for x in operands)
    return op.body(Unbounded, operands, node.constants, node.attrs)


def check(node: Node, inputs, arrays) -> np.ndarray:
    """The node's result, after checking its dtype, its bounds, the definition and every backend."""
    graph = graph_of(node, inputs)
    (result,) = reference.run(graph, *arrays)
    assert result.dtype.name == node.output.dtype
    assert result.shape == bind_shape(node.output.shape, {"n": len(arrays[0])})
    assert node.output.low <= result.min() and result.max() <= node.output.high
    np.testing.assert_array_equal(result, unbounded(node, *arrays).astype(np.int64))
    for name, run in BACKENDS.items():
        (other,) = run(graph, *arrays)
        assert other.dtype == result.dtype, name
        np.testing.assert_array_equal(other, result, err_msg=name)
    return result


# ---- conformance -----------------------------------------------------------------------------------------------


@every_sample
def test_reference_and_backends_compute_the_definition(name, sample):
    node = node_of(name, sample)
    for arrays in input_sets(sample.inputs):
        check(node, sample.inputs, arrays)


@pytest.mark.parametrize("name", OPS)
def test_other_random_instances(name):
    for seed in range(100, 103):
        for sample in OPS[name].samples(np.random.default_rng(seed)):
            node = node_of(name, sample)
            check(node, sample.inputs, next(input_sets(sample.inputs, seed, batch=1)))


@every_sample
def test_results_do_not_depend_on_the_batch(name, sample):
    node = node_of(name, sample)
    arrays = next(input_sets(sample.inputs, batch=3))
    (whole,) = reference.run(graph_of(node, sample.inputs), *arrays)
    for i in range(3):
        (alone,) = reference.run(graph_of(node, sample.inputs), *(a[i : i + 1] for a in arrays))
        np.testing.assert_array_equal(alone, whole[i : i + 1])


@every_sample
def test_inputs_that_reach_the_accumulators_bounds(name, sample):
    """For every output channel, x at its highest under positive weights and its lowest elsewhere, and the opposite."""
    node = node_of(name, sample)
    if OPS[name].loop not in ("conv2d", "linear"):
        return
    x, *further = sample.inputs
    weight = node.constants["weight"]
    if OPS[name].loop == "linear":
        rows = np.concatenate([weight > 0, weight < 0])  # (2 co, k)
        arrays = [np.broadcast_to(rows.reshape(len(rows), *[1] * (len(x.shape) - 2), -1), (len(rows), *x.shape[1:]))]
    else:
        kh, kw = weight.shape[1:3]
        signs = np.concatenate([weight > 0, weight < 0])  # (2 co, kh, kw, ci / groups)
        tiled = np.tile(signs, (1, -(-x.shape[1] // kh), -(-x.shape[2] // kw), node.attrs["groups"]))
        arrays = [tiled[:, : x.shape[1], : x.shape[2]]]
    arrays = [np.where(arrays[0], x.high, x.low).astype(x.dtype)]
    arrays += [fill(v, len(arrays[0]), lambda low, high, s: np.full(s, high)) for v in further]
    check(node, sample.inputs, arrays)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_convolutions_of_any_geometry(data):
    groups, per_group, out_per_group = (data.draw(st.integers(1, n)) for n in (3, 9, 5))
    kernel, stride, dilation = ((data.draw(st.integers(1, n)), data.draw(st.integers(1, n))) for n in (4, 3, 2))
    padding = tuple(data.draw(st.integers(0, 3)) for _ in range(4))
    least = [
        max(1, d * (k - 1) + 1 - p - q) for k, d, p, q in zip(kernel, dilation, padding[:2], padding[2:], strict=True)
    ]
    h, w = (data.draw(st.integers(size, size + 5)) for size in least)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    base = next(s for s in OPS["conv2d"].samples(rng) if len(s.inputs) == 1)
    co, ci = groups * out_per_group, groups * per_group
    constants = {
        "weight": rng.integers(-127, 128, (co, *kernel, per_group)).astype(np.int8),
        "pad_value": rng.integers(0, 256, ci).astype(np.uint8),
        "multiplier": rng.integers(2**30, 2**31, co).astype(np.int32),
        "shift": np.full(co, 37, np.int32),
        "offset": rng.integers(0, 2**44, co),
    }
    attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "low": 0, "high": 255}
    sample = replace(
        base, inputs=(Value("x", ("n", h, w, ci), "uint8", 0, 255),), attrs=attrs, constants=constants, dtype="uint8"
    )
    for arrays in input_sets(sample.inputs, int(rng.integers(2**31))):
        check(node_of("conv2d", sample), sample.inputs, arrays)


# ---- the registry ----------------------------------------------------------------------------------------------


def test_every_operation_is_complete():
    for name, op in OPS.items():
        assert op.name == name and op.loop in LOOPS
        assert op.body.__doc__ or op.loop in ("conv2d", "linear"), f"{name}: its body says no formula"
        samples = op.samples(np.random.default_rng(0))
        assert samples, f"{name} has no samples"
        for sample in samples:
            assert set(sample.attrs) == op.attrs
            assert op.constants <= set(sample.constants) <= op.constants | op.optional


@every_sample
def test_a_missing_or_unknown_part_is_named(name, sample):
    for part in ("attrs", "constants"):
        whole = dict(getattr(sample, part))
        for key in OPS[name].attrs | OPS[name].constants:
            if key in whole:
                less = {k: v for k, v in whole.items() if k != key}
                with pytest.raises(IntqError, match=rf"y \({name}\).*{key}"):
                    node_of(name, replace(sample, **{part: less}))
        with pytest.raises(IntqError, match="surprise"):
            node_of(name, replace(sample, **{part: whole | {"surprise": np.zeros((), np.int32)}}))


@every_sample
def test_constants_of_another_dtype_are_refused(name, sample):
    for key, array in sample.constants.items():
        with pytest.raises(IntqError, match=f"{key} must be"):
            node_of(name, replace(sample, constants=dict(sample.constants) | {key: array.astype(np.float32)}))


def a(*shape, dtype="uint8", name="x", **meaning) -> Value:
    return Value(name, ("n", *shape), dtype, *DTYPE_RANGE[dtype], **meaning)


CONV = next(s for s in OPS["conv2d"].samples(np.random.default_rng(0)) if len(s.inputs) == 1)
CONV_RESIDUAL = next(s for s in OPS["conv2d"].samples(np.random.default_rng(0)) if len(s.inputs) == 2)
FIRST = {name: op.samples(np.random.default_rng(0))[0] for name, op in OPS.items()}


@pytest.mark.parametrize(
    ("name", "sample", "says"),
    [
        ("conv2d", replace(CONV, inputs=(a(5, 6, 4),)), "3 input channels, got 4"),
        ("conv2d", replace(CONV, inputs=(a(30),)), r"\(n, h, w, c\)"),
        ("conv2d", replace(CONV, inputs=(a(5, 6, 3), a(3, 3, 16, name="r"))), "residual_multiplier go together"),
        ("conv2d", replace(CONV_RESIDUAL, inputs=(CONV_RESIDUAL.inputs[0], a(1, 1, 33, name="r"))), "residual's shape"),
        ("conv2d", replace(CONV, attrs=CONV.attrs | {"padding": (0, 0, 0, 0), "dilation": (9, 9)}), "does not fit"),
        ("conv2d", replace(CONV, attrs=CONV.attrs | {"low": 9, "high": 3}), "low must not exceed high"),
        ("conv2d", replace(CONV, attrs=CONV.attrs | {"stride": "fast"}), "malformed"),
        ("conv2d", replace(CONV, constants=CONV.constants | {"shift": np.zeros(16, np.int32)}), "shifts must lie"),
        ("conv2d", replace(CONV, attrs=CONV.attrs | {"stride": (0, 1)}), "must be positive"),
        ("conv2d", replace(CONV, attrs=CONV.attrs | {"padding": (0, 0, -1, 0)}), "must not be negative"),
        ("conv2d", replace(CONV, constants=CONV.constants | {"shift": np.ones((), np.int32)}), "per output channel"),
        ("linear", replace(FIRST["linear"], inputs=(a(36),)), "last axis of 37"),
        ("add", replace(FIRST["add"], inputs=(a(4, 5, 19), a(4, 5, 18, name="b"))), "shapes must agree"),
        ("add", replace(FIRST["add"], inputs=(a(4, 5, 19),)), "takes two inputs"),
        (
            "add",
            replace(FIRST["add"], constants=FIRST["add"].constants | {"shift": np.full(7, 9, np.int32)}),
            "broadcast",
        ),
        (
            "add",
            replace(FIRST["add"], constants=FIRST["add"].constants | {"shift": np.full((2, 4, 5, 19), 9, np.int32)}),
            "broadcast",
        ),
        ("mul", replace(FIRST["mul"], inputs=(a(4, 5, 19), a(4, 1, 3, name="b"))), "second shape"),
        ("lookup", replace(FIRST["lookup"], inputs=(a(4, dtype="int16"),)), "indexed by uint8"),
        ("reshape", replace(FIRST["reshape"], attrs={"shape": ("n", 287)}), "288 elements"),
        ("reshape", replace(FIRST["reshape"], attrs={"shape": (288, "n")}), "first axis must stay"),
        ("transpose", replace(FIRST["transpose"], attrs={"perm": (1, 0, 2, 3)}), "batch must stay"),
        ("transpose", replace(FIRST["transpose"], attrs={"perm": (0, 1, 2)}), "reorder 4 axes"),
        ("concat", replace(FIRST["concat"], inputs=(a(4, 6, 2), a(4, 5, 2, name="b"))), "differ along axis 3 only"),
        ("concat", replace(FIRST["concat"], inputs=(a(4, 6, 2), a(4, 6, 2, name="b", scale=2.0))), "one scale"),
        ("slice", replace(FIRST["slice"], attrs=FIRST["slice"].attrs | {"stop": 13}), "does not lie"),
        ("pad", replace(FIRST["pad"], attrs={"padding": (0, -1, 0, 0)}), "must not be negative"),
        ("avg_pool2d", replace(FIRST["avg_pool2d"], inputs=(a(3, 3, 21),)), "does not fit"),
    ],
)
def test_what_does_not_fit_is_said(name, sample, says):
    with pytest.raises(IntqError, match=says) as raised:
        node_of(name, sample)
    assert str(raised.value).startswith(f"y ({name}): ")


def test_window_shape_is_that_of_the_windows():
    assert window_shape((7, 9), (3, 2), (2, 3), (1, 0, 0, 1), (2, 1)) == (2, 3)
