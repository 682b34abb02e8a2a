"""From samples to scores: captured as torch computes them, in integers, alone as in a padded batch."""

import numpy as np
import pytest
import torch
from compiled import here, loaded
from small_speech import RATE, recording, small

import intq
from intq import dims
from intq.backends import reference
from intq.capture import capture
from intq.errors import IntqError
from intq.probes import shortest
from intq.quantize import quantize
from intq.simplify import simplify
from intq.speech import domain

KINDS = ("quartznet", "jasper", "conformer", "conformer-1d")
SAMPLES = [recording(1.1, seed)[None] for seed in range(3)] + [recording(0.7, 5)[None]]


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory):
    """(checkpoint, its integer network, the same compiled, whose library stays where it is)."""
    checkpoint, folder = small(request.param), tmp_path_factory.mktemp(request.param)
    graph = domain.prepare(checkpoint, None, samples=3, seed=0).quantize()
    return checkpoint, graph, loaded(graph, here()[0], folder, 2)


def sqnr(exact: np.ndarray, rough: np.ndarray) -> float:
    return 10 * np.log10((exact**2).sum() / ((exact - rough) ** 2).sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["ctc", "classification", "frames"])
def test_the_graph_computes_what_torch_does(kind, head):
    checkpoint = small(kind, head)
    graph = simplify(capture(checkpoint.model, torch.zeros(1, RATE, dtype=torch.int16)))
    for seconds in (0.4, 1.3):
        samples = torch.from_numpy(recording(seconds))[None] / 32768
        found, expected = graph.run(samples), checkpoint.model(samples)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not [n.name for n in graph.nodes if n.op == "permute" and len(n.shape) == 3]  # frames come first


def test_frames_follow_from_samples(made):
    checkpoint, graph, _ = made
    size = graph.values[graph.outputs[0]].shape[1]
    for samples in (RATE, RATE + 1, 12345):
        assert dims.size(size, {"t": samples}) == checkpoint.model.frames(samples)
    assert domain.metadata(checkpoint)["frames"] == size


def test_integers_answer_as_the_float_network(made):
    checkpoint, graph, _ = made
    samples = recording(1.5, 9)[None]
    lengths = np.array([samples.shape[1]], np.int32)
    (scores,) = reference.run(graph, samples, lengths)
    expected = domain.network(checkpoint)(samples, lengths)
    assert sqnr(expected, scores * graph.values[graph.outputs[0]].scale) > 18


def test_an_utterance_is_what_it_is_alone(made):
    """Whatever stands behind its end in a batch: here noise at full scale."""
    checkpoint, graph, network = made
    rng = np.random.default_rng(0)
    utterances = [recording(seconds, i) for i, seconds in enumerate((1.2, 0.31, 0.8, 0.5))]
    batch = rng.integers(-(2**15), 2**15, (4, len(utterances[0])), np.int16)
    for row, own in zip(batch, utterances, strict=True):
        row[: len(own)] = own
    lengths = np.array([len(own) for own in utterances], np.int32)
    together = network(batch, lengths)
    np.testing.assert_array_equal(together, reference.run(graph, batch, lengths)[0])
    for row, own in zip(together, utterances, strict=True):
        alone = network(own[None], np.array([len(own)], np.int32))[0]
        np.testing.assert_array_equal(row[: checkpoint.model.frames(len(own))], alone)


def test_every_backend_gives_the_same(made):
    _, graph, network = made
    result = intq.verify(graph, network=network)
    assert not any(result["mismatches"].values()) and result["float_instructions"] == 0
    assert result["compared"]["alone_equals_padded"] > 0


@pytest.mark.parametrize(
    ("bits", "gain"),
    [
        ({"bits": {"*": 16}}, 3),
        ({"bits": {"encoder.encoder.0.*": 16}}, -1),
        ({"bits": {"*": 16}, "weight_bits": {"*": 16}}, 9),
    ],
)
def test_layers_of_16_bits(bits, gain):
    checkpoint = small()
    eight, sixteen = (
        quantize(checkpoint.model, SAMPLES, **chosen, rounding="nearest", bias_correction=False)
        for chosen in ({}, bits)
    )
    samples = recording(1.5, 9)[None]
    lengths = np.array([samples.shape[1]], np.int32)
    expected = domain.network(checkpoint)(samples, lengths)
    eight, sixteen = (
        sqnr(expected, reference.run(g, samples, lengths)[0] * g.values[g.outputs[0]].scale) for g in (eight, sixteen)
    )
    assert sixteen > eight + gain


def test_conformers_have_16_bits_unless_told_otherwise(made):
    checkpoint, graph, _ = made
    fine = [node.name for node in graph.nodes if node.name.endswith(".fine")]
    assert bool(fine) == checkpoint.attends
    if fine:
        eight = domain.prepare(checkpoint, None, samples=1, seed=0, bits={"*": 8}, weight_bits={"*": 8}).quantize()
        assert not [n.name for n in eight.nodes if n.name.endswith((".fine", ".high"))]
        some = domain.prepare(checkpoint, None, samples=1, seed=0, weight_bits={"*.self_attn*": 8}).quantize()
        own = [n.name for n in some.nodes if n.name.endswith(".fine")]
        assert own == [name for name in fine if ".self_attn" not in name]


def test_recordings_of_other_lengths(made):
    checkpoint, graph, network = made
    most = graph.inputs[0].longest
    assert most == checkpoint.longest
    with pytest.raises(IntqError, match=f"at most {most} along 't' are possible, got {most + 1}"):
        reference.run(graph, np.zeros((1, most + 1), np.int16), np.array([5], np.int32))
    least = shortest(graph)
    assert network(np.zeros((1, least), np.int16), np.array([least], np.int32)).shape[1] == 1
    with pytest.raises(IntqError, match="give longer inputs"):
        network(np.zeros((1, least - 1), np.int16), np.array([1], np.int32))


def test_what_calibration_cannot_use():
    model = small().model
    with pytest.raises(IntqError, match="1 to 1048576 at a time"):
        quantize(model, [np.zeros((1, 2**20 + 1), np.int16)])
