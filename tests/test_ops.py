"""Every operation of the registry, found there: the reference computes its definition, every backend the same.

The reference is compared with `unbounded`: the same body on Python's integers, with loops written out. A backend is
compared with the reference.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from unbounded import unbounded

from intq.backends import reference
from intq.backends import torch as torch_backend
from intq.errors import IntqError
from intq.graph import Graph, Node, make_node
from intq.ops import LOOPS, OPS, Sample
from intq.ops.log_mel import turns_of
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


TOKENS = 7


def sizes_of(array: np.ndarray) -> dict[str, int]:
    return {"n": array.shape[0], "s": array.shape[1]}


def fill(value: Value, sizes: dict[str, int], make) -> np.ndarray:
    return make(value.low, value.high, bind_shape(value.shape, sizes)).astype(value.dtype)


def input_sets(inputs, seed: int = 0, batch: int = 2, tokens: int = TOKENS):
    """Random inputs; then everything at one end of its range, in every combination of the inputs' ends."""
    rng, sizes = np.random.default_rng(seed), {"n": batch, "s": tokens}
    yield [fill(v, sizes, lambda low, high, s: rng.integers(low, high, s, endpoint=True)) for v in inputs]
    for ends in itertools.product((0, 1), repeat=len(inputs)):
        yield [
            fill(v, sizes, lambda low, high, s, e=end: np.full(s, (low, high)[e]))
            for v, end in zip(inputs, ends, strict=True)
        ]


def check(node: Node, inputs, arrays) -> np.ndarray:
    """The node's result, after checking its dtype, its bounds, the definition and every backend."""
    graph = graph_of(node, inputs)
    (result,) = reference.run(graph, *arrays)
    assert result.dtype.name == node.output.dtype
    assert result.shape == bind_shape(node.output.shape, sizes_of(arrays[0]))
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
    if "s" in sample.inputs[0].shape:
        for tokens in (1, 33):
            check(node, sample.inputs, next(input_sets(sample.inputs, seed=tokens, tokens=tokens)))


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
    if OPS[name].loop not in ("conv1d", "conv2d", "linear"):
        return
    x, *further = sample.inputs
    weight = node.constants["weight"]
    if OPS[name].loop == "linear":
        rows = np.concatenate([weight > 0, weight < 0])  # (2 co, k)
        shape = bind_shape(x.shape, {"n": len(rows), "s": TOKENS})
        arrays = [np.broadcast_to(rows.reshape(len(rows), *[1] * (len(shape) - 2), -1), shape)]
    else:
        sides = bind_shape(x.shape[1:-1], {"s": TOKENS})
        signs = np.concatenate([weight > 0, weight < 0])  # (2 co, k or kh, kw, ci / groups)
        tiles = (-(-side // k) for side, k in zip(sides, weight.shape[1:-1], strict=True))
        arrays = [np.tile(signs, (1, *tiles, node.attrs["groups"]))[(slice(None), *map(slice, sides))]]
    arrays = [np.where(arrays[0], x.high, x.low).astype(x.dtype)]
    arrays += [fill(v, sizes_of(arrays[0]), lambda low, high, s: np.full(s, high)) for v in further]
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
        assert op.body.__doc__, f"{name}: its body says no formula"
        samples = op.samples(np.random.default_rng(0))
        assert samples, f"{name} has no samples"
        for sample in samples:
            assert op.attrs <= set(sample.attrs) <= op.attrs | op.optional
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
FRAMES = OPS["conv1d"].samples(np.random.default_rng(0))[0]
CONV_RESIDUAL = next(s for s in OPS["conv2d"].samples(np.random.default_rng(0)) if len(s.inputs) == 2)
SOUND = a("s", dtype="int16")
LENGTHS = Value("lengths", ("n",), "int32", 1, 50)
TWISTED = np.eye(2, 16, dtype=np.int32)  # one unit off at 1
MASK = Value("m", ("n", "s"), "uint8", 0, 1, longest=512)
FIRST = {name: op.samples(np.random.default_rng(0))[0] for name, op in OPS.items()}


def extreme(name: str, attrs=None, **constants) -> Sample:
    """The first sample of an operation with other attributes or constants."""
    first = FIRST[name]
    arrays = {key: np.asarray(value) for key, value in constants.items()}
    return replace(first, attrs=first.attrs | (attrs or {}), constants=first.constants | arrays)


def attention_of(v: Value) -> Sample:
    """Attention with another v."""
    q, k, _, mask = FIRST["attention"].inputs
    return replace(FIRST["attention"], inputs=(q, k, v, mask))


def embedding_of(high: int, longest: int = 38) -> Sample:
    ids = Value("ids", ("n", "s"), "int32", 0, high, longest=longest)
    return replace(FIRST["embedding"], inputs=(ids,))


def lifted(lift: np.ndarray) -> Sample:
    """A linear layer whose curve's channels have other scales."""
    sample = next(s for s in OPS["linear"].samples(np.random.default_rng(0)) if "lift" in s.constants)
    return replace(sample, constants=dict(sample.constants) | {"lift": lift.astype(np.int32)})


@pytest.mark.parametrize(
    ("name", "sample", "says"),
    [
        ("conv2d", replace(CONV, inputs=(a(5, 6, 4),)), "3 input channels, got 4"),
        ("conv2d", replace(CONV, inputs=(a(30),)), r"\(n, h, w, c\)"),
        ("conv2d", replace(CONV, inputs=(a(5, 6, 3), a(3, 3, 16, name="r"))), r"the mask must be \('n', 5\)"),
        ("linear", replace(FIRST["linear"], inputs=(a(37), a(11, name="r"))), "residual_multiplier go together"),
        ("conv1d", replace(FRAMES, inputs=(a("s", 81), MASK)), "expects 80 input channels, got 81"),
        ("conv1d", replace(FRAMES, inputs=(a("s", 80), replace(MASK, high=2))), "the mask must be 0 or 1"),
        ("conv1d", replace(FRAMES, attrs=FRAMES.attrs | {"padding": (-1, 5)}), "padding must not be negative"),
        ("conv1d", replace(FRAMES, attrs=FRAMES.attrs | {"stride": 0}), "must be positive"),
        ("conv1d", replace(FRAMES, inputs=(a(2, 80),), attrs=FRAMES.attrs | {"padding": (0, 0)}), "are too few"),
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
        ("slice", Sample((a("s", 8),), {"axis": 1, "start": 0, "stop": 2, "step": 1}, {}, "uint8"), "only the first"),
        ("reshape", Sample((a("s", 8),), {"shape": ("n", 8)}, {}, "uint8"), "elements per sample"),
        ("layernorm", replace(FIRST["layernorm"], inputs=(a("s", 64),)), "must be int16, got uint8"),
        ("layernorm", replace(FIRST["layernorm"], inputs=(a("s", 60, dtype="int16"),)), "size is 64, .* has 60"),
        ("layernorm", extreme("layernorm", epsilon=np.int64(2**44)), "epsilon is out of range"),
        ("layernorm", extreme("layernorm", epsilon=np.int64(-1)), "epsilon is out of range"),
        ("layernorm", extreme("layernorm", shift=np.int32(40)), "one value per channel"),
        ("mean_tokens", replace(FIRST["mean_tokens"], inputs=(a("s", 40, dtype="int16"),)), "and a mask, got 1"),
        ("mean_tokens", replace(FIRST["mean_tokens"], inputs=(a(40, dtype="int16"), MASK)), r"\(n, tokens, channels\)"),
        (
            "mean_tokens",
            replace(FIRST["mean_tokens"], inputs=(a("s", 40, dtype="int16"), replace(MASK, high=2))),
            "0 or 1, got",
        ),
        ("attention", replace(FIRST["attention"], inputs=FIRST["attention"].inputs[:2]), "takes q, k, v"),
        ("attention", attention_of(a("s", 128, name="v", zero_point=127)), "must be 128, got 127"),
        ("attention", attention_of(a("s", 128, name="v", zero_point=128, dtype="int16")), "must be uint8, got int16"),
        ("attention", attention_of(a("s", 64, name="v", zero_point=128)), "must have one shape"),
        ("attention", extreme("attention", attrs={"heads": 3}), "3 heads of 64 are not"),
        ("attention", extreme("attention", attrs={"longest": 2**17}), "a sum of up to 131072 values needs 33 bits"),
        ("attention", extreme("attention", attrs={"drop": 31}), r"drop must lie in \[0, 30\]"),
        ("attention", extreme("attention", score_shift=np.int32(58)), "the weight of a masked score must be 0"),
        ("attention", extreme("attention", curve=np.zeros((3, 32), np.int32)), "largest score must be 255"),
        ("attention", extreme("attention", curve=np.zeros((3, 31), np.int32)), "three rows of 32"),
        ("embedding", replace(FIRST["embedding"], inputs=(a("s", dtype="int16"),)), "must be int32"),
        ("embedding", embedding_of(high=50), r"ids in \[0, 50\], but 50 words"),
        ("embedding", embedding_of(high=49, longest=39), "positions for 38 tokens, the input may have 39"),
        ("embedding", extreme("embedding", attrs={"positions": "sine"}), "one of index, counted"),
        ("embedding", extreme("embedding", position=np.zeros((40, 47), np.int16)), "a table of 48 columns"),
        ("embedding", extreme("embedding", segment=np.zeros((0, 48), np.int16)), "must have a row"),
        ("embedding", extreme("embedding", word_multiplier=np.zeros(49, np.int32)), "one value per word"),
        ("linear", replace(FIRST["linear"], attrs=FIRST["linear"].attrs | {"drop": 3}), "drop go together"),
        ("log_mel", replace(FIRST["log_mel"], inputs=FIRST["log_mel"].inputs[:1]), "samples and their lengths, got 1"),
        ("log_mel", replace(FIRST["log_mel"], inputs=(a("s"), LENGTHS)), "samples must be int16"),
        ("log_mel", replace(FIRST["log_mel"], inputs=(SOUND, replace(LENGTHS, low=-1))), "lengths must be int32"),
        (
            "log_mel",
            extreme("log_mel", window=np.zeros((2, 28), np.int32)),
            r"must be \(2, F\), F a multiple of 4",
        ),
        ("log_mel", extreme("log_mel", window=np.full((2, 16), 2**30, np.int32)), "at most 2\\*\\*31"),
        ("log_mel", extreme("log_mel", turn=np.zeros((2, 16), np.int32)), "cosines and sines"),
        ("log_mel", extreme("log_mel", turn=turns_of(16) + TWISTED), "exact where it is 1 and -i"),
        ("log_mel", extreme("log_mel", {"reach": 1000}), "reach must lie in"),
        ("log_mel", extreme("log_mel", {"reach": 2**30}), "reach must lie in"),
        ("log_mel", extreme("log_mel", {"window_shift": 15}), "window_shift must lie in"),
        ("log_mel", extreme("log_mel", {"power_shift": 62}), "power_shift is out of range"),
        ("log_mel", extreme("log_mel", {"power_shift": 0}), "needs .* bits, has 64"),
        ("log_mel", extreme("log_mel", {"hop": 0}), "hop must be positive"),
        ("log_mel", extreme("log_mel", {"padding": "wrap"}), "padding must be one of"),
        ("log_mel", extreme("log_mel", {"guard_kind": "max"}), "guard_kind must be one of"),
        ("log_mel", extreme("log_mel", guard=np.zeros(3, np.int64)), "a guard must be positive"),
        ("log_mel", extreme("log_mel", guard=np.ones(4, np.int64)), "3 of each band's constants"),
        ("log_mel", extreme("log_mel", band_first=np.full(3, 8, np.int32)), "within the spectrum"),
        ("log_mel", extreme("log_mel", band_count=np.ones(3, np.int32)), "within the spectrum"),
        ("frame_mask", extreme("frame_mask", {"divide": 0}), "divide positive"),
        ("frame_mask", replace(FIRST["frame_mask"], inputs=(a(dtype="int16"), LENGTHS)), "samples, ..."),
        ("frame_mask", replace(FIRST["frame_mask"], inputs=(SOUND, a(dtype="int16"))), "lengths must be int32"),
        ("normalize_frames", replace(FIRST["normalize_frames"], inputs=(a("s", 32), MASK)), "expects int16"),
        ("normalize_frames", replace(FIRST["normalize_frames"], inputs=(a("s", 32, dtype="int16"),)), "a mask, got 1"),
        (
            "normalize_frames",
            replace(FIRST["normalize_frames"], inputs=(a("s", 32, dtype="int16"), replace(MASK, high=2))),
            "0 or 1, got",
        ),
        ("normalize_frames", extreme("normalize_frames", {"correction": 2}), "correction must be 0 or 1"),
        ("normalize_frames", extreme("normalize_frames", {"longest": 2**20 + 1}), "longest must lie in"),
        ("normalize_frames", extreme("normalize_frames", epsilon=np.int64(2**61)), "epsilon is out of range"),
        ("normalize_frames", extreme("normalize_frames", shift=np.full(31, 40, np.int32)), "one value per channel"),
        ("linear", replace(FIRST["linear"], attrs=FIRST["linear"].attrs | {"level": 3}), "level go together"),
        ("linear", lifted(np.full(80, 5)), r"lift must lie in \[0, 4\]"),
        ("linear", lifted(np.full(79, 1)), "lift must hold one value per output channel"),
    ],
)
def test_what_does_not_fit_is_said(name, sample, says):
    with pytest.raises(IntqError, match=says) as raised:
        node_of(name, sample)
    assert str(raised.value).startswith(f"y ({name}): ")


def test_window_shape_is_that_of_the_windows():
    assert window_shape((7, 9), (3, 2), (2, 3), (1, 0, 0, 1), (2, 1)) == (2, 3)
