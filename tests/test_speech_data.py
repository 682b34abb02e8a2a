"""Utterances of LibriSpeech's layout and of manifests, what is wrong with them, and a network judged on them."""

import json

import numpy as np
import pytest
import soundfile

from intq.errors import IntqError
from intq.speech import data
from intq.speech.evaluate import answered, evaluate
from intq.speech.labels import characters

RATE = 16000
LABELS = characters([" ", *"abcdefghijklmnopqrstuvwxyz'"])


def record(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.zeros(samples, np.int16) if isinstance(samples, int) else samples
    soundfile.write(path, samples, RATE, subtype="PCM_16")


@pytest.fixture
def libri(tmp_path):
    """Two speakers of dev-clean, one with two chapters."""
    for speaker, chapter, texts in ((84, 1, ["HELLO THERE", "IT ISN'T"]), (84, 2, ["SO"]), (174, 5, ["A B"])):
        folder = tmp_path / "dev-clean" / str(speaker) / str(chapter)
        for index in range(len(texts)):
            record(folder / f"{speaker}-{chapter}-{index:04d}.flac", 1600 * (index + 1))
        lines = "".join(f"{speaker}-{chapter}-{i:04d} {text}\n" for i, text in enumerate(texts))
        (folder / f"{speaker}-{chapter}.trans.txt").write_text(lines)
    return tmp_path


def test_librispeech_from_any_folder_above(libri):
    found = data.utterances(libri)
    assert [each.text for each in found] == ["A B", "HELLO THERE", "IT ISN'T", "SO"]
    assert [each.duration for each in found] == [0.1, 0.1, 0.2, 0.1] and {each.offset for each in found} == {0.0}
    assert found[2].where.endswith("84-1.trans.txt, line 2") and found[2].path.name == "84-1-0001.flac"
    assert data.utterances(libri / "dev-clean" / "174") == found[:1]


def test_a_missing_recording_names_the_transcripts_line(libri):
    (libri / "dev-clean/84/1/84-1-0001.flac").unlink()
    with pytest.raises(IntqError, match=r"84-1.trans.txt, line 2: there is no recording .*84-1-0001.flac"):
        data.utterances(libri)


def test_a_transcript_without_words_is_named(libri):
    (libri / "dev-clean/84/2/84-2.trans.txt").write_text("84-2-0000\n")
    with pytest.raises(IntqError, match=r"84-2.trans.txt, line 1: 84-2-0000 has no transcript"):
        data.utterances(libri)


def test_what_is_no_data(tmp_path):
    with pytest.raises(IntqError, match="holds no utterances: expected LibriSpeech's layout"):
        data.utterances(tmp_path)
    with pytest.raises(IntqError, match=r"there is no .*nowhere"):
        data.utterances(tmp_path / "nowhere")
    (tmp_path / "a.xls").touch()
    with pytest.raises(IntqError, match=r"a.xls ends in none of .jsonl"):
        data.utterances(tmp_path / "a.xls")


def manifest(path, rows):
    if path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(f'"{value}"' for value in row.values()) for row in rows)]
    else:
        lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_nemos_manifest(tmp_path):
    record(tmp_path / "wavs" / "a.wav", 3 * RATE)
    record(tmp_path / "b.wav", RATE)
    rows = [
        {"audio_filepath": "wavs/a.wav", "text": "one", "duration": 1.5, "offset": 0.5},
        {"audio_filepath": str(tmp_path / "b.wav"), "text": "two", "duration": None},
        {"audio_filepath": "wavs/a.wav", "text": "three", "offset": 2},
    ]
    found = data.utterances(manifest(tmp_path / "dev.json", rows))
    assert [(each.path.name, each.offset, each.duration, each.text) for each in found] == [
        ("a.wav", 0.5, 1.5, "one"),
        ("b.wav", 0.0, 1.0, "two"),
        ("a.wav", 2.0, 1.0, "three"),
    ]
    assert found[1].where.endswith("dev.json, line 2")


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "manifest.json"])
def test_a_folder_with_a_manifest(tmp_path, name):
    record(tmp_path / "a.wav", RATE)
    manifest(tmp_path / name, [{"file_name": "a.wav", "transcription": 'He said, "yes"'.replace('"', "")}])
    (found,) = data.utterances(tmp_path)
    assert (found.text, found.duration) == ("He said, yes", 1.0)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "a"}, "there is no column of recordings; the columns are 'text'; expected one of 'audio_filepath'"),
        ({"audio_filepath": "a.wav"}, "there is no column of transcripts; the columns are 'audio_filepath'"),
        ({"audio_filepath": "c.wav", "text": "a"}, "there is no recording"),
        ({"audio_filepath": "a.wav", "text": 3}, "the transcript is no text: 3"),
        ({"audio_filepath": "a.wav", "text": "a", "offset": "soon"}, "expected offset in seconds, found 'soon'"),
        ({"audio_filepath": "a.wav", "text": "a", "duration": -1}, "expected duration in seconds, found -1"),
    ],
)
def test_what_is_wrong_in_a_manifest_is_named_with_its_line(tmp_path, row, words):
    record(tmp_path / "a.wav", RATE)
    path = manifest(tmp_path / "m.jsonl", [{"audio_filepath": "a.wav", "text": "fine"}, row])
    with pytest.raises(IntqError) as error:
        data.utterances(path)
    assert f"{path}, line 2: " in str(error.value) and words in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{]\n", "line 1: is not JSON"),
        (b"[1]\n", "line 1: expected a JSON object"),
        (b"\n", "holds no utterances"),
        (b"\xff\n", "is not UTF-8"),
    ],
)
def test_what_is_no_manifest(tmp_path, content, words):
    (tmp_path / "m.jsonl").write_bytes(content)
    with pytest.raises(IntqError, match=words):
        data.utterances(tmp_path / "m.jsonl")


def test_downloads_need_torchaudio_and_know_their_names(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torchaudio", None)
    with pytest.raises(IntqError, match=r"torchaudio .* or unpack dev-clean.tar.gz of openslr.org/12"):
        data.download("dev-clean", tmp_path)
    with pytest.raises(IntqError, match="no subset 'dev'; it has dev-clean"):
        data.download("dev", tmp_path)
    (tmp_path / "LibriSpeech" / "dev-clean").mkdir(parents=True)
    assert data.download("dev-clean", tmp_path) == tmp_path / "LibriSpeech" / "dev-clean"


def test_downloads_by_torchaudio(tmp_path, monkeypatch):
    import sys
    import types

    def subset(root, url, download):
        assert download
        raise RuntimeError("The hash of dev-other.tar.gz does not match")

    module = types.ModuleType("torchaudio.datasets")
    module.LIBRISPEECH = subset
    monkeypatch.setitem(sys.modules, "torchaudio", types.ModuleType("torchaudio"))
    monkeypatch.setitem(sys.modules, "torchaudio.datasets", module)
    with pytest.raises(IntqError, match=r"dev-other could not be downloaded .*hash"):
        data.download("dev-other", tmp_path)


# ---- evaluation --------------------------------------------------------------------------------------------------

FRAME = 100  # samples that the network below makes a frame of


def spoken(text):
    """A recording whose every 100 samples are a letter's number, as loud as that; the blank is between them."""
    path = [label for letter in text for label in (LABELS.texts.index(letter), LABELS.blank)]
    return np.repeat(np.array(path, np.int16) + 1, FRAME)


def frames(samples):
    return samples // FRAME


class Listener:
    """A network that hears `spoken` without fault, and keeps the shapes of its batches."""

    def __init__(self):
        self.shapes = []

    def __call__(self, samples, lengths):
        assert samples.dtype == np.int16 and lengths.dtype == np.int32 and samples.shape[1] == lengths.max()
        self.shapes.append(samples.shape)
        for row, length in zip(samples, lengths, strict=True):
            assert not row[length:].any()
        heard = samples[:, : frames(samples.shape[1]) * FRAME].reshape(len(samples), -1, FRAME)[:, :, 0]
        scores = np.zeros((*heard.shape, len(LABELS)), np.int32)
        # Padding is heard as "z": what is not the utterance's own must not be decoded.
        np.put_along_axis(scores, np.where(heard > 0, heard - 1, LABELS.texts.index("z"))[..., None], 7, axis=2)
        return scores


def corpus(folder, texts, heard=None):
    for index, text in enumerate(texts):
        record(folder / f"{index}.wav", spoken(heard[index] if heard else text))
    rows = [{"audio_filepath": f"{index}.wav", "text": text} for index, text in enumerate(texts)]
    return data.utterances(manifest(folder / "m.jsonl", rows))


def test_a_perfect_listener_makes_no_errors_in_batches_of_similar_length(tmp_path):
    given = corpus(tmp_path, ["abc de", "a", "it isn't so", "ab", "xyz"])
    listener, seen = Listener(), []
    found = evaluate(
        listener, frames, LABELS, given, RATE, batch=2, progress=lambda done, total: seen.append((done, total))
    )
    assert found["task"] == "speech-recognition" and found["examples"] == 5 and found["notices"] == []
    assert found["metrics"] == {"wer": 0.0, "cer": 0.0}
    assert found["hours"] == 2 * FRAME * 23 / RATE / 3600
    assert listener.shapes == [(2, 400), (2, 1200), (1, 2200)] and seen == [(2, 5), (4, 5), (5, 5)]


def test_errors_are_counted_over_all_words(tmp_path):
    given = corpus(tmp_path, ["a b c", "d"], ["a x c", "d e"])
    assert evaluate(Listener(), frames, LABELS, given, RATE)["metrics"]["wer"] == 0.5
    assert evaluate(Listener(), frames, LABELS, given, RATE, limit=1)["examples"] == 1


def test_what_cannot_be_spelled_is_said_and_counts(tmp_path):
    given = corpus(tmp_path, ["Caf\u00e9, 3 \u2013 yes", "fine"], ["caf", "fine"])
    found = evaluate(Listener(), frames, LABELS, given, RATE)
    assert found["metrics"]["wer"] == 0.75
    (notice,) = found["notices"]
    assert "1 of 2 transcripts" in notice and "'3'" in notice and "m.jsonl, line 1" in notice


def test_capitals_are_the_same_letters():
    given = [data.Utterance(None, 0, 1, "Abc", "here")]
    assert data.unspellable(given, characters([" ", *"ABC"])) == () == data.unspellable(given, LABELS)


def test_long_recordings_are_heard_in_pieces_and_other_rates_are_said(tmp_path):
    given = corpus(tmp_path, ["abc"])
    # Cut between letters: half a second of them, then silence that is heard as a blank.
    samples = np.concatenate([spoken("abc"), np.full(4000, LABELS.blank + 1), spoken("d")]).astype(np.int16)
    record(tmp_path / "0.wav", samples)
    (each,) = data.utterances(tmp_path / "m.jsonl")
    listener = Listener()
    found = evaluate(listener, frames, LABELS, [each], RATE, longest=2000, batch=1)
    assert len(listener.shapes) > 1 and max(shape[1] for shape in listener.shapes) <= 2000
    assert found["hours"] == len(samples) / RATE / 3600
    soundfile.write(tmp_path / "0.wav", np.zeros((8000, 2)), 8000)
    notices = evaluate(listener, frames, LABELS, given, RATE)["notices"]
    assert [notice.partition(": ")[0] for notice in notices] == ["1 of 1 recordings"] * 2
    assert any("resampled from 8000 Hz" in notice for notice in notices)


def test_nothing_to_evaluate_and_too_short(tmp_path):
    with pytest.raises(IntqError, match="no utterances"):
        evaluate(Listener(), frames, LABELS, [], RATE)
    with pytest.raises(IntqError, match="needs at least 100 ms"):
        evaluate(Listener(), frames, LABELS, corpus(tmp_path, ["a"]), RATE, shortest=1600)


def test_a_row_of_a_batch_is_answered_as_alone():
    rows = [spoken("a"), spoken("so it is")]
    for found, row in zip(answered(Listener(), frames, rows), rows, strict=True):
        assert np.array_equal(found, answered(Listener(), frames, [row])[0])
