"""GLUE's tasks by name, and which class of a network a label means."""

import json

import pytest

from intq.errors import IntqError
from intq.nlp.labels import class_order, nameless
from intq.nlp.suite import members, summary
from intq.nlp.tasks import TASKS, task

MNLI = TASKS["mnli"].classes


def test_there_are_nine_tasks_with_their_official_metrics():
    assert {name: known.metrics for name, known in TASKS.items()} == {
        "cola": ("matthews",),
        "sst2": ("accuracy",),
        "mrpc": ("f1", "accuracy"),
        "stsb": ("pearson", "spearman"),
        "qqp": ("f1", "accuracy"),
        "mnli": ("accuracy",),
        "qnli": ("accuracy",),
        "rte": ("accuracy",),
        "wnli": ("accuracy",),
    }


@pytest.mark.parametrize("name", ["sst2", "SST-2", "sst_2", "STS-B", "MNLI", "wnli"])
def test_a_task_is_found_however_it_is_written(name):
    assert task(name).folder.lower().replace("-", "") == name.lower().replace("-", "").replace("_", "")


def test_an_unknown_task_is_an_error_that_lists_those_there_are():
    with pytest.raises(IntqError, match=r"'squad'.*cola, sst2.*glue"):
        task("squad")


@pytest.mark.parametrize(
    ("names", "labels", "order"),
    [
        (("negative", "positive"), ("NEGATIVE", "POSITIVE"), [0, 1]),
        (("negative", "positive"), ("pos", "neg"), [1, 0]),
        (("negative", "positive"), ("LABEL_0", "LABEL_1"), [0, 1]),
        (MNLI, ("CONTRADICTION", "NEUTRAL", "ENTAILMENT"), [2, 1, 0]),
        (MNLI, ("LABEL_0", "LABEL_1", "LABEL_2"), [0, 1, 2]),
        (("not_entailment", "entailment"), ("Entailment", "Not-Entailment"), [1, 0]),
        (("not_equivalent", "equivalent"), ("0", "1"), [0, 1]),
    ],
)
def test_names_decide_the_order_of_the_classes_and_numbers_where_there_are_none(names, labels, order):
    assert class_order(names, labels, "data", numbered=True) == order


def test_a_users_labels_are_names_or_numbers_of_the_networks_classes():
    labels = ("anger", "joy", "fear")
    assert class_order(("joy", "Anger"), labels, "data", numbered=False) == [1, 0]
    assert class_order(("0", "2"), labels, "data", numbered=False) == [0, 2]
    assert class_order(("LABEL_1",), ("LABEL_0", "LABEL_1"), "data", numbered=False) == [1]
    assert class_order(("1",), ("LABEL_0", "LABEL_1"), "data", numbered=False) == [1]


@pytest.mark.parametrize(
    ("names", "labels", "numbered"),
    [
        (("negative", "positive"), ("anger", "joy"), True),
        (("negative", "positive"), ("LABEL_0", "LABEL_1", "LABEL_2"), True),
        (("entailment", "not_entailment"), MNLI, True),
        (("happy", "sad"), ("LABEL_0", "LABEL_1"), False),  # which is which?
        (("0", "3"), ("a", "b", "c"), False),
    ],
)
def test_labels_that_do_not_match_are_an_error_with_both(names, labels, numbered):
    with pytest.raises(IntqError) as error:
        class_order(names, labels, "reviews.csv", numbered)
    assert "reviews.csv" in str(error.value) and "--labels" in str(error.value)
    assert all(name in str(error.value) for name in (*names, *labels))


def test_nameless_labels():
    assert nameless(("LABEL_0", "LABEL_1")) and nameless(("0", "1")) and not nameless(("LABEL_0", "joy"))


def artifact_of(folder, task=None):
    folder.mkdir()
    (folder / "graph.json").write_text(json.dumps({"metadata": {"task": task} if task else {}}))


def test_the_folders_of_a_suite_say_their_task_themselves_or_by_their_name(tmp_path):
    artifact_of(tmp_path / "first", "rte")
    artifact_of(tmp_path / "roberta-SST-2-int8")
    (tmp_path / "cola").mkdir()
    (tmp_path / "notes").mkdir()
    assert {name: path.name for name, path in members(tmp_path).items()} == {
        "cola": "cola",
        "sst2": "roberta-SST-2-int8",
        "rte": "first",
    }
    assert members(tmp_path / "first") == {"rte": tmp_path / "first"}


def test_a_suite_without_tasks_or_with_one_twice_is_refused(tmp_path):
    (tmp_path / "notes").mkdir()
    with pytest.raises(IntqError, match="no folder in it is for a task"):
        members(tmp_path)
    artifact_of(tmp_path / "a", "rte")
    artifact_of(tmp_path / "rte-int8")
    with pytest.raises(IntqError, match="both for the task rte"):
        members(tmp_path)


def test_the_score_is_the_mean_of_the_tasks_means():
    rows = [{"task": "rte", "metrics": {"accuracy": 0.5}}, {"task": "qqp", "metrics": {"f1": 0.75, "accuracy": 0.25}}]
    value = summary(rows)
    assert value["score"] == 0.5 and value["float_score"] is None
    assert value["missing"] == ["cola", "sst2", "mrpc", "stsb", "mnli", "qnli", "wnli"]
    assert summary([row | {"float": {"accuracy": 1.0}} for row in rows])["float_score"] == 1.0
