"""The command line as a user meets it: documented JSON, one clear sentence for a mistake, nothing half-written."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from commandline import answer, complaint, invoke
from PIL import Image

from intq import artifact, ranking
from intq.backends import reference
from intq.vision import domain
from intq.vision.checkpoint import load
from intq.vision.models import architecture
from intq.vision.preprocess import Preprocess
from intq.vision.synthetic import random_images, random_model

COMMANDS = ("quantize", "eval", "compile", "run", "verify", "bench")


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """A small artifact: 28 x 28 luminance pixels, 10 classes, random weights."""
    folder = tmp_path_factory.mktemp("cli") / "net"
    value = answer("quantize", "small_resnet", "--random", "--output", folder)
    assert value["model"] == "small_resnet" and value["artifact"] == str(folder)
    assert value["overflow"]["proven"] is True and 8 < value["overflow"]["widest_bits"] <= 32
    assert value["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Four images in two folders of classes, `0` and `1`."""
    folder = tmp_path_factory.mktemp("photos")
    for i, pixels in enumerate(random_images(4, (28, 28), seed=1, channels=1)):
        path = folder / str(i % 2) / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels[..., 0]).save(path)
    return folder


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "small.pth"
    torch.save(random_model("small_resnet").state_dict(), path)
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples_and_documents_the_json(command):
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert "Examples" in result.stdout and f"intq {command} " in result.stdout and "JSON" in result.stdout


def test_an_artifact_is_as_readable_as_any_new_file(net, tmp_path):
    (tmp_path / "new").touch()
    assert {path.stat().st_mode for path in net.iterdir() if path.suffix != ".so"} == {
        (tmp_path / "new").stat().st_mode
    }


def test_the_seed_decides_the_artifact(net, tmp_path):
    same, other = tmp_path / "same", tmp_path / "other"
    answer("quantize", "small_resnet", "--random", "-o", same)
    answer("quantize", "small_resnet", "--random", "-o", other, "--seed", 1)
    digests = [artifact.digest(artifact.load(folder)) for folder in (net, same, other)]
    assert digests[0] == digests[1] != digests[2]


def test_run_prints_the_references_integer_scores(net, photos):
    files = sorted(photos.glob("*/*.png"))
    rows = answer("run", net, *files, "--top", 3)
    graph = artifact.load(net)
    preprocess = Preprocess.from_dict(graph.metadata["preprocess"])
    assert [row["input"] for row in rows] == [str(file) for file in files]
    for row, file in zip(rows, files, strict=True):
        (scores,) = reference.run(graph, preprocess.pixels(file)[None])
        assert row["top"] == ranking.best(scores[0], graph.metadata["labels"], 3)
        assert [best["score"] for best in row["top"]] == sorted(scores[0].tolist(), reverse=True)[:3]


def test_run_for_people_names_each_file_and_label(net, photos):
    result = invoke("run", net, *sorted(photos.glob("0/*.png")), "--top", 1)
    assert result.exit_code == 0 and "0.png" in result.stdout and "2.png" in result.stdout


def test_eval_of_the_artifact_and_of_its_float_network(net, photos, weights):
    for network in (net, f"float:{weights}"):
        value = answer("eval", network, "--data", photos)
        assert value["task"] == "image-classification" and value["examples"] == 4
        assert set(value["metrics"]) == {"top1", "top5"} and 0 <= value["metrics"]["top1"] <= 1
    assert answer("eval", net, "--data", photos, "--limit", 3)["examples"] == 3


def test_verify_proves_the_artifact(net):
    value = answer("verify", net)
    assert value["mismatches"] == {"torch": 0, "cpu": 0} and value["float_instructions"] == 0
    assert value["overflow"]["proven"] is True
    noise = [layer["sqnr_db"] for layer in value["layers"]]
    assert noise and noise == sorted(noise)
    people = invoke("verify", net)
    assert people.exit_code == 0 and "0 mismatches" in people.stdout and "dB" in people.stdout


def test_bench_of_an_artifact_has_every_layer(net):
    value = answer("bench", net, "--threads", 1, "--seconds", 0.1)
    assert set(value) >= {"model", "threads", "batch", "min_ms", "median_ms", "peak_memory_mb", "layers"}
    assert (value["model"], value["threads"], value["batch"]) == ("small_resnet", 1, 1)
    assert 0 < value["min_ms"] <= value["median_ms"] and value["peak_memory_mb"] > 0
    assert all(set(layer) >= {"name", "op", "k", "ms", "gops", "peak_share"} for layer in value["layers"])
    names = {node.name for node in artifact.load(net).nodes if "weight" in node.constants}
    assert names <= {layer["name"] for layer in value["layers"]}


def test_compile_writes_a_whole_artifact_elsewhere(net, tmp_path, photos):
    value = answer("compile", net, "-o", tmp_path / "compiled")
    assert value["artifact"] == str(tmp_path / "compiled") and value["target"] == "cpu" and value["bytes"] > 0
    image = next(photos.glob("*/*.png"))
    assert answer("run", tmp_path / "compiled", image)[0]["top"] == answer("run", net, image)[0]["top"]


# ---- mistakes ----------------------------------------------------------------------------------------------------


def test_an_output_that_exists_is_kept(net, tmp_path):
    (tmp_path / "notes.txt").write_text("precious")
    assert "--force" in complaint("quantize", "small_resnet", "--random", "-o", net)
    assert "no artifact" in complaint("quantize", "small_resnet", "--random", "-o", tmp_path, "--force")
    assert (tmp_path / "notes.txt").read_text() == "precious"


def test_force_replaces_an_artifact(net, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(net, copy)
    answer("quantize", "small_resnet", "--random", "-o", copy, "--seed", 3, "--force")
    assert artifact.digest(artifact.load(copy)) != artifact.digest(artifact.load(net))


def unreadable(folder):
    """What `quantize` refuses: the arguments by what is wrong with them, and a word of the sentence."""
    (folder / "empty").mkdir()
    (folder / "text.pth").write_text("not weights")
    state = random_model("small_resnet").state_dict()
    key = next(key for key in state if key.endswith("weight"))
    torch.save({**state, key: torch.full_like(state[key], float("nan"))}, folder / "nan.pth")
    torch.save({"some.weight": torch.zeros(3)}, folder / "unknown.pth")
    data = ("--data", folder / "photos")
    (folder / "photos").mkdir()
    (folder / "photos" / "broken.png").write_text("not an image")
    torch.save(state, folder / "good.pth")
    return {
        "a folder that is no checkpoint": (folder / "empty", *data, "empty"),
        "a file that does not load": (folder / "text.pth", *data, "text.pth"),
        "a state dict of something else": (folder / "unknown.pth", *data, "some.weight"),
        "NaN weights": (folder / "nan.pth", *data, "NaN"),
        "a missing checkpoint": (folder / "missing.pth", *data, "missing.pth"),
        "no calibration data": (folder / "good.pth", "calibration"),
        "an empty data folder": (folder / "good.pth", "--data", folder / "empty", "empty"),
        "an image that does not decode": (folder / "good.pth", *data, "broken.png"),
        "an unknown architecture": ("resnet19", "--random", "resnet19"),
        "random weights and data": ("resnet18", "--random", *data, "--random"),
        "an unknown method": ("small_resnet", "--random", "--method", "guess", "guess"),
    }


def test_quantize_refuses_in_one_sentence_and_writes_nothing(tmp_path):
    cases = unreadable(tmp_path)
    (tmp_path / "out").mkdir()
    for what, (*arguments, word) in cases.items():
        sentence = complaint("quantize", *arguments, "-o", tmp_path / "out" / "net")
        assert str(word).rsplit("/", 1)[-1] in sentence, (what, sentence)
        assert not list((tmp_path / "out").iterdir()), what


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda folder: (folder / "weights.safetensors").write_bytes(b"short"), "weights.safetensors"),
        (lambda folder: edit(folder, '"relu', '"relu') or edit(folder, '"low": ', '"low": 1'), "edited"),
        (lambda folder: edit(folder, '"version": 2', '"version": 99'), "version 99"),
        (lambda folder: (folder / "graph.json").unlink(), "not an intq artifact"),
    ],
    ids=["truncated", "edited", "newer", "no artifact"],
)
def test_a_damaged_artifact_is_refused_by_every_command(net, photos, tmp_path, damage, word):
    copy = tmp_path / "copy"
    shutil.copytree(net, copy)
    damage(copy)
    image = next(photos.glob("*/*.png"))
    for command in (("run", copy, image), ("verify", copy), ("eval", copy, "--data", photos), ("compile", copy)):
        assert word in complaint(*command), command


def edit(folder, old: str, new: str) -> None:
    path = folder / "graph.json"
    path.write_text(path.read_text().replace(old, new, 1))


def test_run_refuses_what_is_no_image(net, tmp_path):
    (tmp_path / "note.txt").write_text("hello")
    assert "note.txt" in complaint("run", net, tmp_path / "note.txt")
    assert "missing.jpg" in complaint("run", net, tmp_path / "missing.jpg")


def test_a_target_that_tvm_does_not_know_is_refused(net, tmp_path):
    assert "pdp11" in complaint("compile", net, "--target", "pdp11", "-o", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_bench_of_neither_a_folder_nor_an_architecture_names_those_there_are(tmp_path):
    assert "mobilenet_v2" in complaint("bench", tmp_path / "missing")


def test_a_checkpoint_of_another_task_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["BertForMaskedLM"], "model_type": "bert"}')
    assert "BertForMaskedLM" in complaint("quantize", tmp_path, "--data", tmp_path, "-o", tmp_path / "out")


def test_an_artifact_of_a_bare_module_says_how_to_run_it(tmp_path, photos):
    from intq.quantize import quantize

    preprocess = architecture("small_resnet").preprocess
    pixels = random_images(2, preprocess.size, channels=1)
    quantize(random_model("small_resnet"), [pixels], mean=preprocess.mean, std=preprocess.std).save(tmp_path / "bare")
    assert "intq.compile" in complaint("run", tmp_path / "bare", next(photos.glob("*/*.png")))


def test_the_process_exits_with_2_and_no_traceback(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "intq", "run", tmp_path, tmp_path / "dog.jpg"], capture_output=True, text=True
    )
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
    assert run.stderr.startswith("error: ")


def test_a_missing_library_is_named_with_the_extra_that_brings_it(net, tmp_path):
    code = "import sys; sys.modules['PIL'] = None; from intq.cli import main; main()"
    command = [sys.executable, "-c", code, "run", net, tmp_path / "dog.jpg"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
    assert "PIL" in run.stderr and "intq[vision]" in run.stderr


def test_the_float_network_sees_the_same_pixels(weights):
    checkpoint = load(weights)
    pixels = random_images(2, checkpoint.input_size, channels=1)
    normal = torch.from_numpy(checkpoint.preprocess.normalize(pixels)).permute(0, 3, 1, 2)
    assert np.array_equal(domain.network(checkpoint)(pixels), checkpoint.model(normal).detach().numpy())


def test_the_readmes_example_runs(root, tmp_path, weights, photos):
    example = (root / "README.md").read_text().split("```python\n")[1].split("```")[0]
    example = example.replace("microsoft/resnet-50", str(weights)).replace("photos/", str(photos))
    code = f"{example}\nassert scores.shape == (4, 10) and scores.dtype.name == 'int32'"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True
    )
    assert run.returncode == 0, run.stderr.decode()
    assert artifact.is_artifact(tmp_path / "resnet50-int8")
