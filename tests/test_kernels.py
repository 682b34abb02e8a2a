"""The compiled kernels give the reference's integers: every operation, every instruction set that this machine has."""

import numpy as np
import pytest
from compiled import assert_same, here, loaded
from graphs import every_operation, random_graph

from intq.errors import IntqError
from intq.graph import Graph, make_node
from intq.kernels import audit, lower, runtime
from intq.ops import OPS
from intq.value import Value, bind_shape


def drawn(graph: Graph, batch: int, rng: np.random.Generator, tokens: int = 5) -> list[np.ndarray]:
    return [
        rng.integers(v.low, v.high, bind_shape(v.shape, {"n": batch, "s": tokens}), endpoint=True).astype(v.dtype)
        for v in graph.inputs
    ]


def filled(graph: Graph, batch: int, end: str, tokens: int = 5) -> list[np.ndarray]:
    return [np.full(bind_shape(v.shape, {"n": batch, "s": tokens}), getattr(v, end), v.dtype) for v in graph.inputs]


@pytest.fixture(scope="module")
def everything() -> Graph:
    return every_operation(OPS)


@pytest.fixture(scope="module", params=here())
def library(request, everything, tmp_path_factory):
    return lower.build(everything, "cpu", request.param).keep(tmp_path_factory.mktemp(request.param))


def test_every_operation_equals_the_reference(everything, library):
    network, rng = runtime.load(everything, library, 2), np.random.default_rng(1)
    assert library.parent.name.startswith(network.instruction_set)
    for batch, tokens in [(1, 1), (3, 17), (1, 38)]:
        assert_same(everything, network, *drawn(everything, batch, rng, tokens))
    for end in ("low", "high"):
        assert_same(everything, network, *filled(everything, 2, end))


def test_kernels_have_no_floating_point(library):
    counts = audit.float_instructions(library)
    assert counts and set(counts.values()) == {0}


def contraction(rng, h, w, ci, co, kernel, stride, groups, residual, dtype="uint8") -> Graph:
    """A network of one convolution."""
    x = Value("x", ("n", h, w, ci), "uint8", 0, 255)
    weight = rng.integers(-127, 128, (co, kernel, kernel, ci // groups)).astype(np.int8)
    shift = rng.integers(38, 42, co).astype(np.int32)
    side = kernel // 2
    attrs = {"stride": stride, "padding": (side,) * 4, "dilation": (1, 1), "groups": groups, "low": 0, "high": 255}
    constants = {
        "weight": weight,
        "pad_value": rng.integers(0, 256, ci).astype(np.uint8),
        "multiplier": rng.integers(2**30, 2**31, co).astype(np.int32),
        "offset": np.left_shift(rng.integers(0, 256, co), shift.astype(np.int64)),
        "shift": shift,
    }
    inputs = [x]
    if residual:
        shape = tuple((s + 2 * side - kernel) // t + 1 for s, t in zip((h, w), stride, strict=True))
        inputs.append(
            Value("r", ("n", *shape, co), residual, *{"uint8": (0, 255), "int16": (-(2**15), 2**15 - 1)}[residual])
        )
        constants["residual_multiplier"] = rng.integers(-(2**30), 2**30, co).astype(np.int32)
    node = make_node("conv2d", "y", inputs, dtype=dtype, attrs=attrs, constants=constants)
    return Graph(tuple(inputs), (node,), ("y",))


@pytest.mark.parametrize("isa", here())
@pytest.mark.parametrize("seed", range(6))
def test_convolutions_of_random_shapes(isa, seed, tmp_path):
    rng = np.random.default_rng(seed)
    depthwise = seed % 3 == 2
    ci = int(rng.choice([1, 3, 24, 32, 64, 80, 100, 130]))
    co = ci if depthwise else int(rng.choice([1, 8, 16, 33, 64, 96, 144]))
    graph = contraction(
        rng,
        *(int(v) for v in rng.integers(1, 20, 2)),
        ci,
        co,
        int(rng.choice([1, 3, 5])),
        (int(rng.integers(1, 3)), int(rng.integers(1, 3))),
        ci if depthwise else 1,
        [None, "uint8", "int16"][int(rng.integers(3))],
    )
    network = loaded(graph, isa, tmp_path, 2)
    for batch in (1, 2, 7):
        assert_same(graph, network, *drawn(graph, batch, rng))
    for end in ("low", "high"):
        assert_same(graph, network, *filled(graph, 1, end))


@pytest.mark.parametrize("isa", here())
def test_random_networks_on_any_number_of_threads(isa, tmp_path):
    graph, rng = random_graph(11), np.random.default_rng(2)
    library = lower.build(graph, "cpu", isa).keep(tmp_path)
    for threads in (1, 2):
        network = runtime.load(graph, library, threads)
        inputs = drawn(graph, 3, rng)
        assert_same(graph, network, *inputs, runs=10)


def test_the_time_of_every_layer(tmp_path):
    graph = random_graph(3)
    network = loaded(graph, "plain", tmp_path)
    times = network.time_layers(*drawn(graph, 1, np.random.default_rng(0)), repeats=2)
    assert list(times) == [n.name for n in graph.nodes]
    assert all(seconds >= 0 for seconds in times.values())


def test_another_graphs_library_is_refused(tmp_path):
    library = lower.build(random_graph(1), "cpu", "plain").keep(tmp_path)
    with pytest.raises(IntqError, match="another graph"):
        runtime.load(random_graph(2), library)


@pytest.mark.parametrize(
    "target", ["llvm -mtriple=aarch64-linux-gnu", '{"kind": "llvm", "mtriple": "riscv64-linux-gnu"}']
)
def test_other_processors_get_plain_kernels(target):
    library = lower.build(random_graph(4), target)
    assert library.instruction_set == "plain"
    assert library.assembly()


@pytest.mark.parametrize("target", ["no-such-processor", "llvm -mcpu=pentium9", '{"kind": ', "cuda"])
def test_targets_that_cannot_be_are_refused(target):
    with pytest.raises(IntqError, match="target"):
        lower.build(random_graph(4), target)
