"""The made corpus: what is said, by whom, that no speaker and no phrase is in two splits, and what is written."""

import gzip
import struct
import zlib
from itertools import combinations

import numpy as np
import pytest

from intq.errors import IntqError
from intq.speech import assets, corpus, data, phrases, voices
from intq.speech.corpus import Line, Speaker
from intq.speech.voices import Voice

TEXTS = [f"phrase number {chr(97 + i // 26)}{chr(97 + i % 26)} is here" for i in range(600)]


def novels(path, *texts):
    """A file of novels as GNU R writes it: a character vector of lines each."""
    content = b""
    for lines in texts:
        strings = b"".join(struct.pack(">II", 0x40009, len(line.encode())) + line.encode() for line in lines)
        head = b"X\n" + struct.pack(">IIII", 3, 0x40200, 0x30500, 5) + b"UTF-8" + struct.pack(">II", 16, len(lines))
        content += struct.pack(">I", len(head + strings)) + zlib.compress(head + strings)
    path.write_bytes(content)
    return path


def test_phrases_are_of_common_words_and_end_where_sentences_do(tmp_path):
    common = ["It was a very good day, and _they_ all went", "home; the day was so good that Mrs. Elton sang."] * 60
    rare = [
        "It was a perspicacious day! Was it? It was a good day, and",
        'they "all went home"',
        "in 1811 it was good -- caf\u00e9",
    ]
    found = phrases.phrases(novels(tmp_path / "r.rdb", common, rare))
    assert found == sorted(
        {
            "it was a very good day and they all went home",
            "the day was so good that missus elton sang",
            "it was a good day and they",
        }
    )


def test_what_is_no_file_of_novels(tmp_path):
    for content in (b"no such thing", b"\0\0\0\1" + zlib.compress(b"X\nabc"), b"\0\0\0\1" + zlib.compress(bytes(40))):
        (tmp_path / "r.rdb").write_bytes(content)
        with pytest.raises(IntqError, match=r"r.rdb is not the file of novels"):
            phrases.phrases(tmp_path / "r.rdb")


def test_prompts_that_are_words(tmp_path):
    lines = [
        "; Core Asterisk Sounds",
        "",
        "agent-pass: Please enter your password, followed by the pound key.",
        "beep: [this is a beep]",
        "vm-opts: Press 1 for more -- or 2.",
        "many: Press 12",
        "pin: Enter your PIN",
        "lone: Option B",
        "digits/1: one",
        "dir-first: I'm a first: name",
    ]
    with gzip.open(tmp_path / "t.gz", "wt") as file:
        file.write("\n".join(lines))
    assert phrases.prompts(tmp_path / "t.gz") == {
        "agent-pass": "please enter your password followed by the pound key",
        "vm-opts": "press one for more or two",
        "dir-first": "i'm a first name",
    }


@pytest.mark.parametrize("hours", [0.05, 0.4])
def test_no_speaker_and_no_phrase_is_in_two_splits(tmp_path, hours):
    prompts = [Line("thank you", tmp_path / "a.g722")]
    speakers = corpus.plan(hours, 3, TEXTS, prompts)
    assert speakers == corpus.plan(hours, 3, TEXTS, prompts) != corpus.plan(hours, 4, TEXTS, prompts)
    names = (*corpus.SHARES, corpus.OTHER)
    splits = {name: [each for each in speakers if each.split == name] for name in names}
    numbers = [each.number for each in speakers]
    assert len(set(numbers)) == len(numbers)
    said = {split: {line.text for each in own for line in each.lines} for split, own in splits.items()}
    heard = {split: {_throat(each.name) for each in own} for split, own in splits.items()}
    for one, other in combinations(names, 2):
        assert not said[one] & said[other] and not heard[one] & heard[other]
    assert all(len(speaker.lines) >= 1 for speaker in speakers)
    assert speakers[-1].lines == tuple(prompts) and speakers[-1].split == "train"
    assert [len(splits[name]) for name in ("dev", "test", "test-other")] == [5, 10, 1]


def _throat(name):
    """What must not be in two splits: of espeak-ng the variant, whatever its accent."""
    return name.partition("+")[2] or name


def tone(voice, text, rate):
    return np.full(len(text) * 10, 100 + voice.speed, np.int16)


@pytest.fixture
def small(tmp_path):
    first = Voice("espeak-ng", "en-gb+f2", 150, 50)
    return [
        Speaker(1000, "test", str(first), (Line("so it is", first), Line("it isn't", first))),
        Speaker(3000, "train", "flite slt", (Line("good day", Voice("flite", "slt")),)),
    ]


def test_the_layout_is_librispeechs(tmp_path, small, monkeypatch):
    monkeypatch.setattr(corpus, "speak", tone)
    seen = []
    corpus.write(tmp_path / "made", small, 2, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    found = data.utterances(tmp_path / "made")
    assert [(each.path.relative_to(tmp_path / "made").as_posix(), each.text) for each in found] == [
        ("test/1000/1/1000-1-0000.flac", "SO IT IS"),
        ("test/1000/1/1000-1-0001.flac", "IT ISN'T"),
        ("train/3000/1/3000-1-0000.flac", "GOOD DAY"),
    ]
    assert [round(each.duration * corpus.RATE) for each in found] == [80, 80, 80]
    assert "1000 | test | espeak-ng en-gb+f2\n" in (tmp_path / "made" / "SPEAKERS.TXT").read_text()


def test_the_corpus_comes_into_being_whole_or_not_at_all(tmp_path, monkeypatch):
    def fails(voice, text, rate):
        raise IntqError("no voice today")

    monkeypatch.setattr(corpus, "check_engines", lambda: None)
    monkeypatch.setattr(corpus, "asset", lambda name: tmp_path / name)
    monkeypatch.setattr(corpus, "phrases", lambda path: TEXTS)
    monkeypatch.setattr(corpus, "recorded", lambda: [])
    monkeypatch.setattr(corpus, "speak", fails)
    with pytest.raises(IntqError, match="no voice today"):
        corpus.build(tmp_path / "cache" / "made", hours=0.02)
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.setattr(corpus, "speak", tone)
    made = corpus.build(tmp_path / "cache" / "made", hours=0.02)
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    assert corpus.build(made, hours=5) == made  # it is there
    again = corpus.build(tmp_path / "again", hours=0.02)
    assert {path.relative_to(again): path.read_bytes() for path in again.rglob("*") if path.is_file()} == {
        path.relative_to(made): content for path, content in before.items()
    }


def test_too_many_hours_repeat_phrases_of_training_alone():
    speakers = corpus.plan(1.0, 0, TEXTS, [])
    train = [line.text for each in speakers if each.split == "train" for line in each.lines]
    held = {line.text for each in speakers if each.split != "train" for line in each.lines}
    assert len(train) == 1200 and len(set(train)) == 600 - len(held)
    with pytest.raises(IntqError, match="2 hours need 360 phrases that training never sees, and there are 600"):
        corpus.plan(2.0, 0, TEXTS, [])


@pytest.mark.parametrize("voice", [Voice("espeak-ng", "en-us-nyc+f4", 160, 45), Voice("flite", "slt")], ids=str)
def test_the_synthesizers_speak(voice):
    samples = voices.speak(voice, "it was a very good day", corpus.RATE)
    assert samples.dtype == np.int16 and 0.8 < len(samples) / corpus.RATE < 4 and np.abs(samples).max() > 2000
    assert np.array_equal(samples, voices.speak(voice, "it was a very good day", corpus.RATE))


def test_a_synthesizer_that_is_missing_or_fails_is_named(monkeypatch, tmp_path):
    with pytest.raises(IntqError, match="espeak-ng nobody could not say 'a'"):
        voices.speak(Voice("espeak-ng", "nobody", 150, 50), "a", corpus.RATE)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(IntqError, match="espeak-ng and flite not found: apt-get install espeak-ng flite"):
        voices.check_engines()


def test_recordings_of_the_telephone_are_decoded(tmp_path):
    from G722 import G722

    sound = np.round(8000 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)).astype(np.int16)
    (tmp_path / "a.g722").write_bytes(bytes(G722(16000, 64000).encode(sound.tolist())))
    found = voices.g722(tmp_path / "a.g722")
    assert found.dtype == np.int16 and len(found) == 16000
    # The codec delays by some samples and adds noise; the tone is there.
    assert max(np.corrcoef(sound[:15000], found[shift : 15000 + shift])[0, 1] for shift in range(40)) > 0.99


def test_its_sources_are_assets():
    assert set(corpus.SOURCES) <= set(assets.ASSETS)


def test_the_command_says_what_it_made(root, tmp_path, small, monkeypatch, capsys):
    import json

    monkeypatch.syspath_prepend(root / "scripts" / "speech")
    import make

    def build(folder, hours, seed, jobs, advance):
        assert (hours, seed) == (0.5, 1)
        rest = [Speaker(2000 + i, name, "flite awb", small[1].lines) for i, name in enumerate(("dev", "test-other"))]
        corpus.write(folder, [*small, *rest], jobs, advance)

    monkeypatch.setenv("INTQ_CACHE", str(tmp_path))
    monkeypatch.setattr(corpus, "speak", tone)
    monkeypatch.setattr(make, "build", build)
    monkeypatch.setattr(make, "fetch", lambda name: None)
    assert make.main(["--hours", "0.5", "--seed", "1", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["folder"] == str(tmp_path / "speech-data" / "made-0.5-hours-seed-1")
    assert {name: part["utterances"] for name, part in value["splits"].items()} == {
        **{"train": 1, "dev": 1},
        **{"test": 2, "test-other": 1},
    }
    assert make.main(["--hours", "0.5", "--seed", "1"]) == 0
    assert capsys.readouterr().out.strip() == value["folder"]


def test_the_command_without_assets_is_one_sentence_and_2(root, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(root / "scripts" / "speech")
    import make

    monkeypatch.setenv("INTQ_CACHE", str(tmp_path))
    monkeypatch.setattr(make, "fetch", lambda name: None)
    assert make.main([]) == 2
    assert "run scripts/fetch_data" in capsys.readouterr().err
