"""Tables of latencies: every node's time falls to one layer or to none, tables are kept, and searches take them."""

import json

import numpy as np
import pytest
import torch
from commandline import answer, complaint, invoke
from small_speech import recording, small
from text_models import tiny, tiny_ids

import intq
from intq import dataflow, latency, searching
from intq.cost import read_latencies
from intq.latency import measured
from intq.quantize import observe
from intq.vision.models import architecture
from intq.vision.synthetic import random_images, random_model

OFFER = ((8, 8), (4, 8), (4, 4))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INTQ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def steady(monkeypatch):
    """Every node takes a millisecond; what was measured, by the folder's name."""
    called = []

    def bench(folder, threads, sequence, audio, seconds):
        called.append((folder.name, sequence, audio))
        return {"layers": [{"name": node.name, "ms": 1.0} for node in intq.load(folder).nodes]}

    monkeypatch.setattr(latency, "bench", bench)
    return called


def observed_images(name: str = "small_resnet"):
    known = architecture(name)
    pixels = random_images(4, known.size, 0, known.preprocess.channels)
    return observe(random_model(name), [pixels], mean=known.preprocess.mean, std=known.preprocess.std)


@pytest.mark.parametrize("name", ["small_resnet", "small_mobilenet_v2", "small_inception"])
def test_the_table_is_complete(name, steady):
    seen = observed_images(name)
    table, kept = measured(seen, name, OFFER, threads=2)
    given = dataflow.input_readers(seen.graph)
    assert list(table.layers) == list(dataflow.shapes(seen.graph)) and table.threads == 2
    for layer, times in table.layers.items():
        assert set(times) == ({(8, 8), (4, 8)} if layer in given else set(OFFER)), layer
        assert times[8, 8] == times[4, 8] == 1e-3  # a layer is a node; a copy in 4 bits is another
        assert times[min(times)] in (1e-3, 2e-3)
    assert read_latencies(kept) == table
    assert steady == [(pair, None, None) for pair in ("W8A8", "W4A8", "W4A4")] * latency.TURNS


def test_every_node_is_counted_once(steady):
    """The layers' times and the rest are the whole network's, in every network that was measured."""
    seen = observed_images()
    table, _ = measured(seen, "net", OFFER)
    for pair in OFFER:
        choices = searching.uniform(seen.graph, pair)
        integers = searching.applied(seen, choices)
        total = table.other + sum(table.of(name, *choice.bits) for name, choice in choices.items())
        assert total == pytest.approx(1e-3 * len(integers.nodes))
    assert sum(node.op == "requantize" for node in integers.nodes) > 0  # what a sum takes in 8 bits is copied


def test_a_table_is_measured_once(steady, cache):
    seen = observed_images()
    table, kept = measured(seen, "net", OFFER, threads=1)
    count = len(steady)
    assert kept.parent == cache / "latencies"
    assert measured(seen, "net", OFFER[::-1], threads=1) == (table, kept)
    assert len(steady) == count
    assert measured(seen, "net", OFFER, threads=2)[1] != kept
    assert measured(seen, "net", OFFER[:2], threads=1)[1] != kept
    assert measured(observed_images("small_mobilenet_v2"), "net", OFFER, threads=1)[1] != kept
    kept.write_text("{")
    count = len(steady)
    assert measured(seen, "net", OFFER, threads=1) == (table, kept)
    assert len(steady) > count and read_latencies(kept) == table


def test_texts_and_recordings(steady):
    model, ids = tiny("bert"), tiny_ids("bert", 4, 12)
    seen = observe(model, [ids])
    table, _ = measured(seen, "bert", [(4, 8), (8, 16)], sequence=9)
    for times in table.layers.values():
        # of 16 bits a layer has two products, and a share in the halves of what it reads
        assert times[4, 8] == times[8, 8] < times[8, 16]
    assert steady[0] == ("W8A8", 9, None)
    checkpoint = small("quartznet")
    audio = [torch.from_numpy(np.stack([recording(1.0, seed) for seed in range(2)]))]
    table, _ = measured(observe(checkpoint.model, audio), "quartznet", [(4, 8)], audio=1.0)
    assert {frozenset(times) for times in table.layers.values()} == {frozenset([(8, 8), (4, 8)])}
    assert steady[-1] == ("W4A8", None, 1.0)


def test_a_search_measures_what_its_budget_needs(tmp_path, monkeypatch):
    """Through the commands and with real clocks: the table that `bench` made is the one that `search` takes."""
    monkeypatch.setattr(latency, "TURNS", 1)
    table = tmp_path / "times.json"
    how = ("--offer", "W8A8,W4A4", "--threads", 1)
    value = answer("bench", "small_resnet", "--latencies", table, *how)
    assert set(value) == {"latencies", "network", "target", "threads", "kept", "other", "layers"}
    assert set(value["layers"]["conv1"]) == {"W8A8", "W4A8"} and set(value["layers"]["fc"]) == {"W8A8", "W4A4"}
    assert value["other"] > 0 and all(s > 0 for each in value["layers"].values() for s in each.values())
    assert json.loads(table.read_text())["layers"] == value["layers"]

    def never(*arguments, **options):
        raise AssertionError("measured again")

    monkeypatch.setattr(latency, "bench", never)
    shown = invoke("bench", "small_resnet", "--latencies", table, *how)
    assert shown.exit_code == 0 and "W4A4" in shown.stdout and "layer1.0.conv2" in shown.stdout
    wanted = ("search", "small_resnet", "--random", "--sensitivity", "fisher", "--sensitivity-samples", 4, *how)
    plan = tmp_path / "plan.json"
    found = answer(*wanted, "--budget", "latency=2x,bops=0.5x", "-o", plan)
    assert (
        found["costs"]["latency"] <= 2 * found["w8a8"]["latency"] and found["costs"]["bops"] <= found["budgets"]["bops"]
    )
    expected = value["other"] + sum(each["W8A8"] for each in value["layers"].values())
    assert found["w8a8"]["latency"] == pytest.approx(expected)
    given = answer(*wanted, "--budget", "latency=2x,bops=0.5x", "--latencies", table, "-o", plan)
    assert given["layers"] == found["layers"] and len(given["fronts"]["latency"]) >= 1
    said = complaint(*wanted, "--budget", "latency=0.0001x", "-o", tmp_path / "none.json")
    assert "no plan meets the budgets: latency at most" in said and "is the smallest reachable" in said
    assert not (tmp_path / "none.json").exists()


def test_mistakes_are_one_sentence(tmp_path):
    seen, net, table = observed_images(), tmp_path / "net", tmp_path / "times.json"
    searching.applied(seen, searching.uniform(seen.graph, (8, 8))).save(net)
    assert "is an artifact, whose layers have their bits" in complaint("bench", net, "--latencies", table)
    assert "of single inputs" in complaint("bench", "small_resnet", "--latencies", table, "--batch", 2)
    assert "bits are offered as W4A8" in complaint("bench", "small_resnet", "--latencies", table, "--offer", "W3")
    assert "cannot be written" in complaint("bench", "small_resnet", "--latencies", tmp_path)
    assert not table.exists()
