"""Greedy decoding against torch and against its definition; vocabularies of every kind; the search with a model."""

import io
import itertools
import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from intq.errors import IntqError
from intq.speech.decode import beam_search, best_labels, greedy
from intq.speech.labels import Labels, characters, hugging_face, normalized, sentencepiece

LETTERS = characters([" ", *"abc'"])
SENTENCES = ["the cat sat on the mat", "a dog and a cat", "the dog sat", "it isn't on the mat", "and the cat sat"] * 20


def scores_of(labels, count, high=1000):
    """Scores whose best path are these labels."""
    scores = np.full((len(labels), count), -high, np.int32)
    scores[np.arange(len(labels)), labels] = high
    return scores


@given(
    arrays(np.int32, st.tuples(st.integers(0, 12), st.integers(1, 5)), elements=st.integers(-3, 3)), st.integers(0, 4)
)
def test_greedy_is_the_definition_and_torchs(scores, blank):
    blank %= scores.shape[1]
    found = best_labels(scores, blank).tolist()
    path = [max(range(len(row)), key=lambda i: (row[i], -i)) for row in scores.tolist()]
    assert found == [label for label, _ in itertools.groupby(path) if label != blank]
    if len(scores):
        # torch says nothing of ties: make the lowest label the best by a little.
        clear = torch.from_numpy(scores.astype(np.int64) * 8 - np.arange(scores.shape[1]))
        merged = torch.unique_consecutive(clear.argmax(-1))
        assert found == merged[merged != blank].tolist()


def test_scores_of_the_full_width_and_ties():
    low, high = np.iinfo(np.int32).min, np.iinfo(np.int32).max
    assert best_labels(np.array([[low, high, high], [low, low, low], [low, 0, high]], np.int32), 0).tolist() == [1, 2]


def test_letters_merge_unless_a_blank_is_between():
    assert len(LETTERS) == 6 and LETTERS.blank == 5
    assert greedy(scores_of([1, 1, 5, 1, 0, 0, 2, 3, 3, 4, 5], 6), LETTERS) == "aa bc'"
    assert greedy(scores_of([5, 5], 6), LETTERS) == "" == greedy(np.empty((0, 6), np.int32), LETTERS)
    assert greedy(scores_of([0, 1, 0, 5, 0, 2, 0], 6), LETTERS) == "a b"  # one space between words, none around


def test_the_blank_can_be_any_label():
    labels = characters(["_", " ", "a", "b"], blank=0)
    assert greedy(scores_of([2, 0, 2, 1, 3, 3], 4), labels) == "aa b"
    assert characters(["a", "b"], blank=2) == characters(["a", "b"])
    with pytest.raises(IntqError, match="blank is label 3, but the vocabulary has labels 0 to 1"):
        characters(["a", "b"], blank=3)
    with pytest.raises(IntqError, match="spells 'a'"):
        Labels(("a", ""), 0)


def test_hugging_faces_vocabulary():
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "E": 5, "T": 6, "'": 7}
    labels = hugging_face(vocabulary)
    assert labels.blank == 0 and labels.alphabet == {"E", "T", "'"}
    assert greedy(scores_of([1, 6, 0, 6, 4, 4, 5, 3, 7, 2], 8), labels) == "TT E'"
    assert hugging_face(vocabulary, lower=True).text([6, 4, 5]) == "t e"
    with pytest.raises(IntqError, match=r"no '\[PAD\]', which is CTC's blank; it has '<pad>', '<s>'"):
        hugging_face(vocabulary, pad="[PAD]")
    with pytest.raises(IntqError, match="not the numbers 0 to 1"):
        hugging_face({"<pad>": 0, "a": 2})


def test_hugging_faces_transcript_is_transformers(tmp_path):
    from transformers import Wav2Vec2CTCTokenizer

    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "A": 5, "B": 6}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
    labels = hugging_face(vocabulary)
    generator = np.random.default_rng(0)
    for _ in range(50):
        path = generator.choice([0, 4, 5, 6], 30)
        want = tokenizer.decode(path.tolist())
        assert greedy(scores_of(path, 7), labels) == " ".join(want.split())


def trained(**options):
    import sentencepiece as library

    model = io.BytesIO()
    settings = {"model_type": "bpe", "vocab_size": 40, "hard_vocab_limit": False, "minloglevel": 2} | options
    library.SentencePieceTrainer.train(sentence_iterator=iter(SENTENCES), model_writer=model, **settings)
    return model.getvalue(), library.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.mark.parametrize(
    "options",
    [{}, {"model_type": "unigram"}, {"byte_fallback": True, "vocab_size": 300}],
    ids=["bpe", "unigram", "bytes"],
)
def test_sentencepieces_text_is_the_librarys(options):
    model, processor = trained(**options)
    labels = sentencepiece(model)
    assert len(labels) == processor.get_piece_size() + 1 and labels.blank == len(labels) - 1
    for text in [*SENTENCES[:5], "the cat\u2019s d\u00e9j\u00e0 vu"]:
        ids = processor.encode(text)
        assert labels.text(ids) == " ".join(processor.decode(ids).split())
        path = [label for each in ids for label in (each, labels.blank)]
        assert greedy(scores_of(path, len(labels)), labels) == labels.text(ids)
    assert Labels.from_dict(json.loads(json.dumps(labels.to_dict()))) == labels


def test_what_is_no_sentencepiece_model():
    with pytest.raises(IntqError, match="no SentencePiece model"):
        sentencepiece(b"nothing")


def test_another_number_of_labels_is_an_error():
    with pytest.raises(IntqError, match=r"shape \(4, 7\), but it has 6 labels"):
        greedy(np.zeros((4, 7), np.int32), LETTERS)


# ---- the search --------------------------------------------------------------------------------------------------


def test_the_search_without_a_model_finds_the_most_probable_text():
    # Two paths of "a" are together more probable than the one of "b", which is the best path.
    scores = np.log(np.array([[0.4, 0.35, 0.25], [0.35, 0.45, 0.2]]))
    labels = characters(["b", "a"])
    scale = 1e-6
    found = beam_search(labels, scale)(np.round(scores / scale).astype(np.int32))
    totals: dict[str, float] = {}
    for path in itertools.product(range(3), repeat=2):
        text = labels.text([label for label, _ in itertools.groupby(path) if label != 2])
        totals[text] = totals.get(text, 0.0) + float(np.exp(scores[[0, 1], path].sum()))
    assert found == max(totals, key=totals.__getitem__)


@pytest.mark.parametrize("kind", ["letters", "pieces", "hugging face"])
def test_the_search_of_what_is_clear_is_greedy(kind):
    if kind == "letters":
        labels, ids = characters([" ", *"abcdefghijklmnopqrstuvwxyz'"]), None
        ids = [labels.texts.index(letter) for letter in "the cat sat"]
    elif kind == "pieces":
        model, processor = trained()
        labels, ids = sentencepiece(model), processor.encode("the cat sat")
    else:
        labels = hugging_face({"<pad>": 0, "<s>": 1, "|": 2, **{letter: 3 + i for i, letter in enumerate("thecas")}})
        ids = [labels.texts.index(letter) for letter in "the cat sat"]
    path = [label for each in ids for label in (each, labels.blank)]
    scores = scores_of(path, len(labels))
    assert beam_search(labels, 0.01)(scores) == greedy(scores, labels) == "the cat sat"


ARPA = """\\data\\
ngram 1=5
ngram 2=3

\\1-grams:
-1.0\t<unk>
-99\t<s>\t-0.1
-1.0\t</s>
-0.5\tcat\t-0.1
-3.0\tcad\t-0.1

\\2-grams:
-0.1\t<s> cat
-3.0\t<s> cad
-0.1\tcat </s>

\\end\\
"""


def test_a_language_model_decides_between_what_sounds_alike(tmp_path):
    (tmp_path / "words.arpa").write_text(ARPA)
    labels = characters([" ", *"abcdefghijklmnopqrstuvwxyz"])
    scores = scores_of([labels.texts.index(letter) for letter in "cad"], len(labels))
    scores[2, labels.texts.index("t")] = 990
    assert greedy(scores, labels) == "cad" == beam_search(labels, 0.01)(scores)
    assert beam_search(labels, 0.01, tmp_path / "words.arpa")(scores) == "cat"
    with pytest.raises(IntqError, match=r"no language model .*none.arpa"):
        beam_search(labels, 0.01, tmp_path / "none.arpa")


def test_without_the_library_the_search_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ctc_beam_decoder", None)
    with pytest.raises(IntqError, match=r"ctc-beam-decoder.*pip install 'intq\[beam\]'"):
        beam_search(LETTERS, 0.01)


def test_normalized():
    assert (
        normalized("Well-known,  isn\u2019t it? \u201cYES\u201d \u2013 na\u00efve 3\n")
        == "well known isn't it yes na\u00efve 3"
    )
    assert normalized(" ... ") == ""
