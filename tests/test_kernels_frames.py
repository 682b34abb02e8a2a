"""Kernels of the speech front end: any transform, any number of frames and channels give the reference's integers."""

import numpy as np
import pytest
from compiled import assert_same, here, loaded

from intq.errors import IntqError
from intq.graph import Graph, Node, make_node
from intq.kernels import audit, lower
from intq.kernels.library import kernel_key
from intq.ops.frames import normalize_parts
from intq.ops.log_mel import log_mel_parts
from intq.value import DTYPE_RANGE, Value

INT16 = DTYPE_RANGE["int16"]
SAMPLES, LENGTHS = (
    Value("x", ("n", "s"), "int16", *INT16, longest=2**20),
    Value("lengths", ("n",), "int32", 0, 2**31 - 1),
)


def triangles(bands: int, bins: int) -> np.ndarray:
    corners = np.linspace(0, bins - 1, bands + 2)
    at, middle, half = np.arange(bins), corners[1:-1, None], (bins - 1) / (bands + 1)
    return np.maximum(0, 1 - np.abs(at - middle) / max(half, 1))


def spectrum(name: str, fft: int, window: int, bands: int, seed: int = 0, **own) -> Node:
    """``window`` points of a random one, not in the middle."""
    rng, weights = np.random.default_rng(seed), np.zeros(fft)
    first = int(rng.integers(0, fft - window + 1))
    weights[first : first + window] = rng.uniform(0.1, 1, window)
    attrs, constants = log_mel_parts(weights, triangles(bands, fft // 2 + 1), 0.97, 2.0**-20, 2.0**-10, **own)
    return make_node("log_mel", name, (SAMPLES, LENGTHS), dtype="int16", attrs=attrs, constants=constants)


def spectra() -> Graph:
    """Transforms of an even and an odd number of stages, and of 3 and 5; windows that fill the points, and do not."""
    nodes = (
        spectrum("a", 512, 400, 80, hop=160, extra_frame=True),
        spectrum("c", 400, 400, 80, hop=160, padding="reflect", extra_frame=True),
        spectrum("d", 60, 41, 9, hop=20, extra_frame=True),
        spectrum("b", 64, 17, 16, hop=33, padding="reflect", extra_frame=True, guard_kind="clamp"),
    )
    return Graph((SAMPLES, LENGTHS), nodes, tuple(node.name for node in nodes))


def sound(rng, n: int, samples: int) -> np.ndarray:
    """Rows from silent to as loud as can be."""
    level = np.array([0, 1, 100, 2**15, 2**17])[np.arange(n) % 5, None]
    return np.clip(np.rint(rng.normal(0, 1, (n, samples)) * level), *INT16).astype(np.int16)


@pytest.mark.parametrize("isa", here())
def test_log_mel_of_any_transform_and_any_lengths(isa, tmp_path):
    graph, rng = spectra(), np.random.default_rng(0)
    network = loaded(graph, isa, tmp_path)
    assert set(audit.float_instructions(network.path).values()) == {0}
    for n, samples in [(1, 500), (2, 1), (5, 7001), (3, 2800)]:
        lengths = rng.integers(0, samples, n, endpoint=True).astype(np.int32)
        lengths[0] = 2**31 - 1  # more than there is
        assert_same(graph, network, sound(rng, n, samples), lengths)
    loud = np.where(rng.integers(0, 2, (2, 5000)), *INT16).astype(np.int16)
    assert_same(graph, network, loud, np.array([5000, 17], np.int32))


@pytest.mark.parametrize("isa", here())
def test_a_frame_at_every_place_of_the_row(isa, tmp_path):
    """Every sample begins a frame, so frames end at, before and behind the end of the row, whatever their lane."""
    nodes = tuple(
        spectrum(f"y{i}", 32, 20, 4, hop=1, padding=padding, extra_frame=True)
        for i, padding in enumerate(("constant", "reflect"))
    )
    graph, rng = Graph((SAMPLES, LENGTHS), nodes, ("y0", "y1")), np.random.default_rng(1)
    network = loaded(graph, isa, tmp_path)
    for samples in (*range(1, 40), 90):
        lengths = np.array([samples, samples // 2, 1, 0], np.int32)
        assert_same(graph, network, sound(rng, 4, samples), lengths)


def normalisation(name: str, rng, channels: int, dtype: str) -> tuple[tuple[Value, Value], Node]:
    x = Value(f"x{name}", ("n", "s", channels), "int16", *INT16, longest=5000)
    mask = Value(f"m{name}", ("n", "s"), "uint8", 0, 1, longest=5000)
    gamma, beta = rng.normal(0, 1, (2, channels))
    own = {"correction": int(rng.integers(2)), "epsilon": 1e-3, "deviation_epsilon": 1e-2, "longest": 5000}
    zero_point, scale = (128, 0.05) if dtype == "uint8" else (0, 1e-3)
    attrs, constants = normalize_parts(2.0**-10, gamma, beta, scale, zero_point, dtype, **own)
    return (x, mask), make_node("normalize_frames", name, (x, mask), dtype=dtype, attrs=attrs, constants=constants)


@pytest.mark.parametrize("isa", here())
def test_normalisation_of_any_channels_and_any_masks(isa, tmp_path):
    rng = np.random.default_rng(2)
    made = [normalisation(f"y{c}", rng, c, "int16" if c % 2 else "uint8") for c in (1, 23, 80)]
    inputs, nodes = tuple(x for pair, _ in made for x in pair), tuple(node for _, node in made)
    graph = Graph(inputs, nodes, tuple(node.name for node in nodes))
    network = loaded(graph, isa, tmp_path)
    for n, frames in [(1, 1), (3, 50), (2, 5000)]:
        arrays = []
        for node, (x, _) in zip(nodes, (pair for pair, _ in made), strict=True):
            level = 4.0 ** rng.integers(0, 9, (n, 1, x.channels))
            values = rng.normal(0, 1, (n, frames, x.channels)) * level + rng.normal(0, 1, (n, 1, x.channels)) * level
            arrays.append(np.clip(np.rint(values), *INT16).astype(np.int16))
            arrays[-1][0, ::2, 0], arrays[-1][0, 1::2, 0] = INT16  # all the spread there is
            mask = rng.integers(0, 2, (n, frames)).astype(np.uint8)
            mask[0], mask[-1] = 1, node.name == "y80"  # all frames, and none
            arrays.append(mask)
        assert_same(graph, network, *arrays)


def test_two_threads_give_what_one_gives(tmp_path):
    rng, features = np.random.default_rng(3), spectrum("features", 256, 200, 40, hop=80)
    parts = {"dtype": "uint8", "attrs": {"add": 0, "divide": 80}}
    mask = make_node("frame_mask", "mask", (SAMPLES, LENGTHS), **parts)
    attrs, constants = normalize_parts(2.0**-10, np.ones(40), np.zeros(40), 0.05, 128, "uint8", longest=2**14)
    both = (features.output, mask.output)
    y = make_node("normalize_frames", "y", both, dtype="uint8", attrs=attrs, constants=constants)
    graph = Graph((SAMPLES, LENGTHS), (features, mask, y), ("y",))
    graph.verify()
    network = loaded(graph, here()[0], tmp_path, 2)
    for n, samples in [(1, 160), (4, 9001)]:
        inputs = sound(rng, n, samples), rng.integers(1, samples, n, endpoint=True).astype(np.int32)
        assert_same(graph, network, *inputs, runs=5)


def test_inputs_that_leave_no_frame_are_refused(tmp_path):
    graph = Graph((SAMPLES, LENGTHS), (spectrum("y", 16, 16, 3, hop=10),), ("y",))
    network = loaded(graph, "plain", tmp_path)
    assert network(np.ones((2, 10), np.int16), np.full(2, 10, np.int32)).shape == (2, 1, 3)
    with pytest.raises(IntqError, match="9 along 's' leave nothing of y"):
        network(np.ones((2, 9), np.int16), np.full(2, 9, np.int32))


def test_a_window_elsewhere_is_another_kernel():
    """Where it begins is written into the code, so libraries of one are not used for the other."""
    keys = {kernel_key(spectrum("y", 64, 10, 4, seed, hop=9), (SAMPLES, LENGTHS)) for seed in (0, 1)}
    assert len(keys) == 2


@pytest.mark.parametrize("triple", ["aarch64-linux-gnu", "riscv64-linux-gnu"])
def test_other_processors_get_a_front_end_too(triple):
    graph = Graph((SAMPLES, LENGTHS), (spectrum("y", 64, 64, 9, hop=9),), ("y",))
    assert lower.build(graph, {"kind": "llvm", "mtriple": triple}).assembly()
