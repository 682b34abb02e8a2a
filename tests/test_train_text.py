"""scripts/train_text and scripts/accuracy_text, from the packages' files to the table, with two tiny layers."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from text_models import save_tiny
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from intq.nlp import assets
from intq.nlp import data as examples_of
from intq.nlp.tasks import TASKS

GOOD, BAD, THINGS = ("good", "fine", "good , good"), ("bad", "dull", "not good"), ("film", "plot", "it")


@pytest.fixture
def text(root, monkeypatch):
    """The modules of scripts/text."""
    monkeypatch.syspath_prepend(root / "scripts" / "peers")
    monkeypatch.syspath_prepend(root / "scripts" / "text")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with a tiny sentence model, rated reviews and pairs whose answers are easy to learn."""
    generator = np.random.default_rng(0)
    reviews, pairs = [], []
    for i in range(240):
        mark, words = (1, GOOD) if i % 2 else (-1, BAD)
        subject, word = generator.choice(THINGS), generator.choice(words)
        rating = mark * generator.uniform(0.2, 3)
        reviews.append(f"{i}\t{rating}\tThe {subject} was very {word}\t"[:-1])
        pair = {"question": f"is the {subject} good", "context": f"the {subject}\twas {word} , word{20 + i % 40}"}
        pairs.append(json.dumps(pair | {"answer": str(mark > 0)}))
    files = {
        "movie-sentences": ("movieReviewSnippets_GroundTruth.txt", "\r\n".join(reviews)),
        "privacy-policies": ("test.jsonl", "\n".join(pairs)),
    }
    for name, (file, content) in files.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(content + "\n", encoding="utf-8")
    save_tiny(tmp_path / "minilm", "bert", "embedding")
    count = len(list((tmp_path / "minilm").iterdir()))
    monkeypatch.setitem(assets.ASSETS, "minilm", replace(assets.ASSETS["minilm"], count=count))
    monkeypatch.setenv("INTQ_CACHE", str(tmp_path))
    return tmp_path


def test_corpora_are_the_official_files(text, cache):
    from corpora import CORPORA, corpus

    folders = {name: corpus(name, cache / "text-data") for name in CORPORA}
    for name, task in (("movie", "sst2"), ("pair", "qnli")):
        train, held = (
            examples_of.training(TASKS[task], str(folders[name])),
            examples_of.held_out(TASKS[task], str(folders[name]))[""],
        )
        assert len(train) + len(held) == (240 if name == "pair" else sum(_clear(cache)))
        assert set(train.labels) == set(held.labels) == {0, 1}
    assert not {text for _, text in train.texts} & {text for _, text in held.texts}  # no policy's sentence in both
    scores = examples_of.own(str(folders["rating"] / "dev.tsv"), "regression")
    assert len(scores) == round(0.15 * 240) and max(map(abs, scores.labels)) < 3
    before = (folders["pair"] / "dev.tsv").read_bytes()
    (folders["pair"] / "dev.tsv").unlink()
    assert (corpus("pair", cache / "text-data") / "dev.tsv").read_bytes() == before  # the split is the seed's


def _clear(cache) -> list[bool]:
    lines = (cache / "movie-sentences" / "movieReviewSnippets_GroundTruth.txt").read_text().splitlines()
    return [abs(float(line.split("\t")[1])) >= 0.5 for line in lines]


def test_trains_once_and_the_roberta_is_the_same_function(text, cache, capsys):
    import finetune

    results = []
    for _ in range(2):
        assert finetune.main(["--epochs", "3", "--threads", "1", "--json"]) == 0
        shown = capsys.readouterr()
        results.append(json.loads(shown.out))
        assert ("epoch 3 of 3" in shown.err) == (len(results) == 1)
    rows = {row["model"]: row for row in results[0]}
    assert results[1] == results[0]
    assert rows["movie-roberta"]["metrics"] == rows["movie-minilm"]["metrics"]
    assert rows["movie-minilm"]["metrics"]["accuracy"] > 0.7 and rows["pair-minilm"]["metrics"]["accuracy"] > 0.7
    assert rows["rating-minilm"]["metrics"]["pearson"] > 0.5
    logits = []
    for name in ("movie-minilm", "movie-roberta"):
        folder = cache / "text-models" / name
        tokenizer, model = (
            AutoTokenizer.from_pretrained(folder),
            AutoModelForSequenceClassification.from_pretrained(folder),
        )
        inputs = tokenizer(["the film was dull", "good , very good and not bad"], padding=True, return_tensors="pt")
        with torch.inference_mode():
            logits.append(model.eval()(**inputs).logits)
    torch.testing.assert_close(*logits, rtol=0, atol=1e-6)


def test_a_missing_asset_is_one_sentence_and_2(text, tmp_path, monkeypatch, capsys):
    import finetune

    monkeypatch.setenv("INTQ_CACHE", str(tmp_path / "empty"))
    assert finetune.main([]) == 2
    assert "run scripts/fetch_data" in capsys.readouterr().err
