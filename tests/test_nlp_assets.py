"""The text packages hold what the training and the tests expect of them."""

import json

import pytest

from intq.nlp import assets


def test_names_are_unique_among_all_domains():
    from intq.vision.assets import ASSETS

    assert not ASSETS.keys() & assets.ASSETS.keys()


def test_the_sentences_are_rated():
    lines = assets.fetch("movie-sentences").read_text(encoding="utf-8").splitlines()
    ratings = [float(line.split("\t")[1]) for line in lines]
    assert len(ratings) == 10_605 and max(map(abs, ratings)) <= 4
    assert sum(abs(rating) >= 0.5 for rating in ratings) == 10_072


def test_the_pairs_are_balanced():
    rows = [json.loads(line) for line in assets.fetch("privacy-policies").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 10_923
    assert {row["answer"] for row in rows} == {"True", "False"}
    assert sum(row["answer"] == "True" for row in rows) / len(rows) == pytest.approx(0.5, abs=0.01)


def test_the_sentence_model_is_a_bert_with_its_tokenizer():
    folder = assets.fetch("minilm")
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"], config["hidden_size"]) == ("bert", 6, 384)
    assert len((folder / "vocab.txt").read_text(encoding="utf-8").splitlines()) == config["vocab_size"]
