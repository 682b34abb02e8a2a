"""The comparison with the peers, end to end on a small network."""

import importlib
import json
import os
import subprocess

import numpy as np
import onnx
import pytest
from text_models import tiny, tiny_ids

from intq.vision import domain
from intq.vision.metrics import sqnr_db
from intq.vision.synthetic import random_images

SMALL = "small_mobilenet_v2"


@pytest.fixture
def peers(root, monkeypatch):
    """The modules of scripts/peers."""
    importlib.import_module("onnxruntime.transformers")  # it extends sys.path once, and monkeypatch would undo that
    monkeypatch.syspath_prepend(root / "scripts" / "peers")


def test_bench_prints_a_row_for_each_engine_and_precision(root, tmp_path):
    command = [root / "scripts" / "bench_peers", SMALL, "--threads", "1", "--rounds", "1", "--json"]
    done = subprocess.run(command, env=os.environ | {"INTQ_CACHE": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [(row["engine"], row["precision"]) for row in rows] == [
        ("intq", "int8"),
        ("onnxruntime", "int8"),
        ("openvino", "int8"),
        ("onnxruntime", "float32"),
        ("openvino", "float32"),
    ]
    for row in rows:
        shape = {"model": SMALL, "batch": 1, "sequence": None, "audio": None, "threads": 1}
        assert row.keys() == {*shape, "engine", "precision", "min_ms", "median_ms", "peak_memory_mb"}
        assert row.items() >= shape.items()
        assert 0 < row["min_ms"] <= row["median_ms"]
        assert 10 < row["peak_memory_mb"] < 1000
    assert not list((tmp_path / "peers").glob(".*"))  # nothing half-built stays


@pytest.mark.filterwarnings("ignore")  # the peers' own
def test_every_engine_quantizes_the_same_network(peers, tmp_path):
    from accuracy import competitors

    checkpoint = domain.random(SMALL, seed=0)
    calibration, unseen = random_images(16, (28, 28), 0, 1), random_images(8, (28, 28), 1, 1)
    expected = domain.network(checkpoint)(unseen)
    noise = {
        title: sqnr_db(quantize()(unseen), expected)
        for title, quantize in competitors(checkpoint, calibration, tmp_path).items()
    }
    assert {engine for engine, _ in noise} == {"intq", "onnxruntime", "openvino"}
    assert min(noise.values()) > 10, noise


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_every_peer_answers_as_the_float_encoder_at_any_size(peers, family, tmp_path, monkeypatch):
    import encoders
    import worker

    monkeypatch.setenv("INTQ_CACHE", str(tmp_path))
    network = tiny(family)
    module = encoders.Published(network.model, network.padding, network.separator)
    calibration = [tiny_ids(family, 1, 20, seed, full=True).numpy() for seed in range(8)]
    entries = encoders.prepare(family, module, calibration, {0: "n", 1: "s"}, tmp_path / "x.npy")
    assert [(entry.engine, entry.precision) for entry in entries] == [
        ("onnxruntime", "int8 dynamic"),
        ("onnxruntime", "int8 static"),
        ("openvino", "int8"),
        ("torch", "float32"),
    ]
    operators = {node.op_type for node in onnx.load(entries[0].network).graph.node}
    assert {"QAttention", "SkipLayerNormalization", "BiasGelu"} <= operators  # ONNX Runtime's fusions have worked
    for ids in (tiny_ids(family, 4, 20), tiny_ids(family, 1, 9)):
        expected = network(ids).numpy()
        for entry in entries:
            scores = worker.ENGINES[entry.engine](entry.network, ids.numpy(), 1)()
            least = 90 if entry.precision == "float32" else 10
            assert sqnr_db(scores, expected) > least, (entry, sqnr_db(scores, expected))
    assert network.model.config._attn_implementation == "sdpa"  # as it was


@pytest.mark.filterwarnings("ignore")
def test_texts_have_no_padding_and_one_segment(peers):
    from subjects import subject

    this = subject("minilm-l6", 2, 16)
    special = [this.checkpoint.padding, this.checkpoint.separator]
    assert this.raw.dtype == np.int32 and this.raw.shape == (2, 16)
    np.testing.assert_array_equal(this.raw, this.given)
    assert not np.isin(this.given, special).any()
    assert {ids.shape for ids in this.calibration} == {(1, 128)}


@pytest.mark.filterwarnings("ignore")
def test_tables(peers):
    import accuracy
    import bench

    timing = {"model": "net", "batch": 1, "sequence": None, "audio": None, "threads": 2}
    timing |= {"median_ms": 9.0, "peak_memory_mb": 50.0}
    openvino = timing | {"engine": "openvino", "precision": "int8", "min_ms": 8.0}
    rows = [openvino, timing | {"engine": "intq", "precision": "int8", "min_ms": 4.0}]
    assert bench.markdown(rows).splitlines()[-1] == "| net | 1 | 2 | 4.00 (9.00) | 8.00 (9.00) | 0.50 | 50 / 50 |"
    rows += [timing | {"engine": "torch", "precision": "float32", "min_ms": 16.0}]
    last = bench.markdown([row | {"sequence": 128} for row in rows]).splitlines()[-1]
    assert last.startswith("| net | 1 x 128 | 2 |") and last.endswith("| 0.50 | 0.25 | 50 / 50 / 50 |")
    last = bench.markdown([row | {"audio": 10.0} for row in rows]).splitlines()[-1]
    assert last.startswith("| net | 1 x 10 s | 2 |")
    row = {"model": "net", "engine": "intq", "settings": "default", "sqnr_db": 21.04, "agreement": 0.953, "top1": 0.9}
    assert accuracy.markdown([row]).splitlines()[-1] == "| net | intq | default | 21.0 dB | 95.3% | 90% |"


@pytest.mark.filterwarnings("ignore")
def test_an_unknown_architecture_is_one_sentence_and_2(peers, capsys):
    import bench

    assert bench.main(["nothing"]) == 2
    assert "no architecture is called 'nothing'" in capsys.readouterr().err


def test_a_failing_engine_is_named(peers, tmp_path):
    from engines import Entry, race

    from intq.errors import IntqError

    np.save(tmp_path / "x.npy", np.zeros((1, 1, 28, 28), np.float32))
    broken = Entry("onnxruntime", "int8", tmp_path / "missing.onnx", tmp_path / "x.npy")
    with pytest.raises(IntqError, match="onnxruntime int8 failed on"):
        race([broken], threads=1, rounds=1)
