"""Kernels of the speech front end: any transform, any number of frames and channels give the reference's integers."""

import numpy as np
import pytest
from compiled import assert_same, here, loaded
from frame_graphs import (
    INT16,
    LENGTHS,
    SAMPLES,
    frames_and_masks,
    normalisations,
    overlapping,
    sound,
    spectra,
    spectrum,
)

from intq.errors import IntqError
from intq.graph import Graph, make_node
from intq.kernels import audit, lower
from intq.kernels.library import kernel_key
from intq.ops.frames import normalize_parts


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
    graph, rng = overlapping(), np.random.default_rng(1)
    network = loaded(graph, isa, tmp_path)
    for samples in (*range(1, 40), 90):
        lengths = np.array([samples, samples // 2, 1, 0], np.int32)
        assert_same(graph, network, sound(rng, 4, samples), lengths)


@pytest.mark.parametrize("isa", here())
def test_normalisation_of_any_channels_and_any_masks(isa, tmp_path):
    rng = np.random.default_rng(2)
    graph = normalisations(rng, 1, 23, 80)
    network = loaded(graph, isa, tmp_path)
    for n, frames in [(1, 1), (3, 50), (2, 5000)]:
        assert_same(graph, network, *frames_and_masks(graph, rng, n, frames))


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
