"""The commands on recordings, as a user meets them: transcripts, error rates, every mistake in one sentence."""

import itertools
import json
import shutil

import numpy as np
import pytest
import soundfile
from commandline import answer, complaint, invoke
from small_speech import RATE, recording, small, write_recordings

from intq import artifact
from intq.backends import reference
from intq.speech import nemo
from intq.speech.decode import greedy
from intq.speech.labels import characters

TEXTS = ["a b", "cab", "b c", "ba"]


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """Recordings with a manifest, and a checkpoint of every head."""
    folder = tmp_path_factory.mktemp("speech")
    write_recordings(folder / "data", TEXTS)
    for head in ("ctc", "classification", "frames"):
        nemo.save(small("tiny", head), folder / f"{head}.nemo")
    return folder


@pytest.fixture(scope="module")
def net(spoken):
    folder = spoken / "ctc-int8"
    value = answer("quantize", spoken / "ctc.nemo", "--data", spoken / "data", "-o", folder)
    assert value["model"] == "ctc" and value["overflow"]["proven"] is True
    return folder


def test_run_spells_the_references_scores(net, spoken):
    files = [spoken / "data" / f"{i}.wav" for i in range(2)]
    rows = answer("run", net, *files)
    graph = artifact.load(net)
    for row, file in zip(rows, files, strict=True):
        samples = soundfile.read(file, dtype="int16")[0]
        (scores,) = reference.run(graph, samples[None], np.array([len(samples)], np.int32))
        labels = characters(graph.metadata["labels"])
        assert row["input"] == str(file) and row["text"] == greedy(scores[0], labels)
        assert row["seconds"] == len(samples) / RATE and row["real_time_factor"] > 0
        assert row["notices"] == []
    assert "real-time factor" in invoke("run", net, files[0]).stdout


def test_what_was_done_to_a_recording_is_said(net, tmp_path):
    stereo = np.stack([recording(1.0)] * 2, 1)
    soundfile.write(tmp_path / "stereo.wav", stereo, RATE)
    soundfile.write(tmp_path / "slow.flac", recording(1.0), RATE // 2)
    first, second = answer("run", net, tmp_path / "stereo.wav", tmp_path / "slow.flac")
    assert first["notices"] == ["its 2 channels are mixed to one"]
    assert second["notices"][0].startswith("resampled from 4000 Hz to 8000 Hz")


def test_error_rates_of_integers_and_of_floats(net, spoken):
    data = spoken / "data"
    for network in (net, f"float:{spoken / 'ctc.nemo'}"):
        value = answer("eval", network, "--data", data)
        assert value["task"] == "speech-recognition" and value["examples"] == len(TEXTS)
        assert set(value["metrics"]) == {"wer", "cer"} and value["hours"] > 0
    assert answer("eval", net, "--data", data / "manifest.csv", "--limit", 2)["examples"] == 2
    assert (
        answer("eval", net, "--data", data, "--batch", 1)["metrics"] == answer("eval", net, "--data", data)["metrics"]
    )


def test_a_network_of_classes_and_one_of_frames(spoken, tmp_path):
    file = spoken / "data" / "1.wav"
    for head in ("classification", "frames"):
        answer("quantize", spoken / f"{head}.nemo", "--data", spoken / "data", "-o", tmp_path / head)
    (row,) = answer("run", tmp_path / "classification", file, "--top", 2)
    assert [set(each) for each in row["top"]] == [{"label", "index", "score"}] * 2
    (row,) = answer("run", tmp_path / "frames", file)
    assert row["parts"][0]["start"] == 0
    assert all(a["end"] == b["start"] for a, b in itertools.pairwise(row["parts"]))
    assert "writes no transcripts" in complaint("eval", tmp_path / "frames", "--data", spoken / "data")


def test_verify_and_bench(net):
    value = answer("verify", net)
    assert not any(value["mismatches"].values()) and value["float_instructions"] == 0
    value = answer("bench", net, "--audio", 0.5, "--seconds", 0.1, "--threads", 1)
    assert value["audio"] == 0.5 and value["sequence"] is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run", "NET", "missing.wav"), "missing.wav: No such file"),
        (("run", "NET", "text.wav"), "cannot be read as audio"),
        (("run", "NET", "empty.wav"), "empty file"),
        (("run", "NET", "short.wav"), "needs at least"),
        (
            ("run", "NET", "good.wav", "--pair", "x"),
            "--pair is for networks that read text, and this one reads recordings",
        ),
        (("run", "NET", "good.wav", "--language-model", "lm.arpa"), "no language model"),
        (("eval", "NET"), "no data: give --data a folder in LibriSpeech's layout"),
        (("eval", "NET", "--data", "manifest.csv"), "manifest.csv, line 2: there is no recording"),
        (("eval", "NET", "--download", "dev-dirty"), "LibriSpeech has no subset 'dev-dirty'"),
        (("bench", "NET", "--sequence", "5"), "is no text: leave out --sequence"),
        (("bench", "NET", "--audio", "500"), "samples here, got 4000000"),
        (("quantize", "bad.nemo", "--data", ".", "-o", "out"), "bad.nemo"),
        (("quantize", "CTC", "--data", "nothing", "-o", "out"), "holds no recordings"),
    ],
)
def test_mistakes_are_named(net, spoken, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "text.wav").write_text("this is no recording, whatever it is called")
    (tmp_path / "empty.wav").touch()
    (tmp_path / "bad.nemo").write_bytes(b"no archive")
    (tmp_path / "manifest.csv").write_text("audio_filepath,text\ngone.wav,a b\n")
    soundfile.write(tmp_path / "short.wav", recording(0.02), RATE)
    soundfile.write(tmp_path / "good.wav", recording(0.5), RATE)
    names = {"NET": net, "CTC": spoken / "ctc.nemo"}
    assert says in complaint(*(names.get(each, each) for each in arguments))
    assert not (tmp_path / "out").exists()


def test_transcripts_with_characters_that_the_network_lacks(net, spoken, tmp_path):
    shutil.copytree(spoken / "data", tmp_path / "data")
    (tmp_path / "data" / "manifest.csv").write_text("audio_filepath,text\n0.wav,a zebra\n1.wav,b\n")
    (notice,) = answer("eval", net, "--data", tmp_path / "data")["notices"]
    assert notice.startswith("1 of 2 transcripts hold characters that the network has no label for, such as 'e'")


def test_the_artifact_says_all_that_it_needs(net):
    metadata = json.loads((net / "graph.json").read_text())["metadata"]
    assert metadata["domain"] == "speech" and metadata["frames"] == "(t+80)//160" and metadata["sample_rate"] == RATE
