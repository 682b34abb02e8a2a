"""The comparison with the peers on speech: small networks, from features, through each of them."""

import importlib
import json

import numpy as np
import pytest
import soundfile
import torch

from intq.frontend import FrontEnd
from intq.speech import domain, models, nemo
from intq.speech.models import LETTERS, Architecture
from intq.speech.models.conformer import ConformerSettings
from intq.speech.models.convolutional import BlockSettings
from intq.speech.synthetic import random_audio
from intq.vision.metrics import sqnr_db

RATE = 16000
STEM, LAST = BlockSettings(16, 5, stride=2), BlockSettings(16, 1)
FAMILIES = {
    "quartznet": (STEM, BlockSettings(16, 7, 2, residual=True, separable=True), LAST),
    "citrinet": (STEM, BlockSettings(16, 7, 2, residual=True, separable=True, se=True), LAST),
    "conformer": ConformerSettings(16, 16, 2, 4, kernel=7),
}


@pytest.fixture
def tiny(monkeypatch):
    """The checkpoint of a small network of a family, which the commands know by that name."""

    def make(family):
        front = FrontEnd(RATE, 320, 160, 512, 16)
        monkeypatch.setitem(models.ARCHITECTURES, family, Architecture(family, front, FAMILIES[family], "ctc", LETTERS))
        return domain.random(family, 0)

    return make


@pytest.fixture
def peers(root, monkeypatch, tmp_path):
    """The modules of scripts/peers and scripts/speech, with a cache of their own."""
    importlib.import_module("onnxruntime.transformers")  # it extends sys.path once, and monkeypatch would undo that
    monkeypatch.syspath_prepend(root / "scripts" / "peers")
    monkeypatch.syspath_prepend(root / "scripts" / "speech")
    monkeypatch.setenv("INTQ_CACHE", str(tmp_path / "cache"))


def recordings(count: int, samples: int, seed: int = 0) -> list[np.ndarray]:
    return list((random_audio(count, samples, RATE, seed) * 32768).astype(np.int16)[:, None])


@pytest.mark.filterwarnings("ignore")  # the peers' own
@pytest.mark.parametrize("family", FAMILIES)
def test_the_network_of_features_is_the_rest_of_the_model(peers, tiny, family, tmp_path):
    import worker
    from engines import export_onnx
    from features import Network, features

    model = tiny(family).model
    (samples,) = recordings(1, 8000)
    x = features(model, samples)
    assert x.flags.c_contiguous and x.shape == (1, 16, 50)
    expected = domain.network(tiny(family))(samples, np.array([8000], np.int32))
    module = Network(model)
    np.testing.assert_allclose(module(torch.from_numpy(x)).numpy(), expected, atol=1e-5)
    onnx = export_onnx(module, x, tmp_path / "x.onnx", skip_symbolic_shape=True)
    for engine, settings in (("onnxruntime", {}), ("openvino", {"INFERENCE_PRECISION_HINT": "f32"})):
        np.testing.assert_allclose(worker.ENGINES[engine](onnx, x, 1, **settings)(), expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["quartznet", "conformer"])
def test_every_peer_answers_as_the_float_network(peers, tiny, family):
    import worker
    from features import Network, features, prepare

    checkpoint = tiny(family)
    heard = [features(checkpoint.model, each) for each in recordings(4, 8000)]
    module = Network(checkpoint.model)
    entries = prepare(family, module, heard, 1)
    assert [(entry.engine, entry.precision) for entry in entries] == [
        ("onnxruntime", "int8 dynamic"),
        ("onnxruntime", "int8 static"),
        ("openvino", "int8"),
        ("torch", "float32"),
    ]
    assert "QDQ QUInt8/QInt8 " in entries[1].note and "the rest in float32 " in entries[2].note
    expected = module(torch.from_numpy(heard[0])).numpy()
    for entry in entries:
        settings = entry.settings  # of OpenVINO the quicker of two, which differs from run to run; here always the same
        if entry.engine == "openvino":
            settings = settings | {"INFERENCE_PRECISION_HINT": "f32"}
        scores = worker.ENGINES[entry.engine](entry.network, np.load(entry.input), 1, **settings)()
        least = 90 if entry.precision == "float32" else 10
        assert sqnr_db(scores, expected) > least, (entry, sqnr_db(scores, expected))


@pytest.mark.filterwarnings("ignore")
def test_bench_times_recordings(peers, tiny, capsys):
    import bench

    tiny("quartznet")
    arguments = ["--audio", "0.5", "--threads", "1", "--rounds", "1", "--engines", "intq,openvino", "--json"]
    assert bench.main(["quartznet", *arguments]) == 0
    shown = capsys.readouterr()
    rows = json.loads(shown.out)
    assert [(row["engine"], row["precision"]) for row in rows] == [("intq", "int8"), ("openvino", "int8")]
    for row in rows:
        assert (row["model"], row["batch"], row["sequence"], row["audio"]) == ("quartznet", 1, None, 0.5)
        assert 0 < row["min_ms"] <= row["median_ms"]
    assert "quartznet: openvino int8: the rest in" in shown.err
    assert bench.markdown(rows).splitlines()[-1].startswith("| quartznet | 1 x 0.5 s | 1 |")


# ---- accuracy ----------------------------------------------------------------------------------------------------


@pytest.fixture
def split(tmp_path):
    """A folder with five recordings and a manifest of what they would say."""
    folder = tmp_path / "split"
    folder.mkdir()
    lines = []
    for index, samples in enumerate(recordings(5, 9000)):
        soundfile.write(folder / f"{index}.wav", samples[0, : 9000 - 800 * index], RATE)
        lines.append(json.dumps({"audio_filepath": f"{index}.wav", "text": "a made up text"}))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def checkpoint(tiny, tmp_path):
    """The small QuartzNet as a .nemo file."""
    path = tmp_path / "tiny.nemo"
    nemo.save(tiny("quartznet"), path)
    return path


@pytest.mark.filterwarnings("ignore")
def test_every_engine_is_compared_with_the_float_network(peers, checkpoint, split, capsys):
    import closeness

    arguments = [checkpoint, split, "--calibration", split, "--samples", "4", "--threads", "1"]
    assert closeness.main([*map(str, arguments), "--engines", *closeness.ENGINES, "--json"]) == 0
    first, *rows = json.loads(capsys.readouterr().out)
    assert (first["engine"], first["metrics"]["labels"], first["agreement"], first["sqnr_db"]) == ("torch", 0, 1, None)
    assert [row["engine"] for row in rows] == ["intq", *["openvino"] * 2, *["onnxruntime"] * 2]
    for row in rows:
        assert (row["model"], row["examples"]) == ("tiny", 5) and row["metrics"].keys() == {"wer", "cer", "labels"}
        assert row["sqnr_db"] > 10 and row["agreement"] > 0.5, row
    assert rows[0]["sqnr_db"] > 15


def test_zero_shot_is_a_row_of_its_own(peers, checkpoint, split, capsys, monkeypatch):
    import closeness

    asked = []

    def prepare(found, data, zero_shot=False, prepare=domain.prepare, **options):
        asked.append((data, zero_shot))
        return prepare(found, data, **options)

    monkeypatch.setattr(domain, "prepare", prepare)
    arguments = [str(checkpoint), str(split), "--samples", "4", "--limit", "2", "--threads", "1", "--markdown"]
    assert closeness.main([*arguments, "--zero-shot"]) == 0
    header, _, _, row = capsys.readouterr().out.splitlines()
    assert header.startswith("| model | engine |") and row.startswith("| tiny | intq | zero-shot | ")
    assert asked == [(None, True)]


def test_what_to_calibrate_on_must_be_said(peers, checkpoint, split, capsys):
    import closeness

    with pytest.raises(SystemExit, match="2"):
        closeness.main([str(checkpoint), str(split)])
    assert "--calibration is missing" in capsys.readouterr().err
    assert closeness.main([str(checkpoint), str(split / "none"), "--calibration", str(split)]) == 2
    assert "accuracy_speech: there is no" in capsys.readouterr().err


def test_labels_that_are_no_letters_are_compared_with_floats_alone(peers, monkeypatch):
    import closeness

    this = closeness.Subject(domain.random("hama", 0), [], None, 1)
    assert not closeness.spells(this.checkpoint)
    blank = this.reader.labels.blank
    reference = np.zeros((5, len(this.reader.labels)), np.float32)
    reference[range(5), [3, 3, blank, 4, 5]] = 1.0
    other = reference.copy()
    other[4, 7] = 2.0
    row = closeness.judge(this, "intq", "calibrated", [other], [reference])
    assert row["metrics"] == {"labels": round(1 / 3, 5)} and row["agreement"] == 0.8
    assert closeness.cells(row)[3:7] == ["", "", "33.33 %", "80.00 %"]
