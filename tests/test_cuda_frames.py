"""GPU kernels of the speech front end: any transform, any frames and channels give the reference's integers."""

from functools import cache

import numpy as np
from cuda_nodes import ORDERS, Nodes, assert_integers_alone
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

from intq.graph import Graph, make_node


@cache
def log_mels() -> Nodes:
    return Nodes(spectra())


def test_log_mel_of_any_transform_and_any_lengths():
    rng = np.random.default_rng(0)
    for n, samples in [(1, 500), (2, 1), (5, 701), (3, 1280)]:
        lengths = rng.integers(0, samples, n, endpoint=True).astype(np.int32)
        lengths[0] = 2**31 - 1  # more than there is
        log_mels().assert_same(sound(rng, n, samples), lengths)
    loud = np.where(rng.integers(0, 2, (2, 900)), *INT16).astype(np.int16)
    for order in ORDERS:
        log_mels().assert_same(loud, np.array([900, 17], np.int32), order=order)


def test_log_mel_of_the_largest_transform():
    nodes = Nodes(Graph((SAMPLES, LENGTHS), (spectrum("y", 2048, 2048, 128, hop=512, extra_frame=True),), ("y",)))
    rng = np.random.default_rng(1)
    nodes.assert_same(sound(rng, 2, 1500), np.array([1500, 1000], np.int32))
    assert_integers_alone(nodes.facts())


def test_a_frame_at_every_place_of_the_row():
    nodes, rng = Nodes(overlapping()), np.random.default_rng(2)
    for samples in (*range(1, 40, 3), 40):
        lengths = np.array([samples, samples // 2, 1, 0], np.int32)
        nodes.assert_same(sound(rng, 4, samples), lengths)


@cache
def normalised() -> Nodes:
    return Nodes(normalisations(np.random.default_rng(3), 1, 23, 34, 80))


def test_normalisation_of_any_channels_and_any_masks():
    rng = np.random.default_rng(4)
    for n, frames in [(1, 1), (3, 50), (2, 700)]:
        normalised().assert_same(*frames_and_masks(normalised().graph, rng, n, frames))
    for order in ORDERS:
        normalised().assert_same(*frames_and_masks(normalised().graph, rng, 3, 41), order=order)


@cache
def masks() -> Nodes:
    terms = [(0, 1), (7, 3), (-5, 160), (2**31 - 1, 2**31 - 1)]
    nodes = tuple(
        make_node("frame_mask", f"y{i}", (SAMPLES, LENGTHS), dtype="uint8", attrs={"add": add, "divide": divide})
        for i, (add, divide) in enumerate(terms)
    )
    return Nodes(Graph((SAMPLES, LENGTHS), nodes, tuple(node.name for node in nodes)))


def test_which_frames_a_row_has():
    lengths = np.array([0, 1, 159, 160, 400, 2**31 - 1], np.int32)
    for samples in (165, 325, 400):
        masks().assert_same(np.zeros((len(lengths), samples), np.int16), lengths)


def test_the_machine_code():
    for nodes in (log_mels(), normalised(), masks()):
        assert_integers_alone(nodes.facts())
