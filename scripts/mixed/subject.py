"""One trained network, its images, and what is asked of it: plans of bits, and how well the network does with them.

Every answer is kept in the cache by what was asked, so that a long table goes on where it was stopped.
"""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from train import EPOCHS, checkpoint_of

from intq import artifact, dataflow, searching
from intq.assets import cache_folder
from intq.backends import torch as integers
from intq.baselines import METHODS
from intq.budgets import limits, parse_budgets
from intq.console import step
from intq.cost import Bits
from intq.documents import read_document, write_document
from intq.finetune import Recipe, finetune
from intq.graph import Graph
from intq.options import OFFERED
from intq.precision import parse_bits
from intq.problem import Choice, uniform_plan
from intq.quantize import Observed, observe
from intq.tuning import answers_of
from intq.vision import domain
from intq.vision.assets import asset
from intq.vision.checkpoint import Checkpoint
from intq.vision.data import Dataset, open_dataset
from intq.vision.evaluate import evaluate
from intq.vision.training import Training

FORMAT, VERSION = "intq-mixed", 1
JUDGED = 2000  # training images by which a black-box search judges, none of those that calibrate
PROBED = 32  # images by which sensitivity is measured
BATCH = 250
NEEDS_EVALUATION = ("evolution", "tpe")  # what these methods know of a plan is the network's accuracy with it
NEEDS_NO_ERROR = (*NEEDS_EVALUATION, "random")  # nor do these use how sensitive layers are

Plan = Mapping[str, Bits]  # {layer: (weight bits, input bits)}


@dataclass(frozen=True)
class Subject:
    """A network of scripts/train_fashion, calibrated on ``samples`` training images drawn by ``seed``.

    ``limit``: evaluate on so many test images, all by default. ``sensitivity``: as in :mod:`intq.searching`, of
    weights that are rounded by ``rounding``.
    """

    name: str
    samples: int = 512
    seed: int = 0
    limit: int | None = None
    sensitivity: str = "loss"
    rounding: str = "learned"

    @cached_property
    def data(self) -> Path:
        return asset("fashion-mnist")

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The float network, trained first if need be."""
        folder = cache_folder() / "fashion-models"
        return checkpoint_of(self.name, self.data, folder, EPOCHS[self.name], seed=0, retrain=False)

    @cached_property
    def test(self) -> Dataset:
        whole = open_dataset(self.data, self.checkpoint.preprocess, self.checkpoint.labels)
        return whole.sample(self.limit) if self.limit else whole

    @cached_property
    def train(self) -> Dataset:
        return open_dataset(self.data, self.checkpoint.preprocess, self.checkpoint.labels, split="train")

    @cached_property
    def judged(self) -> Dataset:
        """Training images that are not among those that calibrate (:func:`intq.vision.domain.calibration`)."""
        seen = set(self.train.sample(self.samples, self.seed).indices.tolist())
        others = [index for index in self.train.indices.tolist() if index not in seen]
        return replace(self.train, indices=self.train.indices[others]).sample(JUDGED, self.seed)

    @cached_property
    def seen(self) -> Observed:
        with step(f"{self.name}: calibrate"):
            prepared = domain.prepare(
                self.checkpoint, self.data, samples=self.samples, seed=self.seed, rounding=self.rounding
            )
            return observe(prepared.model, prepared.samples, **prepared.options)

    @cached_property
    def sensitivities(self) -> searching.Sensitivities:
        with step(f"{self.name}: sensitivity, {self.sensitivity}") as advance:
            return searching.sensitivities(
                *(self.seen, parse_bits(OFFERED), self.sensitivity, PROBED),
                seed=self.seed,
                progress=lambda stage, done, total: advance(done, total, stage),
            )

    # ---- accuracy ------------------------------------------------------------------------------------------------

    def real(self) -> float:
        """Share of right answers of the float network."""
        asked = {"what": "float", "limit": self.limit}
        return self._answered(asked, lambda: {"top1": self._right(domain.network(self.checkpoint))})["top1"]

    def score(self, plan: Plan, recipe: Recipe | None = None) -> dict[str, float]:
        """{"top1", "minutes"} of the integer network with these bits, rounded and then, with a recipe, trained.

        The teacher is the float network.
        """
        asked = {"what": "score", "rounding": self.rounding, "plan": {name: list(bits) for name, bits in plan.items()}}
        asked |= {"recipe": asdict(recipe) if recipe else None, "limit": self.limit}

        def work() -> dict[str, float]:
            graph, minutes = self._rounded(plan)
            if recipe:
                start, state = time.perf_counter(), self._place(asked).with_suffix(".training")
                with step(f"{self.name}: train") as advance:
                    graph = finetune(
                        graph,
                        Training(self.train),
                        recipe,
                        folder=state,
                        teacher=answers_of(domain, self.checkpoint, self.checkpoint) if recipe.distill else None,
                        progress=advance,
                    ).graph
                minutes += (time.perf_counter() - start) / 60
            return {"top1": self._right(predictor(graph)), "minutes": minutes}

        answer = self._answered(asked, work)
        shutil.rmtree(self._place(asked).with_suffix(".training"), ignore_errors=True)
        return answer

    def _rounded(self, plan: Plan) -> tuple[Graph, float]:
        """The integer network, and the minutes that it took: learned rounding is done once, trained or not."""
        asked = {"what": "graph", "rounding": self.rounding, "plan": {name: list(bits) for name, bits in plan.items()}}
        folder = self._place(asked).with_suffix("")
        if not artifact.is_artifact(folder):
            seen, start = self.seen, time.perf_counter()
            with step(f"{self.name}: {self.rounding} rounding"):
                graph = searching.applied(
                    seen, {name: Choice(*bits, 0.0) for name, bits in plan.items()}, self.rounding
                )
            minutes = (time.perf_counter() - start) / 60
            folder.parent.mkdir(parents=True, exist_ok=True)
            artifact.save(replace(graph, metadata={**graph.metadata, "minutes": minutes}), folder, overwrite=True)
        graph = artifact.load(folder)
        return graph, graph.metadata["minutes"]

    def _right(self, predict: Callable, dataset: Dataset | None = None) -> float:
        found = evaluate(predict, dataset or self.test, BATCH)
        return found["metrics"]["top1"]

    # ---- plans ---------------------------------------------------------------------------------------------------

    def uniform(self, bits: Bits) -> Plan:
        """The same bits everywhere; what reads pixels reads all 8 bits of them."""
        answer = self._answered(
            {"what": "uniform", "bits": list(bits)},
            lambda: {name: list(choice.bits) for name, choice in searching.uniform(self.seen.graph, bits).items()},
        )
        return {name: tuple(bits) for name, bits in answer.items()}

    def bops(self, plan: Plan) -> float:
        """The share of W8A8's bit operations."""
        macs = self._answered(
            {"what": "macs"},
            lambda: {name: layer.macs for name, layer in dataflow.layers(self.seen.graph).items()},
        )
        return sum(macs[name] * math.prod(bits) for name, bits in plan.items()) / (64 * sum(macs.values()))

    def found(self, method: str, budget: str, trials: int = 100) -> dict[str, Any]:
        """{"plan", "costs", "error", "minutes", "evaluations"} of the plan that a method finds within a budget.

        Minutes are those of the search and, where the method uses it, of the sensitivity.
        """
        asked = {"what": "search", "method": method, "budget": budget, "offer": OFFERED}
        asked |= {} if method in NEEDS_NO_ERROR else {"sensitivity": self.sensitivity, "rounding": self.rounding}
        asked |= {"trials": trials, "judged": JUDGED} if method in NEEDS_EVALUATION else {}
        answer = self._answered(asked, lambda: self._search(method, budget, trials))
        return {**answer, "plan": {name: tuple(bits) for name, bits in answer["plan"].items()}}

    def _search(self, method: str, budget: str, trials: int) -> dict[str, Any]:
        made, _ = searching.problem(self.seen, self.sensitivities, parse_bits(OFFERED))
        bounds = limits(parse_budgets(budget), uniform_plan(made, 8, 8).costs)
        with step(f"{self.name}: {method}") as advance:
            tried = 0

            def loss(choices: Mapping[str, Choice]) -> float:
                nonlocal tried
                tried += 1
                advance(tried, trials)
                return -self._right(predictor(searching.applied(self.seen, choices)), self.judged)

            evaluated = {"evaluate": loss} if method in NEEDS_EVALUATION else {}
            best = METHODS[method](made, bounds, seed=self.seed, trials=trials, **evaluated)
        seconds = best.seconds + (0.0 if method in NEEDS_NO_ERROR else self.sensitivities.seconds)
        return {
            "plan": {name: list(choice.bits) for name, choice in best.choices.items()},
            "costs": dict(best.costs),
            "error": best.error,
            "minutes": seconds / 60,
            "evaluations": best.evaluations,
        }

    # ---- what was answered before --------------------------------------------------------------------------------

    def _answered(self, asked: Mapping[str, Any], work: Callable[[], dict]) -> dict:
        path = self._place(asked)
        if not path.is_file():
            write_document(path, FORMAT, VERSION, {"asked": self._whole(asked), "answer": work()})
        return read_document(path, FORMAT, VERSION)["answer"]

    def _place(self, asked: Mapping[str, Any]) -> Path:
        question = json.dumps(self._whole(asked), sort_keys=True)
        return answers_folder() / f"{self.name}-{hashlib.sha256(question.encode()).hexdigest()[:16]}.json"

    def _whole(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        return {"network": self._weights, "samples": self.samples, "seed": self.seed, **asked}

    @cached_property
    def _weights(self) -> str:
        """Digest of the float network's weights."""
        state = hashlib.sha256()
        for name, value in self.checkpoint.model.state_dict().items():
            state.update(name.encode() + value.contiguous().numpy().tobytes())
        return state.hexdigest()


def answers_folder() -> Path:
    """Where answers are kept; without it everything is measured anew."""
    return cache_folder() / "mixed"


def predictor(graph: Graph) -> Callable:
    """The integer network on pixels, by the torch backend."""
    network = integers.prepare(graph)
    return lambda pixels: network(torch.from_numpy(pixels))[0].numpy()
