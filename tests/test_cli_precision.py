"""`intq search`, `--plan` and `intq finetune` as a user meets them."""

import json

import numpy as np
import pytest
import torch
from commandline import answer, complaint
from PIL import Image

from intq import artifact
from intq.artifact import digest
from intq.cost import network_cost
from intq.vision.synthetic import random_model


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A trained network's file, photos of two classes, and a plan for a network of other layers."""
    folder = tmp_path_factory.mktemp("precision")
    torch.save(random_model("small_resnet", 0).state_dict(), folder / "resnet.pth")
    torch.save(random_model("small_mobilenet_v2", 0).state_dict(), folder / "mobilenet.pth")
    rng = np.random.default_rng(0)
    for label in (0, 1):
        (folder / "photos" / str(label)).mkdir(parents=True)
        for i in range(16):
            pixels = np.kron(rng.integers(0, 128, (7, 7)), np.ones((4, 4))) + 127 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "photos" / str(label) / f"{i}.png")
    return folder


ASKED = ("--sensitivity", "fisher", "--sensitivity-samples", 8, "--samples", 16, "--threads", 1)


@pytest.fixture(scope="module")
def plan(place):
    value = answer(
        *("search", place / "resnet.pth", "--data", place / "photos", "--budget", "bops=0.5x,size=0.9x"),
        *("-o", place / "plan.json", *ASKED),
    )
    return value


def test_a_plan_is_within_its_budgets_and_becomes_a_network(place, plan):
    assert plan["method"] == "ilp" and plan["gap"] == 0
    assert plan["costs"]["bops"] <= plan["budgets"]["bops"] == 0.5 * plan["w8a8"]["bops"]
    assert plan["costs"]["size"] <= plan["budgets"]["size"]
    assert plan["fronts"]["bops"] == sorted(plan["fronts"]["bops"])
    out = place / "mixed"
    answer(
        *("quantize", place / "resnet.pth", "--data", place / "photos", "--plan", place / "plan.json"),
        *("--samples", 16, "-o", out),
    )
    graph = artifact.load(out)
    found = {n.source: n.attrs.get("weight_bits", 8) for n in graph.nodes if "weight" in n.constants}
    assert found == {name: bits["weight_bits"] for name, bits in plan["layers"].items()}
    reads = {n.source: 4 if graph.values[n.inputs[0]].high == 15 else 8 for n in graph.nodes if "weight" in n.constants}
    assert reads == {name: bits["input_bits"] for name, bits in plan["layers"].items()}


def test_methods_that_try_networks_and_the_cheapest_within_a_drop(place):
    tried = answer(
        *("search", place / "resnet.pth", "--data", place / "photos", "--budget", "bops=0.6x", "--limit", 8),
        *("--method", "evolution", "--trials", 3, "--offer", "W8A8,W4A4", "-o", place / "evolved.json", *ASKED),
    )
    assert tried["method"] == "evolution" and 1 <= tried["evaluations"] <= 3 and tried["score"] is not None
    cheap = answer(
        *("search", place / "resnet.pth", "--data", place / "photos", "--max-drop", 100, "--limit", 8),
        *("--keep", "conv1", "-o", place / "cheap.json", *ASKED),
    )
    assert cheap["layers"]["conv1"] == {"weight_bits": 8, "input_bits": 8}
    assert {bits["weight_bits"] for name, bits in cheap["layers"].items() if name != "conv1"} == {2}, "anything will do"


def test_training_goes_on_where_it_was_stopped_and_is_what_it_measured(place, plan):
    asked = ("finetune", place / "resnet.pth", "--data", place / "photos", "--plan", place / "plan.json")
    asked += ("--teacher", place / "resnet.pth", "--hidden", 0.1, "--epochs", 2, "--batch", 8, "--samples", 16)
    asked += ("--threads", 1)
    whole = answer(*asked, "-o", place / "tuned")
    assert [row["epoch"] for row in whole["history"]] == [1, 2]
    value = answer("eval", place / "tuned", "--data", place / "photos")
    assert value["metrics"]["top1"] == whole["history"][-1]["top1"]
    assert artifact.load(place / "tuned").metadata["training"]["history"] == whole["history"]
    assert not (place / "tuned.training").exists()

    import intq.tuning

    def stopped(*arguments, real=intq.tuning.finetune, **options):
        real(*arguments, **{**options, "stop_after": 3})
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intq.tuning, "finetune", stopped)
        with pytest.raises((KeyboardInterrupt, AssertionError, json.JSONDecodeError)):
            answer(*asked, "-o", place / "again")
    assert (place / "again.training").is_dir() and not (place / "again").exists()
    assert "another recipe" in complaint(*asked, "--lr", 0.5, "-o", place / "again")
    answer(*asked, "-o", place / "again")
    assert digest(artifact.load(place / "again")) == digest(artifact.load(place / "tuned"))


def test_channels_are_pruned_before_anything_else(place):
    asked = ("--data", place / "photos", "--samples", 16)
    answer("quantize", place / "resnet.pth", *asked, "-o", place / "whole")
    answer("quantize", place / "resnet.pth", *asked, "--prune", "bops=0.6x", "-o", place / "thin")
    whole, thin = (network_cost(artifact.load(place / name)) for name in ("whole", "thin"))
    assert 0.4 * whole.bops < thin.bops <= 0.6 * whole.bops


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("quantize", "resnet.pth", "--data", "photos", "--prune", "bops=5G"), "--prune takes shares that are left"),
        (("quantize", "resnet.pth", "--data", "photos", "--prune", "bops=0.0001x"), "bops"),
        (("search", "resnet.pth", "--data", "photos"), "nothing to search for"),
        (("search", "resnet.pth", "--budget", "size=0.5x"), "no data"),
        (("search", "resnet.pth", "--data", "photos", "--budget", "bops=0.001x", *ASKED), "is the smallest reachable"),
        (("search", "resnet.pth", "--data", "photos", "--budget", "speed=2x"), "a budget is a name"),
        (("search", "resnet.pth", "--data", "photos", "--budget", "size=1x", "--offer", "W3A8"), "bits are offered as"),
        (("search", "resnet.pth", "--data", "photos", "--budget", "size=1x", "--method", "luck"), "must be one of ilp"),
        (
            ("search", "resnet.pth", "--data", "photos", "--budget", "size=1x", "--keep", "x", *ASKED),
            "no layer is called",
        ),
        (("quantize", "mobilenet.pth", "--data", "photos", "--plan", "plan.json"), "the plan is for another network"),
        (("finetune", "mobilenet.pth", "--data", "photos", "--plan", "plan.json"), "the plan is for another network"),
        (("finetune", "resnet.pth"), "no data"),
        (("finetune", "resnet.pth", "--data", "photos", "--distill", "0.5"), "say which with --teacher"),
        (("finetune", "resnet.pth", "--data", "photos", "--steps", "dorefa"), "steps must be one of"),
        (("finetune", "resnet.pth", "--data", "photos", "--plan", "photos"), "photos"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_told_in_a_sentence_and_leave_nothing(place, plan, arguments, says):
    there = [place / a if isinstance(a, str) and (place / a).exists() else a for a in arguments]
    out = place / "never"
    assert says in complaint(*there, "-o", out if arguments[0] != "search" else place / "never.json")
    assert not out.exists() and not (place / "never.json").exists()
