"""The commands on text, as a user meets them: every head, every mistake in one sentence, nothing half-written."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from commandline import answer, complaint, invoke
from safetensors.numpy import load_file
from text_models import save_tiny
from texts import A, B, write, write_glue
from typer.testing import CliRunner

import intq
from intq import artifact, networks
from intq.backends import reference
from intq.cli import app
from intq.nlp import domain
from intq.nlp.tasks import TASKS
from intq.ranking import best

SENTIMENT = {"num_labels": 2, "id2label": {0: "NEGATIVE", 1: "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Tiny checkpoints of every head, by its name."""
    folder = tmp_path_factory.mktemp("checkpoints")
    save_tiny(folder / "classification", "bert", "classification", **SENTIMENT)
    save_tiny(folder / "regression", "bert", "regression")
    save_tiny(folder / "embedding", "bert", "embedding")
    save_tiny(folder / "tokens", "bert", "tokens", id2label={0: "O", 1: "B-X", 2: "I-X"})
    return folder


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    return write_glue(tmp_path_factory.mktemp("glue"))


@pytest.fixture(scope="module")
def net(checkpoints, glue, tmp_path_factory):
    """An artifact of the classifier for SST-2."""
    folder = tmp_path_factory.mktemp("text") / "sst2-int8"
    value = answer("quantize", checkpoints / "classification", "--task", "sst2", "--data", glue, "-o", folder)
    assert value["model"] == "classification" and value["overflow"]["proven"] is True
    floats = load_file(checkpoints / "classification" / "model.safetensors").values()
    assert value["parameters"] == sum(x.size for x in floats if x.ndim == 2)  # embeddings too; neither biases nor norms
    assert value["bytes"] == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return folder


@pytest.fixture
def interpreted(monkeypatch):
    """The artifacts run on the reference instead of compiled kernels: the commands are tested, and not these."""

    def network(folder, threads):
        graph = artifact.load(folder)
        return lambda ids: reference.run(graph, ids)[0]

    monkeypatch.setattr(networks, "compiled", network)


def ids_of(folder, *texts):
    metadata = artifact.load(folder).metadata
    return domain.reader(folder, metadata).ids(texts, str)


def test_the_artifact_knows_its_task_its_origin_and_its_tokenizer(net, checkpoints):
    metadata = artifact.load(net).metadata
    assert (metadata["domain"], metadata["task"], metadata["head"]) == ("nlp", "sst2", "classification")
    assert metadata["source"] == str(checkpoints / "classification") and metadata["labels"] == ["NEGATIVE", "POSITIVE"]
    assert (metadata["padding"], metadata["longest"], metadata["vocabulary"]) == (0, 40, 60)
    assert (net / "tokenizer" / "tokenizer.json").is_file() and artifact.is_artifact(net)


def test_compiled_kernels_answer_as_the_reference_alone_and_in_a_batch(net, tmp_path):
    copy = shutil.copytree(net, tmp_path / "copy")
    texts = [A, B, "very good", f"{B} and {A}"]
    rows = answer("run", copy, *texts)
    graph = artifact.load(net)
    for text, row in zip(texts, rows, strict=True):
        (scores,) = reference.run(graph, ids_of(net, text)[0][None])
        assert row == {"input": text, "top": best(scores[0], graph.metadata["labels"], 5)}
    assert answer("run", copy, texts[1]) == rows[1:2]


def test_a_deployed_artifact_needs_token_ids_and_no_transformers(net, tmp_path):
    copy = shutil.copytree(net, tmp_path / "copy")
    intq.compile(copy)
    ids = ids_of(net, A)[0]
    code = (
        "import sys; sys.modules['transformers'] = sys.modules['torch'] = None\n"
        "import intq, numpy as np\n"
        f"print(intq.compile(sys.argv[1])(np.array([{ids.tolist()}], np.int32)).tolist())"
    )
    run = subprocess.run([sys.executable, "-c", code, copy], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == reference.run(artifact.load(net), ids[None])[0].tolist()


def test_compile_elsewhere_takes_the_tokenizer_along(net, tmp_path):
    answer("compile", net, "-o", tmp_path / "compiled")
    assert answer("run", tmp_path / "compiled", A) == answer("run", net, A)


def test_run_on_pairs_lines_and_for_people(net, interpreted):
    (row,) = answer("run", net, A, "--pair", B)
    assert row["pair"] == B and row["top"] != answer("run", net, A)[0]["top"]
    lines = CliRunner().invoke(app, ["run", str(net), "-", "--json"], input=f"{A}\t{B}\n")
    assert json.loads(lines.stdout) == [row]
    people = invoke("run", net, A, B, "--top", 1)
    assert A in people.stdout and "TIVE" in people.stdout


@pytest.mark.parametrize("head", ["regression", "embedding", "tokens"])
def test_the_other_heads(head, checkpoints, glue, tmp_path, interpreted):
    words = write(tmp_path / "words.jsonl", '{"tokens": ["good", "film"], "labels": ["O", "B-X"]}')
    data = ("--data", words) if head == "tokens" else ("--task", "stsb", "--data", glue)
    folder = tmp_path / "net"
    answer("quantize", checkpoints / head, *data, "-o", folder)
    found = [answer("eval", network, *data) for network in (folder, f"float:{checkpoints / head}")]
    for value in found:
        assert value["metrics"].keys() == ({"accuracy", "f1"} if head == "tokens" else {"pearson", "spearman"})
    rows = answer("run", folder, A, A)
    people = invoke("run", folder, A, A).stdout
    if head == "regression":
        scale = artifact.load(folder).metadata["scale"]
        assert rows[0]["value"] == rows[0]["score"] * scale and f"{rows[0]['value']:.4g}" in people
    if head == "embedding":
        assert (
            rows[1]["similarity"] == pytest.approx(1) and "1.0000" in people and str(rows[0]["embedding"]) not in people
        )
    if head == "tokens":
        assert [word["word"] for word in rows[0]["words"]] == A.split() and "film" in people


def test_eval_beside_the_float_network(net, checkpoints, glue, interpreted):
    value = answer("eval", net, "--task", "sst2", "--data", glue, "--float", checkpoints / "classification")
    alone = answer("eval", f"float:{checkpoints / 'classification'}", "--task", "SST-2", "--data", glue / "SST-2")
    assert value["task"] == "sst2" and value["examples"] == 3 and value["float"] == alone["metrics"]
    assert 0 <= value["same"] <= 1 and value["metrics"].keys() == {"accuracy"}
    assert answer("eval", net, "--task", "sst2", "--data", glue, "--limit", 2)["examples"] == 2
    people = invoke("eval", net, "--task", "sst2", "--data", glue, "--float", checkpoints / "classification").stdout
    assert "in integers on 3 examples: accuracy" in people and "same answers: " in people


def test_eval_on_a_users_own_texts(net, tmp_path, interpreted):
    path = write(tmp_path / "reviews.csv", "label,text", f"positive,{A}", f'negative,"{B}"')
    value = answer("eval", net, "--data", path)
    assert value["task"] == "text-classification" and set(value["metrics"]) == {"accuracy", "macro_f1"}
    path = write(tmp_path / "happy.tsv", "label\ttext", f"happy\t{A}", f"sad\t{B}")
    assert "happy, sad" in complaint("eval", net, "--data", path)
    assert answer("eval", net, "--data", path, "--labels", "sad,happy")["metrics"] == value["metrics"]


def test_glue_in_one_table_beside_float(net, checkpoints, glue, tmp_path, interpreted):
    suite = tmp_path / "suite"
    suite.mkdir()
    shutil.copytree(net, suite / "first")
    source = checkpoints / "classification"
    names = ("--labels", "entailment,not_entailment")
    answer("quantize", source, "--task", "rte", "--data", glue, *names, "-o", suite / "second")
    value = answer("eval", suite, "--task", "glue", "--data", glue)
    assert [row["task"] for row in value["tasks"]] == ["sst2", "rte"] and value["notices"] == []
    assert [row["artifact"] for row in value["tasks"]] == [str(suite / "first"), str(suite / "second")]
    assert value["score"] == pytest.approx(np.mean([row["metrics"]["accuracy"] for row in value["tasks"]]))
    assert value["float_score"] == pytest.approx(np.mean([row["float"]["accuracy"] for row in value["tasks"]]))
    assert set(value["missing"]) == set(TASKS) - {"sst2", "rte"}
    people = invoke("eval", suite, "--task", "glue", "--data", glue).stdout
    assert "sst2" in people and "rte" in people and "mean" in people and "difference" in people


def test_glue_of_float_checkpoints_and_where_the_float_ones_are_gone(net, checkpoints, glue, tmp_path, interpreted):
    floats = tmp_path / "floats"
    shutil.copytree(checkpoints / "classification", floats / "sst2")
    value = answer("eval", f"float:{floats}", "--task", "glue", "--data", glue)
    assert [row["task"] for row in value["tasks"]] == ["sst2"] and value["float_score"] is None
    moved = tmp_path / "moved"
    answer("quantize", floats / "sst2", "--task", "sst2", "--data", glue, "-o", moved)
    (floats / "sst2").rename(floats / "was-sst2")
    gone = answer("eval", moved, "--task", "glue", "--data", glue)
    assert gone["float_score"] is None and "sst2" in gone["notices"][0] and "--float" in gone["notices"][0]
    there = answer("eval", moved, "--task", "glue", "--data", glue, "--float", floats / "was-{task}")
    assert there["float_score"] == value["score"]


def test_bits_and_functions_reach_the_quantizer(net, checkpoints, glue, tmp_path):
    arguments = (checkpoints / "classification", "--task", "sst2", "--data", glue, "-o", tmp_path / "net")
    answer("quantize", *arguments, "--bits", "*.output.dense=16", "--functions", "ibert")
    assert artifact.digest(artifact.load(tmp_path / "net")) != artifact.digest(artifact.load(net))


# ---- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--task", "squad", "--data", "{glue}"), ["'squad'", "sst2"]),
        (("--task", "stsb", "--data", "{glue}"), ["stsb", "NEGATIVE, POSITIVE"]),
        (("--task", "mnli", "--data", "{glue}"), ["entailment, neutral, contradiction", "NEGATIVE, POSITIVE"]),
        (("--task", "sst2", "--data", "{tmp}"), ["train.tsv", "SST-2"]),
        (("--data", "{tmp}/body.csv"), ["body.csv, line 1", "'body', 'label'"]),
        (("--data", "{tmp}/short.tsv"), ["short.tsv, line 3", "'text'"]),
        (("--data", "{tmp}/missing.tsv"), ["missing.tsv"]),
        (("--data", "{tmp}"), ["--task"]),
        (("--data", "{tmp}/good.csv", "--labels", "bad"), ["--labels", "NEGATIVE, POSITIVE"]),
        (("--data", "{tmp}/good.csv", "--bits", "*.dense"), ["--bits", "=16"]),
        (("--data", "{tmp}/good.csv", "--bits", "*.dense=12"), ["4, 8, 16 bits", "12"]),
        (("--data", "{tmp}/good.csv", "--weight-bits", "*.dense=3"), ["2, 4, 8, 16 bits", "3"]),
        (("--data", "{tmp}/good.csv", "--bits", "no.such.layer=16"), ["no.such.layer"]),
        (("--data", "{tmp}/good.csv", "--functions", "guess"), ["guess"]),
        ((), ["--data", "--task"]),
        (("--random", "--task", "sst2"), ["--random", "--task"]),
    ],
)
def test_quantize_refuses_in_one_sentence_and_writes_nothing(checkpoints, glue, tmp_path, arguments, words):
    write(tmp_path / "body.csv", "body,label", "x,1")
    write(tmp_path / "short.tsv", "label\ttext", "1\tgood", "0")
    write(tmp_path / "good.csv", "text,label", f"{A},1")
    given = [argument.format(tmp=tmp_path, glue=glue) for argument in arguments]
    sentence = complaint("quantize", checkpoints / "classification", *given, "-o", tmp_path / "out" / "net")
    assert all(word in sentence for word in words), sentence
    assert not (tmp_path / "out").exists()


def test_run_refuses_texts_that_have_no_answer(net, interpreted):
    assert "is empty" in complaint("run", net, "")
    assert "is empty" in complaint("run", net, A, "  ")
    assert "41 tokens long, 1 more than the 40" in complaint("run", net, " ".join(["film"] * 39))
    assert "2 texts and 1 --pair" in complaint("run", net, A, B, "--pair", B)
    assert answer("run", net, " ".join(["film"] * 39), "--truncate")[0]["top"]


def test_ids_outside_of_the_vocabulary_are_refused(net, tmp_path, interpreted):
    copy = shutil.copytree(net, tmp_path / "copy")
    path = copy / "tokenizer" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["film"] = 99
    path.write_text(json.dumps(tokenizer))
    assert "the id 99" in complaint("run", copy, A)
    (ids,) = ids_of(net, A)
    with pytest.raises(intq.IntqError, match=r"\[0, 59\], found"):
        reference.run(artifact.load(net), np.where(ids == ids[1], 60, ids)[None].astype(np.int32))


def test_a_folder_without_its_tokenizer_is_named(net, tmp_path, glue):
    copy = shutil.copytree(net, tmp_path / "copy")
    shutil.rmtree(copy / "tokenizer")
    for command in (("run", copy, A), ("eval", copy, "--task", "sst2", "--data", glue)):
        assert "no tokenizer" in complaint(*command)


def test_eval_refuses_what_does_not_fit(net, checkpoints, glue, tmp_path, interpreted):
    assert "--task" in complaint("eval", net)
    assert "'squad'" in complaint("eval", net, "--task", "squad", "--data", glue)
    assert "entailment, not_entailment" in complaint("eval", net, "--task", "rte", "--data", glue)
    other = checkpoints / "regression"
    assert "--float" in complaint("eval", net, "--task", "sst2", "--data", glue, "--float", other)
    assert "for a task" in complaint("eval", tmp_path, "--task", "glue", "--data", glue)
    write(tmp_path / "SST-2" / "dev.tsv", "sentence\tlabel", "good\t1", "bad")
    assert "dev.tsv, line 3" in complaint("eval", net, "--task", "sst2", "--data", tmp_path)


def test_options_of_text_are_refused_by_an_image_network(tmp_path):
    answer("quantize", "small_resnet", "--random", "-o", tmp_path / "net")
    for option in (("--pair", "x"), ("--truncate",)):
        assert option[0] in complaint("run", tmp_path / "net", "photo.png", *option)
    assert "--task" in complaint("eval", tmp_path / "net", "--task", "sst2")
    assert "--data" in complaint("eval", tmp_path / "net")


def test_a_missing_library_is_named_with_the_extra_that_brings_it(net):
    code = "import sys; sys.modules['transformers'] = None; from intq.cli import main; main()"
    run = subprocess.run([sys.executable, "-c", code, "run", net, A], capture_output=True, text=True, env=os.environ)
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
    assert "transformers" in run.stderr and "nlp" in run.stderr
