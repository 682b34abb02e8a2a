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
        folder = str(folders[name])
        train, held = examples_of.training(TASKS[task], folder), examples_of.held_out(TASKS[task], folder)[""]
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


@pytest.fixture
def trained(text, cache, monkeypatch, capsys):
    """What training printed: the rows, and what it said of its progress."""
    import finetune

    for name, recipe in finetune.RECIPES.items():
        monkeypatch.setitem(finetune.RECIPES, name, replace(recipe, rate=5e-3, epochs=4))
    assert finetune.main(["--threads", "1", "--json"]) == 0
    shown = capsys.readouterr()
    return {row["model"]: row for row in json.loads(shown.out)}, shown.err


def test_trains_once_and_the_roberta_is_the_same_function(trained, cache, capsys):
    import finetune

    rows, said = trained
    assert "epoch 4 of 4" in said
    assert rows["movie-minilm"]["metrics"]["accuracy"] > 0.8 and rows["rating-minilm"]["metrics"]["pearson"] > 0.6
    assert (rows["pair-minilm"]["task"], rows["pair-minilm"]["examples"]) == ("qnli", 36)
    assert rows["movie-roberta"]["metrics"] == rows["movie-minilm"]["metrics"]
    assert finetune.main(["--models", "movie-minilm", "--threads", "1", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == [rows["movie-minilm"]] and "epoch" not in shown.err
    logits = []
    for name in ("movie-minilm", "movie-roberta"):
        folder = cache / "text-models" / name
        tokenizer = AutoTokenizer.from_pretrained(folder)
        inputs = tokenizer(["the film was dull", "good , very good and not bad"], padding=True, return_tensors="pt")
        with torch.inference_mode():
            logits.append(AutoModelForSequenceClassification.from_pretrained(folder).eval()(**inputs).logits)
    torch.testing.assert_close(*logits, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # the peers' own
def test_every_engine_is_compared_on_the_held_back_sentences(trained, capsys):
    import compare

    engines = ["--engines", *compare.ENGINES]
    assert compare.main(["--models", "movie-minilm", *engines, "--samples", "16", "--threads", "1", "--json"]) == 0
    first, *rows = json.loads(capsys.readouterr().out)
    assert (first["engine"], first["agreement"], first["sqnr_db"]) == ("torch", 1.0, None)
    assert first["metrics"]["accuracy"] == pytest.approx(trained[0]["movie-minilm"]["metrics"]["accuracy"], abs=1e-5)
    assert [row["engine"] for row in rows] == ["intq", "openvino", "openvino", *["onnxruntime"] * 3]
    assert min(row["sqnr_db"] for row in rows) > 5 and rows[0]["sqnr_db"] > 20, rows
    assert rows[0]["agreement"] > 0.9


def test_scores_of_a_regression_are_compared_without_classes(trained, capsys):
    import compare

    assert compare.main(["--models", "rating-minilm", "--limit", "20", "--threads", "1", "--markdown"]) == 0
    header, _, _, row = capsys.readouterr().out.splitlines()
    assert header.startswith("| model | engine |")
    assert row.startswith("| rating-minilm | intq | default | pearson") and row.endswith(" dB |")


def test_a_missing_asset_is_one_sentence_and_2(text, tmp_path, monkeypatch, capsys):
    import finetune

    monkeypatch.setenv("INTQ_CACHE", str(tmp_path / "empty"))
    assert finetune.main([]) == 2
    assert "run scripts/fetch_data" in capsys.readouterr().err
