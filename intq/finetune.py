"""Training of an integer network: forward the deployed integers, exactly, at every step.

What is trained is :class:`intq.backends.straight_through.IntegerNetwork`, so every evaluation along the way is that of
the graph that would be written then. Everything random follows from the seed and the number of the step, and the state
is written to disk now and then: a training that was killed goes on and ends with the same graph, bit for bit, on the
same machine with as many threads. Several processes (:mod:`intq.processes`) share each batch.

Distillation adds, to the loss on labels, the distance from a teacher's answers and, of the float network itself, from
the values at the ends of its blocks:

    loss = (1 - d) task(y) + d T^2 KL(softmax(teacher / T) || softmax(y / T)) + h mean_v |v - v_float|^2 / |v_float|^2

(Hinton et al. 2015, section 2; HAWQ-V3's "+DIST"; hidden values as Romero et al. 2015, "FitNets", eq. 3.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from intq.artifact import digest
from intq.backends.straight_through import IntegerNetwork
from intq.errors import IntqError, UnprovenError
from intq.graph import Graph
from intq.optimizers import optimizer_of
from intq.processes import averaged, place

STATE = "state.pt"
WARM_UP = 0.05  # share of the steps in which the rate rises
DIVERGED = 10.0  # times the first steps' mean loss, on average, and the training is given up
FIRST = 20  # steps of that mean


class Data(Protocol):
    """Labelled examples as a domain gives them to training."""

    size: int

    def order(self, batch: int, generator: np.random.Generator) -> list[np.ndarray]:
        """The batches of an epoch, as indices of examples."""

    def batch(self, chosen: np.ndarray, generator: np.random.Generator) -> tuple[tuple[Tensor, ...], Any]:
        """(inputs of the integer network, targets), augmented at random."""

    def loss(self, output: Tensor, targets: Any) -> Tensor:
        """The task's loss of the network's answers."""

    def kept(self, output: Tensor, targets: Any) -> Tensor | None:
        """Which rows of the answers (all axes but the last) count; None for all."""


Teacher = Callable[..., Tensor]  # the integer network's inputs -> a float network's answers
Hidden = Callable[..., Mapping[str, Tensor]]  # the same -> {value: real numbers}


@dataclass(frozen=True)
class Recipe:
    """How to train. Rates are relative, see :func:`intq.optimizers.optimizer_of`; ``steps`` are learned as
    :mod:`intq.backends.steps` says; ``distill`` (d) and ``hidden`` (h) weigh the teacher, ``temperature`` is T.
    """

    epochs: float = 3.0
    batch: int = 64
    lr: float = 1e-3
    optimizer: str = "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.0
    steps: str = "none"
    step_lr: float = 1e-3
    distill: float = 0.0
    temperature: float = 2.0
    hidden: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """The trained graph, and a row for each evaluation: {"step", "epoch", "loss", **metrics}."""

    graph: Graph
    history: tuple[Mapping[str, Any], ...]


def finetune(
    graph: Graph,
    data: Data,
    recipe: Recipe,
    *,
    folder: Path,
    teacher: Teacher | None = None,
    hidden: Hidden | None = None,
    evaluate: Callable[[Graph], Mapping[str, float]] | None = None,
    save_every: int = 100,
    progress: Callable[[int, int, str], None] | None = None,
    stop_after: int | None = None,
) -> Outcome:
    """Train a graph. ``folder`` holds the state; a training that it holds already goes on.

    ``evaluate`` is called on the graph at the end of every epoch. ``stop_after``: so many steps are taken, no more.
    Raises IntqError when the loss diverges (the last good state stays in ``folder``), when the folder holds the state
    of another training, or when an answer has not the teacher's shape.
    """
    if (recipe.distill and teacher is None) or (recipe.hidden and hidden is None):
        raise IntqError("distillation needs a teacher; give one, or set distill and hidden to 0")
    network = IntegerNetwork(graph, recipe.steps)
    optimizer = optimizer_of(network, recipe.optimizer, recipe.lr, recipe.step_lr, recipe.weight_decay, recipe.momentum)
    index, count = place()
    if recipe.batch < count:
        raise IntqError(
            f"{count} processes cannot share batches of {recipe.batch}: take larger ones or fewer processes"
        )
    rates = [group["lr"] for group in optimizer.param_groups]
    each = max(1, data.size // recipe.batch)
    total = max(1, round(recipe.epochs * each))
    state = _State(folder / STATE, _fingerprint(graph, data, recipe))
    done, history, losses = state.restore(network, optimizer)
    reached = total if stop_after is None else min(total, done + stop_after)
    for step, chosen in _batches(data, recipe, each, done, reached):
        generator = np.random.default_rng([recipe.seed, step])
        own = generator if index == 0 else np.random.default_rng([recipe.seed, step, index])
        inputs, targets = data.batch(chosen[index::count], own)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * _schedule(step / total)
        loss = _loss(network, inputs, targets, data, recipe, teacher, hidden)
        (mean_loss,) = averaged([loss.detach()])
        losses = _checked(mean_loss.item(), losses, folder, step)
        _update(optimizer, loss, recipe, generator)
        finished = step + 1
        at_end = finished % each == 0 or finished == total
        if at_end:
            row = {"step": finished, "epoch": round(finished / each, 3), "loss": round(losses["mean"], 6)}
            if evaluate and index == 0:
                row |= evaluate(_exported(network, folder))
            history = [*history, row]
        if index == 0 and (at_end or finished % save_every == 0 or finished == reached):
            state.save(finished, network, optimizer, history, losses)
        if progress:
            progress(finished, total, f"loss {losses['mean']:.4f}")
    return Outcome(_exported(network, folder), tuple(history))


def _batches(data: Data, recipe: Recipe, each: int, done: int, reached: int) -> Iterator[tuple[int, np.ndarray]]:
    step = done
    while step < reached:
        epoch = step // each
        order = data.order(recipe.batch, np.random.default_rng([recipe.seed, epoch, 2**31]))
        if len(order) < each:
            raise IntqError(f"an epoch must have {each} batches, but the data gave {len(order)}")
        for chosen in order[step % each : each]:
            if step == reached:
                return
            yield step, chosen
            step += 1


def _schedule(done: float) -> float:
    """The rate's share of its largest: it rises in a line, then falls as half a cosine."""
    if done < WARM_UP:
        return (done + 1e-3) / (WARM_UP + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def _loss(network, inputs, targets, data: Data, recipe: Recipe, teacher, hidden) -> Tensor:
    wanted = {} if not recipe.hidden else hidden(*inputs)
    seen: dict[str, Tensor] = {}

    def observe(name: str, real: Tensor) -> None:
        if name in wanted:
            seen[name] = real

    output = network(*inputs, observe=observe if wanted else None)
    total = output.new_zeros(())
    if recipe.distill < 1:
        total = total + (1 - recipe.distill) * data.loss(output, targets)
    if recipe.distill:
        answers = teacher(*inputs)
        if answers.shape != output.shape:
            raise IntqError(
                f"the teacher answers in the shape {tuple(answers.shape)}, the network in {tuple(output.shape)}: "
                "distillation needs a teacher with the same labels"
            )
        total = total + recipe.distill * distance(output, answers, recipe.temperature, data.kept(output, targets))
    if wanted:
        near = [
            (seen[name] - real).square().mean() / real.square().mean().clamp_min(1e-12) for name, real in wanted.items()
        ]
        total = total + recipe.hidden * torch.stack(near).mean()
    return total


def distance(output: Tensor, teacher: Tensor, temperature: float, kept: Tensor | None = None) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(output / T)) along the last axis, the mean over the rows that are kept; of
    a single number the squared difference."""
    teacher = teacher.to(output)
    if output.shape[-1] == 1:
        apart = (output - teacher).square()[..., 0]
    else:
        mine, its = (F.log_softmax(x / temperature, -1) for x in (output, teacher))
        apart = temperature**2 * (its.exp() * (its - mine)).sum(-1)
    return apart.mean() if kept is None else (apart * kept).sum() / kept.sum()


def _update(optimizer, loss: Tensor, recipe: Recipe, generator: np.random.Generator) -> None:
    optimizer.zero_grad(set_to_none=True)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    twice = recipe.optimizer == "adahessian"
    gradients = torch.autograd.grad(loss, params, create_graph=twice, allow_unused=True, materialize_grads=True)
    if not twice:
        for p, g in zip(params, averaged(gradients), strict=True):
            p.grad = g
        optimizer.step()
        return
    signs = [torch.as_tensor(generator.integers(0, 2, p.shape) * 2.0 - 1).to(p) for p in params]
    products = torch.autograd.grad(gradients, params, signs, allow_unused=True, materialize_grads=True)
    for p, g in zip(params, averaged([g.detach() for g in gradients]), strict=True):
        p.grad = g
    optimizer.step(averaged([v * hv for v, hv in zip(signs, products, strict=True)]))


def _checked(loss: float, losses: Mapping[str, float], folder: Path, step: int) -> dict[str, float]:
    """The running mean of the loss, and that of the first steps. Raises IntqError when it diverges."""
    first, count = losses.get("first", 0.0), losses.get("count", 0)
    mean = loss if not count else 0.95 * losses["mean"] + 0.05 * loss
    if not math.isfinite(loss) or (count >= FIRST and mean > DIVERGED * first):
        kept = f"the last good state is in {folder}" if step else "it did so at once"
        raise IntqError(f"the loss diverged: {loss:.4g} at step {step} ({kept}); lower the learning rate")
    first = (first * count + loss) / (count + 1) if count < FIRST else first
    return {"first": first, "count": min(count + 1, FIRST), "mean": mean}


def _exported(network: IntegerNetwork, folder: Path) -> Graph:
    try:
        return network.graph()
    except UnprovenError as error:
        raise IntqError(
            f"training led to a network that cannot be proven ({error}); the last good state is in {folder}; lower "
            "the learning rate"
        ) from None


# ---- state -------------------------------------------------------------------------------------------------------


def _fingerprint(graph: Graph, data: Data, recipe: Recipe) -> str:
    return json.dumps({"graph": digest(graph), "examples": data.size, "recipe": asdict(recipe)}, sort_keys=True)


@dataclass(frozen=True)
class _State:
    """What a training needs to go on, in a file that is replaced whole."""

    path: Path
    fingerprint: str

    def save(self, step: int, network, optimizer, history, losses) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        torch.save(
            {
                "fingerprint": self.fingerprint,
                "threads": torch.get_num_threads(),
                "step": step,
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "history": json.dumps(history),
                "losses": losses,
            },
            part,
        )
        part.replace(self.path)

    def restore(self, network, optimizer) -> tuple[int, list, dict]:
        if not self.path.is_file():
            return 0, [], {}
        try:
            kept = torch.load(self.path, weights_only=True)
            same = kept["fingerprint"] == self.fingerprint
            if same:
                network.load_state_dict(kept["network"])
                optimizer.load_state_dict(kept["optimizer"])
                torch.set_num_threads(kept["threads"])  # sums in another order would be other sums
                return kept["step"], json.loads(kept["history"]), kept["losses"]
        except Exception as error:  # whatever a damaged file makes torch's reader raise
            raise IntqError(f"{self.path} is damaged ({error}); remove it to begin anew") from None
        raise IntqError(
            f"{self.path} is of another training: its network, its data or its recipe differ; remove it to begin anew"
        )
