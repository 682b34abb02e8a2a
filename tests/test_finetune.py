"""Training: exact at every step, resumable to the last bit, and refused in one sentence where it cannot go on."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graphs import random_graph

from intq.artifact import digest
from intq.backends import reference
from intq.errors import IntqError
from intq.finetune import STATE, Recipe, distance, finetune
from intq.optimizers import OPTIMIZERS

torch.set_num_threads(1)
GRAPH = random_graph(6, blocks=1)
CLASSES = GRAPH.values[GRAPH.outputs[0]].shape[-1]


@dataclass(frozen=True)
class TwoKinds:
    """Images that are bright in every other column, or dark; a network's scores as logits of `spread` 1."""

    size: int = 32
    spread: float = 1.0

    def order(self, batch, generator):
        return list(generator.permutation(self.size).reshape(-1, batch))

    def batch(self, chosen, generator):
        labels = torch.from_numpy(chosen) % 2
        x = np.random.default_rng(0).integers(0, 128, (self.size, *GRAPH.inputs[0].shape[1:]))[chosen]
        x[labels == 1, :, ::2] += 127
        x = x + generator.integers(-3, 4, x.shape)
        return (torch.from_numpy(x.clip(0, 255).astype(np.uint8)),), labels

    def loss(self, output, targets):
        return F.cross_entropy(output / self.spread, targets)

    def kept(self, output, targets):
        return None


@pytest.fixture(scope="module")
def data() -> TwoKinds:
    (x,), _ = TwoKinds().batch(np.arange(32), np.random.default_rng(0))
    value = GRAPH.values[GRAPH.outputs[0]]
    scores = (reference.run(GRAPH, x.numpy())[0] - value.zero_point) * value.scale
    return TwoKinds(spread=float(scores.std()))


class Growing(TwoKinds):
    """Whose loss doubles with every tenth step or so, whatever is learned."""

    def batch(self, chosen, generator):
        inputs, labels = super().batch(chosen, generator)
        grown.append(len(grown))
        return inputs, labels

    def loss(self, output, targets):
        return 1 + output.square().mean() * 0 + 2 ** (len(grown) / 10)


grown: list[int] = []


def accuracy(graph, data) -> float:
    (x,), labels = data.batch(np.arange(data.size), np.random.default_rng(1))
    return float((reference.run(graph, x.numpy())[0][:, :2].argmax(1) == labels.numpy()).mean())


RECIPE = Recipe(epochs=5, batch=8, lr=5e-3)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("steps", ["none", "lsq"])
def test_the_loss_falls_and_the_last_evaluation_is_that_of_the_graph(tmp_path, data, optimizer, steps):
    rates = {"adamw": 5e-3, "sgd": 5e-5, "adahessian": 5e-3}
    recipe = replace(RECIPE, optimizer=optimizer, lr=rates[optimizer], steps=steps)
    outcome = finetune(GRAPH, data, recipe, folder=tmp_path, evaluate=lambda graph: {"accuracy": accuracy(graph, data)})
    assert [row["step"] for row in outcome.history] == [4, 8, 12, 16, 20]
    assert outcome.history[-1]["loss"] < 0.98 * outcome.history[0]["loss"]
    outcome.graph.verify()
    assert outcome.history[-1]["accuracy"] == accuracy(outcome.graph, data)
    assert digest(outcome.graph) != digest(GRAPH)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_training_that_was_stopped_ends_with_the_same_graph(tmp_path, data, optimizer):
    recipe = replace(RECIPE, optimizer=optimizer, lr=1e-3, steps="lsq", epochs=2)
    whole = finetune(GRAPH, data, recipe, folder=tmp_path / "whole")
    for _ in range(8):
        parts = finetune(GRAPH, data, recipe, folder=tmp_path / "parts", stop_after=3)
    assert digest(parts.graph) == digest(whole.graph)
    assert parts.history == whole.history
    other = finetune(GRAPH, data, replace(recipe, seed=1), folder=tmp_path / "other")
    assert digest(other.graph) != digest(whole.graph)


def test_a_training_killed_between_two_saves_goes_on_from_the_last(tmp_path, data):
    recipe = replace(RECIPE, epochs=2)
    whole = finetune(GRAPH, data, recipe, folder=tmp_path / "whole")

    def killed(done, total, text):
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(GRAPH, data, recipe, folder=tmp_path / "killed", save_every=2, progress=killed)
    assert not list((tmp_path / "killed").glob("*.part"))
    assert digest(finetune(GRAPH, data, recipe, folder=tmp_path / "killed").graph) == digest(whole.graph)


def test_the_teacher_is_what_the_network_comes_near_to(tmp_path, data):
    """Without labels, from answers alone; hidden values too."""
    value = GRAPH.values[GRAPH.outputs[0]]

    def teacher(x):
        wanted = torch.zeros(len(x), CLASSES)
        bright = x[:, :, ::2].float().mean((1, 2, 3)) > 100
        wanted[torch.arange(len(x)), bright.long()] = 3 * data.spread
        return wanted

    recipe = replace(RECIPE, distill=1.0, temperature=data.spread)
    outcome = finetune(GRAPH, data, recipe, folder=tmp_path / "answers", teacher=teacher)
    assert outcome.history[-1]["loss"] < 0.8 * outcome.history[0]["loss"]

    layer = next(n for n in GRAPH.nodes if "weight" in n.constants and n.name != value.name)
    (x,), _ = data.batch(np.arange(8), np.random.default_rng(0))
    aim = torch.full((1, *layer.output.shape[1:]), 20 * layer.output.scale)
    recipe = replace(RECIPE, distill=1.0, hidden=100.0, temperature=data.spread)
    near = finetune(
        GRAPH, data, recipe, folder=tmp_path / "hidden", teacher=teacher, hidden=lambda x: {layer.name: aim}
    )
    before, after = (real_value(graph, layer.name, x) for graph in (GRAPH, near.graph))
    assert np.square(after - aim.numpy()).mean() < 0.9 * np.square(before - aim.numpy()).mean()


def real_value(graph, name, x) -> np.ndarray:
    seen = {}
    reference.run(graph, x.numpy(), observe=seen.__setitem__)
    value = graph.values[name]
    return (seen[name].astype(float) - value.zero_point) * value.scale


def test_the_distance_is_that_of_the_paper():
    generator = torch.Generator().manual_seed(0)
    y, t = (torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    p, q = torch.softmax(t / 2, 1), torch.softmax(y / 2, 1)
    rows = 4 * (p * (p / q).log()).sum(1)
    torch.testing.assert_close(distance(y, t, 2.0), rows.mean())
    kept = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(distance(y, t, 2.0, kept), (rows[0] + rows[2]) / 2)
    torch.testing.assert_close(distance(y[:, :1], t[:, :1], 2.0), (y - t)[:, 0].square().mean())


PART = """
import sys, torch
from test_finetune import GRAPH, RECIPE, TwoKinds
from intq.artifact import digest
from intq.finetune import finetune
torch.set_num_threads(1)
print(digest(finetune(GRAPH, TwoKinds(spread=3.0), RECIPE, folder=__import__("pathlib").Path(sys.argv[1])).graph))
torch.distributed.destroy_process_group()
"""


def test_two_processes_train_one_network(tmp_path):
    """Each takes half of every batch; both have the same network, which learns."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    here = Path(__file__).parent
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{here}:{here.parent}"}
    parts = [
        subprocess.Popen(
            [sys.executable, "-c", PART, str(tmp_path / "state")],
            env={**shared, "RANK": str(i), "LOCAL_RANK": str(i)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    one, other = (part.communicate(timeout=300)[0].strip() for part in parts)
    assert one == other and len(one) == 64
    kept = torch.load(tmp_path / "state" / STATE, weights_only=True)
    assert kept["step"] == 20
    alone = finetune(GRAPH, TwoKinds(spread=3.0), RECIPE, folder=tmp_path / "alone")
    history = json.loads(kept["history"])
    assert history[-1]["loss"] < 0.95 * history[0]["loss"]
    assert history[0]["loss"] == pytest.approx(alone.history[0]["loss"], rel=0.1), "the same batches"


def test_what_cannot_go_on_says_why(tmp_path, data):
    with pytest.raises(IntqError, match=r"the loss diverged: .* at step \d+ .*the last good state is in .*; lower"):
        finetune(GRAPH, Growing(spread=data.spread), replace(RECIPE, epochs=50), folder=tmp_path / "far")
    with pytest.raises(IntqError, match="the loss diverged: nan at step 0"):
        finetune(GRAPH, replace(data, spread=float("nan")), RECIPE, folder=tmp_path / "nan")
    with pytest.raises(IntqError, match=r"the teacher answers in the shape \(8, 3\).*needs a teacher with the same"):
        recipe = replace(RECIPE, distill=0.5)
        finetune(GRAPH, data, recipe, folder=tmp_path / "t", teacher=lambda x: torch.zeros(len(x), 3))
    with pytest.raises(IntqError, match="distillation needs a teacher"):
        finetune(GRAPH, data, replace(RECIPE, hidden=0.5), folder=tmp_path / "t")
    finetune(GRAPH, data, RECIPE, folder=tmp_path / "done", stop_after=1)
    with pytest.raises(IntqError, match="is of another training"):
        finetune(GRAPH, data, replace(RECIPE, lr=1e-4), folder=tmp_path / "done")
    (tmp_path / "done" / STATE).write_bytes(b"PK\x03\x04 not a state")
    with pytest.raises(IntqError, match="is damaged"):
        finetune(GRAPH, data, RECIPE, folder=tmp_path / "done")
    with pytest.raises(IntqError, match="the optimizer must be one of adamw, sgd, adahessian, got 'lion'"):
        finetune(GRAPH, data, replace(RECIPE, optimizer="lion"), folder=tmp_path / "lion")
