"""Kernels at the edges of their shapes: tails, padding, extreme sums, and the layouts that constants are packed in."""

import numpy as np
import pytest
from compiled import assert_same, here, loaded
from graphs import narrowed

from intq.backends import reference
from intq.curves import fit
from intq.fixedpoint import rescale
from intq.graph import Graph, make_node
from intq.kernels import audit, lower, pack, runtime
from intq.kernels.build import kernel
from intq.kernels.cpu.build import local, parallel_region
from intq.kernels.cpu.isa import ISAS
from intq.kernels.cpu.plan import conv1d_plan, linear_plan, plan
from intq.kernels.cpu.runs import runs
from intq.kernels.rescale import rescale_of
from intq.value import DTYPE_RANGE, Value, bind_shape


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


@pytest.mark.parametrize("isa", here())
def test_shapes_at_their_edges(isa, tmp_path):
    rng = np.random.default_rng(5)
    graph = shapes(rng)
    network = loaded(graph, isa, tmp_path, 2)
    for batch, draw in [(1, None), (3, None), (1, 0), (2, 255)]:
        inputs = [
            rng.integers(0, 256, (batch, *v.shape[1:])).astype(np.uint8)
            if draw is None
            else np.full((batch, *v.shape[1:]), draw, np.uint8)
            for v in graph.inputs
        ]
        assert_same(graph, network, *inputs)


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


@pytest.mark.parametrize("isa", here())
def test_linear_layers_over_any_number_of_rows(isa, tmp_path):
    """Fewer rows than a tile, tiles that overlap, more rows than share weights; on one thread and on two."""
    rng = np.random.default_rng(11)
    graph = linears(rng)
    library = lower.build(graph, "cpu", isa).keep(tmp_path)
    for threads in (1, 2):
        network = runtime.load(graph, library, threads)
        some = tuple(rng.integers(1, 18, 2))
        for n, s in [(1, 1), (0, 9), (1, 2), (1, 5), (3, 7), (1, 33), (2, 64), (1, 291), (5, 140), some]:
            sizes = {"n": int(n), "s": int(s)}
            inputs = [
                rng.integers(v.low, v.high, bind_shape(v.shape, sizes), endpoint=True).astype(v.dtype)
                for v in graph.inputs
            ]
            assert_same(graph, network, *inputs, runs=3)


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


@pytest.mark.parametrize("isa", here())
def test_convolutions_over_any_number_of_frames(isa, tmp_path):
    """Fewer places than a tile has rows, several samples, more tiles than share weights; on one thread and on two."""
    rng = np.random.default_rng(13)
    graph = convolutions_over_frames(rng)
    library = lower.build(graph, "cpu", isa).keep(tmp_path)
    for n, s in [(1, 1), (0, 9), (1, 2), (3, 31), (1, 33), (2, 140), (1, 700)]:
        sizes = {"n": n, "s": s}
        inputs = [
            rng.integers(v.low, v.high, bind_shape(v.shape, sizes), endpoint=True).astype(v.dtype) for v in graph.inputs
        ]
        expected = reference.run(graph, *inputs)
        for threads in (1, 2):
            network = runtime.load(graph, library, threads)
            for _ in range(3):  # threads that step on each other do so now and then
                for name, ours, theirs in zip(graph.outputs, network(*inputs), expected, strict=True):
                    np.testing.assert_array_equal(ours, theirs, err_msg=f"{name}, {n} of {s} frames")


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


@pytest.mark.parametrize("isa", here())
@pytest.mark.parametrize(
    ("make", "widths", "sizes"),
    [
        (shapes, (4, 2), [(1, 1), (3, 1)]),
        (many_weights, (4, 4), [(1, 1), (2, 1)]),
        (many_weights, (2, 2), [(1, 1), (2, 1)]),
        (linears, (2, 4), [(1, 1), (0, 9), (1, 5), (3, 7), (1, 33), (1, 291), (5, 140)]),
        (convolutions_over_frames, (4, 2), [(1, 1), (0, 9), (3, 31), (1, 33), (1, 700)]),
    ],
)
def test_narrow_weights_of_every_shape(make, widths, sizes, isa, tmp_path):
    """On one thread and on two, again and again: what a thread has unpacked is what it reads."""
    rng = np.random.default_rng(17)
    graph = make(rng)
    layers = [node.name for node in graph.nodes if "weight" in node.constants]
    graph = narrowed(graph, {name: widths[i % 2] for i, name in enumerate(layers)})
    library = lower.build(graph, "cpu", isa).keep(tmp_path)
    for n, s in sizes:
        shape = {"n": n, "s": s}
        for least in (0, 1):  # of random inputs, and of inputs that are all as large as can be
            inputs = [
                rng.integers(v.high * least or v.low, v.high, bind_shape(v.shape, shape), endpoint=True).astype(v.dtype)
                for v in graph.inputs
            ]
            expected = reference.run(graph, *inputs)
            for threads in (1, 2):
                network = runtime.load(graph, library, threads)
                for _ in range(2):
                    for name, ours, theirs in zip(graph.outputs, network(*inputs), expected, strict=True):
                        np.testing.assert_array_equal(ours, theirs, err_msg=f"{name}, {n} x {s}")


@pytest.mark.parametrize("isa", ISAS)
def test_narrow_weights_are_packed_in_memory(isa):
    """Two and four to a byte in what a loaded network keeps."""
    graph, size = many_weights(np.random.default_rng(19)), {}
    for bits in (8, 4, 2):
        nodes = narrowed(graph, {node.name: bits for node in graph.nodes} if bits < 8 else {}).nodes
        size[bits] = sum(pack.arrays(node, (graph.values[node.inputs[0]],), isa)[0].nbytes for node in nodes)
    assert (size[4], size[2]) == (size[8] // 2, size[8] // 4)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", [1, 7, 16, 24, 33, 64, 96, 144, 1000])
def test_runs_cover_every_channel_once(isa, channels):
    cut = runs(channels, ISAS[isa].quads, ISAS[isa].natural)
    for order in ("order", "pair_order"):
        seen = np.concatenate([run.start + getattr(run, order) for run in cut])
        np.testing.assert_array_equal(np.sort(seen), np.arange(channels))


@pytest.mark.parametrize("isa", ISAS)
def test_every_product_is_taken_once(isa):
    plans = [
        plan(isa, (14, 14, 96), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1, 64),
        plan(isa, (14, 14, 100), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1, 64),
        plan(isa, (28, 28, 48), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, 64),
        plan(isa, (28, 28, 48), (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), 1, 64),
        plan(isa, (28, 28, 3), (7, 7), (2, 2), (3, 3, 3, 3), (1, 1), 1, 64),
        linear_plan(isa, 1000, 10),
        *(
            conv1d_plan(isa, c, 5, {"padding": (2, 2), "stride": 1, "dilation": d, "groups": 1}, 64)
            for c in (10, 90, 128)
            for d in (1, 2)
        ),
    ]
    for each in plans:
        taken = each.k_order[each.k_order >= 0]
        np.testing.assert_array_equal(np.sort(taken), np.arange(each.k))


def test_lifting_a_rescale_changes_nothing():
    rng = np.random.default_rng(3)
    x, r = image("x", 8, 8, 64), image("r", 8, 8, 32, dtype="int16")
    weight = rng.integers(-127, 128, (32, 1, 1, 64)).astype(np.int8)
    constants = {
        "weight": weight,
        "pad_value": np.zeros(64, np.uint8),
        "multiplier": rng.integers(2**20, 2**24, 32).astype(np.int32),
        "residual_multiplier": rng.integers(2**30, 2**31, 32).astype(np.int32),
        "offset": rng.integers(-(2**40), 2**40, 32),
        "shift": rng.integers(28, 32, 32).astype(np.int32),
    }
    attrs = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}
    attrs |= {"low": -(2**15), "high": 2**15 - 1}
    node = make_node("conv2d", "y", (x, r), dtype="int16", attrs=attrs, constants=constants)
    lifted = rescale_of(node, (x, r))
    assert (lifted.base, lifted.lift) == (32, 4)
    sums, residual = rng.integers(-(2**21), 2**21, (50, 32)), rng.integers(-(2**15), 2**15, (50, 32))
    L, c, d = reference.NumpyDialect, constants, lifted.constants
    terms = [(sums, c["multiplier"]), (residual, c["residual_multiplier"])]
    expected = rescale(L, terms, c["offset"], c["shift"], -(2**15), 2**15 - 1)
    terms = [(sums, d["multiplier"]), (residual << lifted.lift, d["residual_multiplier"])]
    np.testing.assert_array_equal(rescale(L, terms, d["offset"], d["shift"] + 32, -(2**15), 2**15 - 1), expected)


def test_the_audit_tells_arithmetic_from_moves():
    text = "\n".join(
        [
            "0000 <__tvm_ffi_conv2d_0123456789ab>:",
            "  10:\tvmovaps %zmm0,%zmm1",
            "  11:\tvxorps %xmm0,%xmm0,%xmm0",
            "  12:\tvpaddd %zmm0,%zmm1,%zmm2",
            "  13:\ttdpbusd %tmm0,%tmm1,%tmm2",
            "0020 <__tvm_ffi_add_0123456789ab>:",
            "  20:\tvaddps %zmm0,%zmm1,%zmm2",
            "  21:\tvfmadd231ps %zmm0,%zmm1,%zmm2",
            "  22:\tvcvtdq2ps %zmm0,%zmm1",
            "  23:\tdivss %xmm0,%xmm1",
        ]
    )
    assert audit.count(text) == {"conv2d_0123456789ab": 0, "add_0123456789ab": 4}


@pytest.mark.parametrize("isa", here())
def test_the_peak_is_measured(isa):
    peak = runtime_peak(isa, 1)
    assert peak > 0


def runtime_peak(isa: str, threads: int) -> float:
    from intq.kernels.peak import peak

    return peak(isa, threads)


def test_a_buffer_that_threads_would_share_is_refused():
    def write(n, out):
        with parallel_region():
            local(16, "int32")

    with pytest.raises(ValueError, match="outside of a parallel loop"):
        kernel("shared", [(("n",), "int32")], write)
