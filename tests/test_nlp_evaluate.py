"""From examples to metrics and from texts to answers, for every head, with a network's stand-in."""

import io
from dataclasses import replace

import numpy as np
import pytest
from texts import A, B, metadata, stand_in, tiny_reader, write, write_glue

from intq import ranking
from intq.errors import IntqError
from intq.nlp import answers, domain
from intq.nlp.data import held_out
from intq.nlp.evaluate import evaluate as judged
from intq.nlp.evaluate import scores
from intq.nlp.tasks import TASKS

HEADS = {
    "classification": (stand_in(3), metadata("classification", ("sad", "fine", "glad"))),
    "regression": (stand_in(1), metadata("regression")),
    "embedding": (stand_in(8), metadata("embedding")),
    "tokens": (stand_in(3, tokens=True), metadata("tokens", ("O", "B-X", "I-X"))),
}


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    return str(write_glue(tmp_path_factory.mktemp("glue")))


def evaluate(predict, known, data, task=None, **options):
    given = {"limit": None, "batch": 2, "task": task} | options
    return domain.evaluate(predict, tiny_reader(), known, data, **given)


def ids_of(texts):
    return tiny_reader().ids(texts, str)


def test_answers_come_in_order_whatever_the_batches():
    rows = ids_of([A, B, "good", B + " " + A, "bad film"])
    predict = stand_in(3)
    alone = [predict(row[None])[0] for row in rows]
    for batch in (1, 2, 16):
        assert np.array_equal(scores(predict, rows, 0, batch), alone)


def test_progress_ends_with_everything_done():
    seen = []
    scores(stand_in(2), ids_of([A, B, A]), 0, 2, lambda *done: seen.append(done))
    assert seen == [(2, 3), (3, 3)]


@pytest.mark.parametrize("name", TASKS)
def test_every_task_of_glue_has_its_metrics(glue, name):
    known = TASKS[name]
    head = known.head
    predict, labels = (stand_in(1), ()) if head == "regression" else (stand_in(len(known.classes)), known.classes)
    value = evaluate(predict, metadata(head, labels), glue, name)
    endings = ("_matched", "_mismatched") if name == "mnli" else ("",)
    assert value["task"] == name and list(value["metrics"]) == [m + e for e in endings for m in known.metrics]
    assert all(-1 <= share <= 1 for share in value["metrics"].values())


def right(truth):
    """A stand-in that gives the class truth[i] to what it sees as the ith text, whatever that says."""
    given = iter(truth)
    return lambda ids: np.array([np.eye(3, dtype=np.int32)[next(given)] for _ in ids])


def test_the_order_of_the_heads_classes_does_not_matter(glue):
    # As the network sees them, short ones first: dev_matched entailment, contradiction; dev_mismatched neutral.
    for order in (("entailment", "neutral", "contradiction"), ("CONTRADICTION", "NEUTRAL", "ENTAILMENT")):
        truth = [[name.lower() for name in order].index(c) for c in ("entailment", "contradiction", "neutral")]
        value = evaluate(right(truth), metadata("classification", order), glue, "mnli", batch=1)
        assert value["metrics"] == {"accuracy_matched": 1.0, "accuracy_mismatched": 1.0}, order


def test_f1_is_of_the_datas_class_1_whatever_the_network_calls_it(glue):
    # MRPC's dev: equivalent, not_equivalent; "equivalent" is found for both: precision 1/2, recall 1.
    for labels, found in ((("not_equivalent", "equivalent"), 1), (("equivalent", "not_equivalent"), 0)):
        predict = lambda ids, found=found: np.tile(np.eye(2, dtype=np.int32)[found], (len(ids), 1))  # noqa: E731
        value = evaluate(predict, metadata("classification", labels), glue, "mrpc")
        assert value["metrics"] == {"f1": pytest.approx(2 / 3), "accuracy": 0.5}


def test_of_equal_scores_the_lower_class_is_the_answer(glue):
    value = evaluate(
        lambda ids: np.zeros((len(ids), 2), np.int32), metadata("classification", ("neg", "pos")), glue, "sst2"
    )
    assert value["metrics"]["accuracy"] == pytest.approx(1 / 3)


def test_beside_the_float_network(glue):
    known = metadata("classification", ("negative", "positive"))
    predict = stand_in(2)
    value = evaluate(predict, known, glue, "sst2", beside=lambda ids: 0.01 * predict(ids))
    assert value["float"] == value["metrics"] and value["same"] == 1.0
    value = evaluate(predict, known, glue, "sst2", beside=lambda ids: -predict(ids))
    assert value["same"] == 0.0 and value["float"]["accuracy"] == pytest.approx(1 - value["metrics"]["accuracy"])
    assert "same" not in evaluate(stand_in(1), metadata("regression"), glue, "stsb", beside=stand_in(1))


def test_embeddings_are_judged_by_the_cosine_of_pairs(glue):
    predict, known = HEADS["embedding"]
    value = evaluate(predict, known, glue, "stsb")
    assert set(value["metrics"]) == {"pearson", "spearman"} and value["examples"] == 3
    assert value["metrics"]["pearson"] > 0.3  # a pair of the same text has the cosine 1 and the highest score


def test_a_users_own_data_of_every_head(tmp_path):
    files = {
        "classification": ("a.csv", ["text,label", "good film,glad", "bad film,sad", "a plot,1"]),
        "regression": ("a.tsv", ["text\tscore", "good film\t3", "bad film\t-2.5", "a plot\t0"]),
        "embedding": ("b.tsv", ["sentence1\tsentence2\tscore", "good\tfine\t3", "bad\tgood\t1"]),
        "tokens": ("a.jsonl", ['{"tokens": ["good", "film"], "labels": ["O", "B-X"]}']),
    }
    metrics = {"classification": {"accuracy", "macro_f1"}, "tokens": {"accuracy", "f1"}}
    for head, (name, lines) in files.items():
        if head == "classification":
            lines[-1] = "a plot,fine"
        predict, known = HEADS[head]
        value = evaluate(predict, known, str(write(tmp_path / name, *lines)))
        assert set(value["metrics"]) == metrics.get(head, {"pearson", "spearman"}), head
        assert value["examples"] == len(lines) - (head != "tokens")


def test_words_that_were_cut_off_count_as_outside(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"tokens": ["good", "film", "plot"], "labels": ["O", "O", "B-X"]}')
    always = lambda ids: np.tile(np.array([1, 0, 0], np.int32), (*ids.shape, 1))  # noqa: E731
    given = {"limit": None, "batch": 1}
    value = domain.evaluate(always, tiny_reader(longest=4, truncate=True), HEADS["tokens"][1], str(path), **given)
    assert value["metrics"] == {"accuracy": pytest.approx(2 / 3), "f1": 0.0}


def test_limit_draws_so_many_of_each_set(glue):
    labels = TASKS["mnli"].classes
    assert evaluate(stand_in(3), metadata("classification", labels), glue, "mnli", limit=1)["examples"] == 2


@pytest.mark.parametrize(
    ("head", "labels", "task", "words"),
    [
        ("classification", ("a", "b"), "squad", ["squad", "sst2"]),
        ("classification", ("anger", "joy"), "sst2", ["anger, joy", "negative, positive"]),
        ("classification", ("a", "b", "c"), "sst2", ["a, b, c"]),
        ("regression", (), "sst2", ["sst2", "regression"]),
        ("classification", ("a", "b"), "stsb", ["stsb", "a, b"]),
        ("embedding", (), "rte", ["rte", "embedding"]),
        ("tokens", ("O", "B-X"), "cola", ["cola", "tokens"]),
    ],
)
def test_what_the_network_cannot_answer_is_refused(glue, head, labels, task, words):
    with pytest.raises(IntqError) as error:
        evaluate(stand_in(max(len(labels), 1)), metadata(head, labels), glue, task)
    assert all(word in str(error.value) for word in words), error.value


def test_without_data_the_tasks_are_listed():
    with pytest.raises(IntqError, match=r"--data .*cola, sst2"):
        evaluate(*HEADS["classification"], None)


def test_an_official_text_that_is_too_long_is_named_with_file_and_line(tmp_path):
    write(tmp_path / "dev.tsv", "sentence\tlabel", "good\t1", " ".join(["film"] * 30) + "\t0")
    with pytest.raises(IntqError, match=r"dev.tsv, line 3: is 32 tokens long, 12 more"):
        evaluate(stand_in(2), metadata("classification", ("negative", "positive")), str(tmp_path), "sst2")


# ---- run ---------------------------------------------------------------------------------------------------------


def run(head, *texts, pair=(), top=5):
    predict, known = HEADS[head]
    return answers.run(predict, tiny_reader(), known, texts, top=top, pair=pair)


def test_classes_best_first_with_integer_scores():
    rows = run("classification", A, B, top=2)
    for text, row in zip((A, B), rows, strict=True):
        own = HEADS["classification"][0](ids_of([text])[0][None])[0]
        best = np.argsort(-own, kind="stable")[:2]
        assert row["input"] == text and [(b["index"], b["score"]) for b in row["top"]] == [(i, own[i]) for i in best]
        assert all(isinstance(b["score"], int) for b in row["top"])
    tied = ranking.best(np.array([5, 7, 7], np.int32), HEADS["classification"][1]["labels"], 2)
    assert [b["label"] for b in tied] == ["fine", "glad"]


def test_a_pair_is_not_its_texts_one_by_one():
    (row,) = run("classification", A, pair=[B])
    assert row["pair"] == B
    assert row["top"] != run("classification", A)[0]["top"]


def test_a_regression_is_said_as_the_real_number():
    (row,) = run("regression", A)
    assert row["value"] == 0.5 * row["score"] and isinstance(row["score"], int)


def test_words_with_their_labels():
    (row,) = run("tokens", "The film, good")
    assert [word["word"] for word in row["words"]] == ["The", "film", ",", "good"]
    assert {word["label"] for word in row["words"]} <= {"O", "B-X", "I-X"}


def test_embeddings_and_how_similar_each_is_to_the_first():
    first, same, other = run("embedding", A, A, B)
    assert "similarity" not in first and len(first["embedding"]) == 8 and first["embedding"] == same["embedding"]
    assert same["similarity"] == pytest.approx(1) and -1 <= other["similarity"] < 1


def test_lines_of_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{A}\n{B}\r\n"))
    assert [row["input"] for row in run("classification", "-")] == [A, B]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{A}\t{B}\n"))
    (row,) = run("classification", "-")
    assert row["pair"] == B and row["top"] == run("classification", A, pair=[B])[0]["top"]


@pytest.mark.parametrize(
    ("head", "texts", "pair", "word"),
    [
        ("classification", ["good", ""], [], "text 2 of 2 is empty"),
        ("classification", ["  \n"], [], "text 1 of 1 is empty"),
        ("classification", ["good"], [""], "empty"),
        ("classification", ["good", "bad"], ["fine"], "2 texts and 1 --pair"),
        ("classification", ["film " * 19], [], "'film film .*…': is 21 tokens long, 1 more than the 20"),
        ("tokens", ["good"], ["bad"], "--pair"),
        ("embedding", ["good"], ["bad"], "--pair"),
    ],
)
def test_texts_that_have_no_answer(head, texts, pair, word):
    with pytest.raises(IntqError, match=word):
        run(head, *texts, pair=pair)


def test_a_test_set_without_labels_is_refused(glue):
    examples = replace(held_out(TASKS["sst2"], glue)[""], labels=[-1, -1, -1])
    with pytest.raises(IntqError, match="test set"):
        judged(stand_in(2), tiny_reader(), metadata("classification", ("neg", "pos")), examples)
    with pytest.raises(IntqError, match="no labels"):
        judged(stand_in(2), tiny_reader(), metadata("classification", ("neg", "pos")), replace(examples, labels=None))


def test_standard_input_that_is_not_text(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    with pytest.raises(IntqError, match="not utf-8 text"):
        run("classification", "-")


def test_standard_input_of_nothing_and_of_some_pairs(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(IntqError, match="no texts"):
        run("classification", "-")
    monkeypatch.setattr("sys.stdin", io.StringIO("a\tb\nc\n"))
    with pytest.raises(IntqError, match="some are not"):
        run("classification", "-")
