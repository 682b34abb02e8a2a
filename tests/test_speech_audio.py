"""Recordings of every kind become int16 samples at one rate, bit for bit where they can; long ones are cut."""

import sys

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from intq.errors import IntqError
from intq.speech import audio

RATE = 16000


@pytest.fixture
def samples():
    return np.random.default_rng(0).integers(-32768, 32768, 50_000).astype(np.int16)


def written(path, samples, rate=RATE, **options):
    soundfile.write(path, samples, rate, **options)
    return path


@pytest.mark.parametrize(
    ("name", "subtype"), [("a.wav", "PCM_16"), ("a.flac", "PCM_16"), ("a.wav", "PCM_24"), ("a.wav", "PCM_32")]
)
def test_sixteen_bits_come_through_whatever_holds_them(tmp_path, samples, name, subtype):
    found, said = audio.read(written(tmp_path / name, samples, subtype=subtype), RATE)
    assert found.dtype == np.int16 and np.array_equal(found, samples) and said == ()


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_floats_are_scaled_and_rounded_halves_up(tmp_path, subtype):
    real = np.array([0.0, 0.5, 1.5, -0.5, -1.5, 100.25, -32768.0]) / 32768
    found, _ = audio.read(written(tmp_path / "a.wav", real, subtype=subtype), RATE)
    assert found.tolist() == [0, 1, 2, 0, -1, 100, -32768]


def test_twenty_four_bits_are_rounded_once(tmp_path):
    fine = np.array([0, 127, 128, 129, -127, -128, -129, 2**23 - 1, -(2**23)], np.int32)
    found, _ = audio.read(written(tmp_path / "a.wav", fine << 8, subtype="PCM_24"), RATE)
    assert found.tolist() == [0, 0, 1, 1, 0, 0, -1, 32767, -32768]


def test_what_is_too_loud_is_cut_off_and_said(tmp_path, caplog):
    path = written(tmp_path / "a.wav", np.array([0.0, 1.0, 1.5, -1.0, -2.0]), subtype="FLOAT")
    assert audio.read(path, RATE)[0].tolist() == [0, 32767, 32767, -32768, -32768]
    assert f"{path}: samples too loud for 16 bits, cut off: 2" in caplog.text


@pytest.mark.parametrize("name", ["a.ogg", "a.mp3"])
def test_compressed_recordings_are_read(tmp_path, name):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    found, _ = audio.read(written(tmp_path / name, tone), RATE)
    assert abs(len(found) - RATE) < 3000 and 15000 < np.abs(found).max() < 18000


def test_channels_are_mixed_and_said(tmp_path):
    stereo = np.array([[0, 1], [100, 200], [-5, -6], [32767, 32767]], np.int16)
    found, said = audio.read(written(tmp_path / "a.wav", stereo), RATE)
    assert found.tolist() == [1, 150, -5, 32767] and said == ("its 2 channels are mixed to one",)


@pytest.mark.parametrize(("given_rate", "words"), [(44100, "44100 Hz to 16000 Hz"), (8000, "nothing above 4000 Hz")])
def test_other_rates_are_resampled_and_said(tmp_path, given_rate, words):
    tone = np.round(10000 * np.sin(2 * np.pi * 440 * np.arange(2 * given_rate) / given_rate)).astype(np.int16)
    path = written(tmp_path / "a.wav", tone, given_rate)
    found, said = audio.read(path, RATE)
    want = 10000 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)
    assert len(found) == 2 * RATE and np.abs(found - want)[500:-500].max() < 3
    assert words in said[0] and audio.changes(path, RATE) == said


def test_without_a_resampler_another_rate_is_refused(tmp_path, samples, monkeypatch):
    monkeypatch.setitem(sys.modules, "soxr", None)
    path = written(tmp_path / "a.wav", samples, 8000)
    with pytest.raises(IntqError, match=r"a.wav has 8000 Hz .* 16000 Hz: give it audio at 16000 Hz, or .* soxr"):
        audio.read(path, RATE)
    assert len(audio.read(path, 8000)[0]) == len(samples)


def test_a_part_of_a_recording(tmp_path, samples):
    path = written(tmp_path / "a.wav", samples)
    assert np.array_equal(audio.read(path, RATE, 0.5, 1.25)[0], samples[8000:28000])
    assert np.array_equal(audio.read(path, RATE, 2.0)[0], samples[32000:])
    with pytest.raises(IntqError, match=r"3\.12 s long: it has nothing at 4 s"):
        audio.read(path, RATE, 4.0)


def _contents(tmp_path):
    written(tmp_path / "none.wav", np.empty(0, np.int16))
    written(tmp_path / "short.wav", np.zeros(80, np.int16))
    written(tmp_path / "nan.wav", np.array([0.0, np.nan]), subtype="FLOAT")
    (tmp_path / "text.wav").write_text("this is no audio")
    (tmp_path / "empty.wav").touch()
    (tmp_path / "folder.wav").mkdir()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.wav", "No such file"),
        ("folder.wav", "is a folder: expected a recording"),
        ("empty.wav", "is an empty file"),
        ("text.wav", "cannot be read as audio"),
        ("none.wav", "holds no samples: the network needs at least 10 ms"),
        ("short.wav", "holds 5 ms of audio: the network needs at least 10 ms"),
        ("nan.wav", "not numbers"),
    ],
)
def test_what_is_no_recording_is_named(tmp_path, name, words):
    _contents(tmp_path)
    for call in (audio.read, lambda *args, **options: list(audio.pieces(*args, 10**6, **options))):
        with pytest.raises(IntqError) as error:
            call(tmp_path / name, RATE, shortest=160)
        assert words in str(error.value) and str(tmp_path / name) in str(error.value)


def test_a_flac_file_that_is_cut_off_is_an_error(tmp_path, samples):
    path = written(tmp_path / "a.flac", np.tile(samples, 10))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(IntqError, match=r"a.flac"):
        audio.read(path, RATE)


@given(
    st.lists(st.integers(-32768, 32767), max_size=400),
    st.integers(1, 100),
    st.integers(1, 1000),
    st.lists(st.integers(1, 50), min_size=1),
)
def test_pieces_are_the_recording_and_fit(values, longest, rate, sizes):
    recording = np.array(values, np.int16)
    pieces = audio.segments(recording, rate, longest)
    assert np.array_equal(np.concatenate([np.empty(0, np.int16), *pieces]), recording)
    assert all(1 <= len(piece) <= longest for piece in pieces)
    if len(pieces) > 1:
        assert min(map(len, pieces)) >= 3 * longest // 8
    # How the recording was read makes no difference.
    cuts = np.cumsum(np.resize(sizes, 400))
    blocks = np.split(recording, cuts[cuts < len(recording)])
    assert [len(piece) for piece in audio._cut(blocks, rate, longest)] == [len(piece) for piece in pieces]


def test_the_cut_is_where_it_is_quiet(tmp_path):
    recording = np.full(10 * RATE, 1000, np.int16)
    recording[::2] = -1000
    for second in (3.5, 6.9):
        recording[int(second * RATE) : int((second + 0.1) * RATE)] = 0
    pieces = audio.segments(recording, RATE, 4 * RATE)
    assert len(pieces) == 3
    first, second = len(pieces[0]) / RATE, (len(pieces[0]) + len(pieces[1])) / RATE
    assert 3.5 <= first <= 3.6 and 6.9 <= second <= 7.0
    path = written(tmp_path / "a.flac", recording)
    read = list(audio.pieces(path, RATE, 4 * RATE))
    assert all(np.array_equal(a, b) for a, b in zip(read, pieces, strict=True))


def test_silence_is_cut_at_its_first_place():
    assert [len(piece) for piece in audio.segments(np.zeros(90, np.int16), 1000, 40)] == [30, 25, 35]
