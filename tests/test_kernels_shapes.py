"""Kernels at the edges of their shapes: tails, padding, extreme sums, and the layouts that constants are packed in."""

import numpy as np
import pytest
from compiled import assert_same, here, loaded
from contractions import convolutions_over_frames, image, linears, many_weights, shapes
from graphs import narrowed

from intq.backends import reference
from intq.fixedpoint import rescale
from intq.graph import make_node
from intq.kernels import audit, lower, pack, runtime
from intq.kernels.build import kernel
from intq.kernels.cpu.build import local, parallel_region
from intq.kernels.cpu.isa import ISAS
from intq.kernels.cpu.plan import conv1d_plan, linear_plan, plan
from intq.kernels.cpu.runs import runs
from intq.kernels.rescale import rescale_of
from intq.value import bind_shape


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
