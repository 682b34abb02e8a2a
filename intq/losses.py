"""A network's loss as a function of named tensors: what the Hessian (:mod:`intq.hessian`) is the second derivative of.

    l(w, e; batch) = the mean of the loss over the batch's samples

``w`` are weights, the same for all batches; ``e`` are perturbations, zero, that are added to activations where a layer
reads them, of each sample its own. A :class:`Loss` is made of any module (:func:`of_module`), of a float graph
(:func:`of_graph`) or by hand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intq.errors import IntqError
from intq.floatgraph import CONTRACTIONS, FloatGraph, evaluate

Batch = Any  # a tensor, or tuples, lists and mappings of tensors, all with one row for each sample
Perturb = Callable[[str, Tensor], Tensor]  # (name, activation) -> the same activation, perturbed by zero
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)


def unperturbed(name: str, x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Loss:
    """``of(weights, batch, perturb)``: the mean loss, a scalar that can be differentiated twice.

    ``weights``: by name; ``of`` gets others in their place. It must take every activation whose Hessian is wanted
    through ``perturb(name, activation)``, each name once, and no sample may depend on another (no BatchNorm in
    training mode).
    """

    weights: Mapping[str, Tensor]
    of: Callable[[Mapping[str, Tensor], Batch, Perturb], Tensor]

    def only(self, *names: str) -> Loss:
        """The same loss as function of some of its weights alone, the others being constants."""
        if unknown := [name for name in names if name not in self.weights]:
            known = ", ".join(list(self.weights)[:4])
            raise IntqError(f"the loss has no weight {unknown[0]!r}; there are {known}, ...")
        fixed = {name: weight.detach() for name, weight in self.weights.items()}
        chosen = {name: self.weights[name] for name in names}
        return Loss(chosen, lambda weights, batch, perturb: self.of({**fixed, **weights}, batch, perturb))


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean of -sum_c p_c log softmax(outputs)_c; ``outputs`` (..., classes) are scores.

    ``targets``: classes (...), or probabilities p (..., classes).
    """
    soft = targets.is_floating_point()
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten(0, -2) if soft else targets.flatten())


def of_module(
    module: nn.Module,
    loss_of: Callable[[Any, Any], Tensor] = cross_entropy,
    names: Sequence[str] | None = None,
) -> Loss:
    """The loss of batches (inputs, targets): ``loss_of(module(inputs), targets)``; a mapping is given as ``**inputs``.

    ``names``: of the parameters that are the weights; default: the weights of all convolutions and linear layers.
    Perturbed is what those layers read, by the path of the layer; its second call in one pass is ``path:2``.
    Raises IntqError for a module in training mode and unknown names.
    """
    if module.training:
        raise IntqError("the module is in training mode, where samples depend on each other and on chance: call eval()")
    fixed = {name: p.detach() for name, p in module.named_parameters()}
    layers = {path: m for path, m in module.named_modules() if isinstance(m, LAYERS)}
    if names is None:
        owned = {id(m.weight) for m in layers.values()}
        names = [name for name, p in module.named_parameters() if id(p) in owned]
    if unknown := [name for name in names if name not in fixed]:
        raise IntqError(f"the module has no parameter {unknown[0]!r}; there are {', '.join(list(fixed)[:4])}, ...")

    def of(weights: Mapping[str, Tensor], batch: Batch, perturb: Perturb) -> Tensor:
        inputs, targets = batch
        given = ((), dict(inputs)) if isinstance(inputs, Mapping) else ((inputs,), {})
        with _perturbed(layers, perturb):
            return loss_of(torch.func.functional_call(module, {**fixed, **weights}, *given), targets)

    return Loss({name: fixed[name] for name in names}, of)


@contextmanager
def _perturbed(layers: Mapping[str, nn.Module], perturb: Perturb):
    calls: Counter[str] = Counter()

    def hook(path: str):
        def before(layer, inputs):
            calls[path] += 1
            name = path if calls[path] == 1 else f"{path}:{calls[path]}"
            return (perturb(name, inputs[0]), *inputs[1:])

        return before

    handles = [layer.register_forward_pre_hook(hook(path)) for path, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def of_graph(graph: FloatGraph, loss_of: Callable[[Tensor, Any], Tensor] = cross_entropy) -> Loss:
    """The loss of batches (x, targets): ``loss_of(scores, targets)``, the scores being before the last softmax if any.

    The weights are those of the contractions by the name of their node; perturbed is what contractions read, by the
    name of the value: several that read the same value read the same perturbation, while what else reads it (a
    residual sum) does not, as quantization narrows a value for its readers.
    """
    weights = {node.name: node.parameters["weight"].detach() for node in graph.nodes if node.op in CONTRACTIONS}

    def of(weights: Mapping[str, Tensor], batch: Batch, perturb: Perturb) -> Tensor:
        x, targets = batch
        return loss_of(_scores(graph, weights, x, perturb), targets)

    return Loss(weights, of)


def _scores(graph: FloatGraph, weights: Mapping[str, Tensor], x: Tensor, perturb: Perturb) -> Tensor:
    values, read = {graph.input: x}, {}
    for node in graph.nodes:
        inputs = [values[name] for name in node.inputs]
        if node.op == "softmax":  # the last operation
            return inputs[0]
        if node.op in CONTRACTIONS:
            name = node.inputs[0]
            if name not in read:
                read[name] = perturb(name, inputs[0])
            inputs[0], node = read[name], node.with_parameters(weight=weights[node.name])
        values[node.name] = evaluate(node, *inputs)
    return values[graph.output]


def with_own_answers(network: Callable[[Any], Tensor], inputs: Iterable) -> list[tuple[Any, Tensor]]:
    """Batches (x, softmax(network(x))), for data without labels.

    The cross entropy to the network's own answers is the divergence KL from the float network up to a constant. Its
    gradient is 0, and its Hessian is the Fisher information E[g g'], over labels drawn from the answers: nowhere
    negative.
    """
    with torch.no_grad():
        return [(x, torch.softmax(network(x), -1)) for x in inputs]


def with_drawn_answers(
    network: Callable[[Any], Tensor], inputs: Iterable, seed: int = 0, times: int = 1
) -> list[tuple[Any, Tensor]]:
    """Batches (x, classes), the classes drawn from softmax(network(x)), each batch so many times, for the Fisher
    information (:func:`intq.sensitivity.fisher`)."""
    generator, found = torch.Generator().manual_seed(seed), []
    for x, answers in with_own_answers(network, inputs):
        for _ in range(times):
            drawn = torch.multinomial(answers.flatten(0, -2).cpu(), 1, generator=generator)
            found.append((x, drawn.reshape(answers.shape[:-1]).to(answers.device)))
    return found


# ---- batches -----------------------------------------------------------------------------------------------------


def _tensors(batch: Batch) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    return [t for part in batch for t in _tensors(part)] if isinstance(batch, (tuple, list)) else []


def samples(batch: Batch) -> int:
    """How many samples a batch has: the rows of its first tensor. Raises IntqError for one without."""
    found = [t for t in _tensors(batch) if t.ndim > 0]
    if not found or len(found[0]) == 0:
        raise IntqError("a batch of the loss must hold tensors with a row for each sample, found none")
    return len(found[0])


def counts(batches: Sequence[Batch]) -> Tensor:
    """(batches,) float64: the samples of each batch, its share in a mean. Raises IntqError where there are none."""
    if not batches:
        raise IntqError("the loss needs data: at least one batch of samples")
    return torch.tensor([samples(batch) for batch in batches], dtype=torch.float64)


def split(batches: Iterable[Batch], size: int) -> list[Batch]:
    """The same samples in batches of at most ``size``."""

    def rows(batch: Batch, start: int) -> Batch:
        if isinstance(batch, Tensor):
            return batch[start : start + size]
        if isinstance(batch, Mapping):
            return {name: rows(part, start) for name, part in batch.items()}
        return tuple(rows(part, start) for part in batch) if isinstance(batch, (tuple, list)) else batch

    return [rows(batch, start) for batch in batches for start in range(0, samples(batch), size)]
