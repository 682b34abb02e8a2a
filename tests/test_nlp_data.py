"""Reading examples: GLUE's official files with all their quirks, the hub's data sets, a user's own files."""

import datasets
import pytest
from texts import FILES, A, B, write, write_glue

from intq.errors import IntqError
from intq.nlp import data
from intq.nlp.tables import read_table
from intq.nlp.tasks import TASKS


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    return write_glue(tmp_path_factory.mktemp("glue"))


# What the fixtures' held-out files say, as texts and labels.
HELD_OUT = {
    "cola": ([A, B, "it the is"], [1, 0, 0]),
    "sst2": ([A, '"' + B, "very good\u2028but dull"], [1, 0, 1]),
    "mrpc": ([(A, B), (B, A)], [1, 0]),
    "stsb": ([(A, B), (A, A), (B, "the plot")], [1.25, 5.0, 0.0]),
    "qqp": ([(A, B), ("", A)], [0, 1]),
    "mnli": ([(A, B), (A, A)], [2, 0]),
    "qnli": ([(A, B), (B, A)], [1, 0]),
    "rte": ([(A, B), (B, A)], [0, 1]),
    "wnli": ([(A, B), (B, A)], [1, 0]),
}


@pytest.mark.parametrize("name", TASKS)
def test_the_official_files_of_every_task(glue, name):
    known = TASKS[name]
    sets = data.held_out(known, str(glue))
    assert list(sets) == (["_matched", "_mismatched"] if name == "mnli" else [""])
    first = next(iter(sets.values()))
    assert (first.texts, first.labels) == HELD_OUT[name]
    assert first.classes == known.classes and first.numbered
    assert len(data.training(known, str(glue))) >= 1
    # The task's own folder does as well as the one that holds all of them.
    assert data.held_out(known, str(glue / known.folder)).keys() == sets.keys()


def test_mismatched_mnli_is_a_set_of_its_own(glue):
    assert data.held_out(TASKS["mnli"], str(glue))["_mismatched"].labels == [1]


def test_one_official_file_is_enough(glue):
    examples = data.held_out(TASKS["cola"], str(glue / "CoLA" / "dev.tsv"))[""]
    assert examples.labels == [1, 0, 0] and examples.where(2).endswith("dev.tsv, line 3")
    assert data.held_out(TASKS["rte"], str(glue / "RTE" / "dev.tsv"))[""].where(0).endswith("dev.tsv, line 2")


def test_lines_of_qqp_that_lack_fields_are_left_out_and_said(glue, caplog):
    data.held_out(TASKS["qqp"], str(glue))
    assert "left out: 1" in caplog.text


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["sentence\tvalue", "good\t1"], ["line 1", "'label'", "'sentence', 'value'"]),
        (["text\tlabel", "good\t1"], ["line 1", "'sentence'", "'text', 'label'"]),
        (["sentence\tlabel", "good\t1", "bad"], ["line 3", "'label'", "1 of the 2"]),
        (["sentence\tlabel", "good\tgreat"], ["line 2", "'great'", "negative, positive"]),
        (["sentence\tlabel", "good\t-1"], ["line 2", "'-1'"]),
        (["sentence\tlabel"], ["no examples"]),
    ],
)
def test_an_official_file_with_something_missing_names_file_and_line(tmp_path, lines, words):
    path = write(tmp_path / "SST-2" / "dev.tsv", *lines)
    with pytest.raises(IntqError) as error:
        data.held_out(TASKS["sst2"], str(tmp_path))
    assert all(word in str(error.value) for word in (str(path), *words)), error.value


def test_a_score_that_is_no_number_is_named(tmp_path):
    write(tmp_path / "dev.tsv", "sentence1\tsentence2\tscore", "a\tb\thigh")
    with pytest.raises(IntqError, match=r"dev.tsv, line 2: expected a score.*'high'"):
        data.held_out(TASKS["stsb"], str(tmp_path))


def test_a_folder_without_the_task_says_what_was_looked_for(tmp_path):
    with pytest.raises(IntqError, match=r"no dev_matched.tsv of MNLI"):
        data.held_out(TASKS["mnli"], str(tmp_path))


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "dev.tsv").write_bytes(b"sentence\tlabel\ncaf\xe9\t1\n")
    with pytest.raises(IntqError, match="not UTF-8"):
        data.held_out(TASKS["sst2"], str(tmp_path))


# ---- a user's own files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "lines", "head", "texts", "labels"),
    [
        ("a.tsv", ["label\tText", '1\t"quoted', "0\tbad"], "classification", ['"quoted', "bad"], ["1", "0"]),
        ("a.csv", ["sentence,label", '"a, ""b""\nc",joy', "d,anger"], "classification", ['a, "b"\nc', "d"], None),
        (
            "a.jsonl",
            ['{"text": "a", "label": 1}', "", '{"label": 0, "text": "b"}'],
            "classification",
            ["a", "b"],
            [1, 0],
        ),
        ("a.csv", ["premise,hypothesis,label", "a,b,yes"], "classification", [("a", "b")], ["yes"]),
        ("a.csv", ["label,context,question", "yes,b,a"], "classification", [("a", "b")], ["yes"]),
        ("a.tsv", ["text\trating", "a\t-1.5"], "regression", ["a"], [-1.5]),
        ("a.tsv", ["sentence1\tsentence2\tscore", "a\tb\t4"], "embedding", [("a", "b")], [4.0]),
        ("a.jsonl", ['{"tokens": ["a", "b"], "labels": ["O", "B-X"]}'], "tokens", [["a", "b"]], [["O", "B-X"]]),
        ("a.tsv", ["tokens\ttags", "a b\tO B-X"], "tokens", [["a", "b"]], [["O", "B-X"]]),
        (
            "a.conll",
            ["-DOCSTART- -X- O O", "", "a DT O", "b NN B-X", "", "", "c NN O"],
            "tokens",
            [["a", "b"], ["c"]],
            [["O", "B-X"], ["O"]],
        ),
    ],
)
def test_a_users_files_by_the_names_of_their_columns(tmp_path, name, lines, head, texts, labels):
    examples = data.own(str(write(tmp_path / name, *lines)), head)
    assert examples.texts == texts and (labels is None or examples.labels == labels)
    assert examples.where(0).startswith(str(tmp_path / name))


def test_lines_are_counted_through_fields_that_span_several(tmp_path):
    path = write(tmp_path / "a.csv", "text,label", '"a\nb",x', "c,y")
    assert [data.own(str(path), "classification").where(row)[-6:] for row in (0, 1)] == ["line 2", "line 4"]


def test_calibration_needs_no_labels(tmp_path):
    lines = write(tmp_path / "a.txt", "one text", "", "another")
    assert data.own(str(lines), "classification", labelled=False).texts == ["one text", "another"]
    assert data.own(str(write(tmp_path / "a.csv", "text", "a")), "tokens", labelled=False).texts == ["a"]


@pytest.mark.parametrize(
    ("name", "lines", "head", "words"),
    [
        ("a.csv", ["body,label", "x,1"], "classification", ["line 1", "'body', 'label'", "'text'"]),
        ("a.csv", ["text,mood", "x,1"], "classification", ["line 1", "'text', 'mood'", "'label'"]),
        ("a.tsv", ["text\tlabel", "x\t1", "y"], "classification", ["line 3", "'label'", "'text', 'label'"]),
        ("a.jsonl", ['{"text": "a", "label": 1}', '{"text": "b"}'], "classification", ["line 2", "'label'", "'text'"]),
        ("a.jsonl", ['{"text": "a"'], "classification", ["line 1", "not JSON"]),
        ("a.jsonl", ["[1]"], "classification", ["line 1", "object"]),
        ("a.csv", ["text,label", "x,1", " ,0"], "classification", ["line 3", "'text'", "empty"]),
        ("a.jsonl", ['{"text": 3, "label": 1}'], "classification", ["line 1", "no text"]),
        ("a.csv", ["text,label", '"x,1'], "classification", ["line 2", "not CSV"]),
        ("a.csv", ["text,score", "x,high"], "regression", ["line 2", "'high'"]),
        ("a.jsonl", ['{"tokens": ["a"], "labels": []}'], "tokens", ["line 1", "'labels'"]),
        ("a.jsonl", ['{"tokens": ["a"], "labels": ["O", "O"]}'], "tokens", ["line 1", "2 labels for 1 words"]),
        ("a.conll", ["a O", "b"], "tokens", ["line 2", "'b'"]),
        ("a.csv", ["text,label"], "classification", ["no examples"]),
        ("a.xml", ["<a/>"], "classification", [".tsv, .csv"]),
    ],
)
def test_a_users_file_that_lacks_something_names_file_line_and_columns(tmp_path, name, lines, head, words):
    path = write(tmp_path / name, *lines)
    with pytest.raises(IntqError) as error:
        data.own(str(path), head)
    assert all(word in str(error.value) for word in (str(path), *words)), error.value


def test_a_missing_file_and_a_folder_are_said(tmp_path):
    with pytest.raises(IntqError, match="no file"):
        data.own(str(tmp_path / "missing.tsv"), "classification")
    with pytest.raises(IntqError, match="--task"):
        data.own(str(tmp_path), "classification")


def test_every_fixture_reads_as_a_table(glue):
    assert all(read_table(glue / name).rows for name in FILES if name.endswith(".tsv"))


def test_a_sample_keeps_texts_labels_and_places_together(glue):
    examples = data.held_out(TASKS["sst2"], str(glue))[""]
    some = examples.sample(2, seed=1)
    places = [int(some.where(row).rsplit(" ", 1)[1]) - 2 for row in range(2)]
    assert places == sorted(places) and len(some) == 2
    assert some.texts == [examples.texts[i] for i in places] and some.labels == [examples.labels[i] for i in places]
    assert examples.sample(99).texts == examples.texts


def test_pairs_one_by_one(glue):
    examples = data.held_out(TASKS["rte"], str(glue))[""]
    single = examples.singly()
    assert single.texts == [A, B, B, A] and single.labels is None and single.where(3) == examples.where(1)
    assert single.singly().texts == single.texts


# ---- the library datasets ----------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """What stands in for the hub: data sets by (name, configuration, split); all of them are in the cache."""
    held = {}
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, part, split: held[name, part, split])
    monkeypatch.setattr(
        datasets, "get_dataset_split_names", lambda name, part: [s for n, p, s in held if (n, p) == (name, part)]
    )

    def add(name, part, split, columns, **features):
        (tmp_path / name.replace("/", "___")).mkdir(exist_ok=True)
        rows = datasets.Dataset.from_dict(columns)
        for column, feature in features.items():
            rows = rows.cast_column(column, feature)
        held[name, part, split] = rows

    return add


def test_glue_online_by_name(hub):
    columns = {"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [2, 0], "idx": [0, 1]}
    for split in ("validation_matched", "validation_mismatched", "train"):
        hub("nyu-mll/glue", "mnli", split, columns)
    sets = data.held_out(TASKS["mnli"], None)
    assert [(s.texts, s.labels) for s in sets.values()] == [([("a", "c"), ("b", "d")], [2, 0])] * 2
    assert "example 1" in sets["_matched"].where(1)
    assert data.training(TASKS["mnli"], None).texts == [("a", "c"), ("b", "d")]


def test_a_data_set_of_the_hub_with_names_for_its_labels(hub):
    names = datasets.ClassLabel(names=["neg", "pos"])
    hub("me/reviews", None, "test", {"text": ["a", "b"], "label": [1, 0]}, label=names)
    hub("me/reviews", None, "train", {"text": ["c"], "label": [1]}, label=names)
    examples = data.own("me/reviews", "classification")
    assert (examples.texts, examples.labels, examples.classes) == (["a", "b"], [1, 0], ("neg", "pos"))
    assert data.own("me/reviews", "classification", "train").texts == ["c"]
    tags = datasets.Sequence(datasets.ClassLabel(names=["O", "B-X"]))
    hub("me/names", None, "test", {"tokens": [["a", "b"]], "ner_tags": [[1, 0]]}, ner_tags=tags)
    assert data.own("me/names", "tokens").labels == [["B-X", "O"]]


def test_a_data_set_that_cannot_be_loaded_is_one_sentence(hub):
    hub("me/reviews", None, "test", {"body": ["a"], "label": [1]})
    with pytest.raises(IntqError, match="me/reviews: there is no column of texts"):
        data.own("me/reviews", "classification")
    with pytest.raises(IntqError, match="could not be loaded from the Hugging Face hub"):
        data.training(TASKS["sst2"], None)  # the hub cannot be reached from a test
