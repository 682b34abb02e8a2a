"""The searches that the literature compares with, under one signature, so that a user sees what the Hessian buys.

    method(problem, budgets, *, seed=0, trials=100, evaluate=None) -> Assignment

``evaluate``: a plan's loss on data, the lower the better; without it a plan is judged by its error, the sum of Omega.
``trials``: how many plans it may judge. Every plan that is returned is within the budgets.

- ``uniform``: the same bits for every layer, the best of those within the budgets.
- ``greedy``: from the widest bits down, always the step that adds the least error for what it brings the costs nearer
  to their budgets.
- ``random``: from the widest bits down by random steps, so that every draw ends just within the budgets; the best of
  ``trials`` draws by ``evaluate``, and without it the first draw, since choosing by Omega would be the Hessian's doing.
- ``evolution``: NSGA-II (Deb et al. 2002) over the bits, by optuna: candidates are tried with ``evaluate``.
- ``tpe``: the same by the tree-structured Parzen estimator (Bergstra et al. 2011), as AutoML does.

As in HAQ (Wang et al. 2019, "Action Space") a candidate that exceeds a budget is narrowed layer by layer, from the
first to the last and again, until it is met; so no evaluation is spent on a plan that may not be used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from intq.errors import IntqError
from intq.search import (
    ERROR,
    MEMORY,
    Assignment,
    Choice,
    Evaluate,
    Problem,
    assignment,
    fits,
    search,
    uniform_plan,
    value_of,
)

Choices = dict[str, Choice]


def ilp(
    problem: Problem,
    budgets: Mapping[str, float],
    *,
    seed: int = 0,
    trials: int = 100,
    evaluate: Evaluate | None = None,
) -> Assignment:
    """The optimum (:func:`intq.search.search`), which needs neither chance nor data; ``evaluate`` judges it once."""
    found = search(problem, budgets)
    return found if evaluate is None else replace(found, score=evaluate(found.choices), evaluations=1)


def uniform(
    problem: Problem,
    budgets: Mapping[str, float],
    *,
    seed: int = 0,
    trials: int = 100,
    evaluate: Evaluate | None = None,
) -> Assignment:
    """The best plan of the same bits everywhere; a layer that may not have them has the next wider ones it may have."""
    start, judge = time.perf_counter(), _Judge(evaluate)
    pairs = sorted({choice.bits for layer in problem.layers for choice in layer.choices}, reverse=True)
    plans = [plan for pair in pairs if fits(problem, plan := uniform_plan(problem, *pair), budgets)]
    if not plans:
        search(problem, budgets)  # says what is reachable where nothing is
        raise IntqError(
            "no plan of the same bits everywhere meets the budgets, though a mixed one does; use --method ilp"
        )
    return judge.best(plans, "uniform", seed, start)


def greedy(
    problem: Problem,
    budgets: Mapping[str, float],
    *,
    seed: int = 0,
    trials: int = 100,
    evaluate: Evaluate | None = None,
) -> Assignment:
    """Step by step down from the least error, the cheapest step in error first."""
    start, judge, descent = time.perf_counter(), _Judge(evaluate), _Descent(problem, budgets)

    def cheapest(steps: list[_Step]) -> _Step:
        return min(steps, key=lambda step: (step.error / step.relief, -step.relief))

    return judge.best([descent.run(descent.widest(), cheapest)], "greedy", seed, start)


def random(
    problem: Problem,
    budgets: Mapping[str, float],
    *,
    seed: int = 0,
    trials: int = 100,
    evaluate: Evaluate | None = None,
) -> Assignment:
    """Steps down at random until the budgets are met: the best of ``trials`` draws by ``evaluate``."""
    start, judge, descent = time.perf_counter(), _Judge(evaluate), _Descent(problem, budgets)
    rng = np.random.default_rng(seed)
    draws = trials if evaluate is not None else 1
    plans = (
        descent.run(descent.widest(), lambda steps: steps[int(rng.integers(len(steps)))]) for _ in range(max(1, draws))
    )
    return judge.best(plans, "random", seed, start)


def evolution(
    problem: Problem,
    budgets: Mapping[str, float],
    *,
    seed: int = 0,
    trials: int = 100,
    evaluate: Evaluate | None = None,
) -> Assignment:
    """NSGA-II over the bits of all layers, a fifth of the trials being the first generation."""
    samplers = _optuna().samplers
    sampler = samplers.NSGAIISampler(population_size=max(4, min(50, trials // 5)), seed=seed)
    return _black_box(problem, budgets, sampler, "evolution", seed, trials, evaluate)


def tpe(
    problem: Problem,
    budgets: Mapping[str, float],
    *,
    seed: int = 0,
    trials: int = 100,
    evaluate: Evaluate | None = None,
) -> Assignment:
    """The tree-structured Parzen estimator over the bits of all layers."""
    sampler = _optuna().samplers.TPESampler(n_startup_trials=max(5, min(20, trials // 5)), seed=seed)
    return _black_box(problem, budgets, sampler, "tpe", seed, trials, evaluate)


METHODS: dict[str, Callable[..., Assignment]] = {
    each.__name__: each for each in (ilp, uniform, greedy, random, evolution, tpe)
}


def _optuna():
    try:
        import optuna
    except ImportError:
        raise IntqError("a search by evaluating candidates needs optuna: pip install intq[search]") from None
    return optuna


def _black_box(
    problem: Problem,
    budgets: Mapping[str, float],
    sampler,
    method: str,
    seed: int,
    trials: int,
    evaluate: Evaluate | None,
) -> Assignment:
    start, judge, descent = time.perf_counter(), _Judge(evaluate), _Descent(problem, budgets)
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    plans = []

    def objective(trial) -> float:
        plans.append(descent.run_in_order(_suggested(problem, trial)))
        return judge(plans[-1])

    optuna.create_study(sampler=sampler).optimize(objective, n_trials=max(1, trials))
    return judge.best(plans, method, seed, start)


def _suggested(problem: Problem, trial) -> Choices:
    """Bits for every layer as the sampler proposes them, those that tied layers read being one proposal."""
    choices = {}
    for number, group in enumerate(problem.groups):
        width = group.widths[0]
        if len(group.widths) > 1:
            width = trial.suggest_categorical(f"inputs {number}", list(group.widths))
        for name in group.layers:
            offered = _weights(problem, name, width)
            every = sorted({choice.weight_bits for choice in problem.by_name[name].choices})
            bits = trial.suggest_categorical(f"weights {name}", every) if len(every) > 1 else every[0]
            choices[name] = offered[min(offered, key=lambda each: (abs(each - bits), -each))]
    return choices


def _weights(problem: Problem, name: str, input_bits: int) -> dict[int, Choice]:
    """What a layer may be given at an input width, by the bits of its weights."""
    return {c.weight_bits: c for c in problem.by_name[name].choices if c.input_bits == input_bits}


class _Judge:
    """The loss of a plan, each plan tried once, and how often one was."""

    def __init__(self, evaluate: Evaluate | None):
        self.evaluate, self.known = evaluate, {}

    def __call__(self, plan: Assignment) -> float:
        if self.evaluate is None:
            return plan.error
        bits = tuple(choice.bits for choice in plan.choices.values())
        if bits not in self.known:
            self.known[bits] = float(self.evaluate(plan.choices))
        return self.known[bits]

    def best(self, plans, method: str, seed: int, start: float) -> Assignment:
        """The best of the plans, the first of equals."""
        found = min(plans, key=self)
        score = None if self.evaluate is None else self(found)
        seconds = time.perf_counter() - start
        return replace(
            found, method=method, seed=seed, seconds=seconds, score=score, evaluations=len(self.known), minimized=ERROR
        )


@dataclass(frozen=True)
class _Step:
    """Narrower bits of a layer, or of what tied layers read: the error they add, how much nearer the budgets come."""

    choices: Choices
    error: float
    relief: float


@dataclass(frozen=True)
class _Descent:
    """Narrows plans until they are within the budgets. Raises IntqError at once when no plan is."""

    problem: Problem
    budgets: Mapping[str, float]

    def __post_init__(self) -> None:
        search(self.problem, self.budgets)

    def widest(self) -> Choices:
        choices = {}
        for group in self.problem.groups:
            for name in group.layers:
                offered = _weights(self.problem, name, group.widths[-1])
                choices[name] = offered[max(offered)]
        return choices

    def run(self, choices: Choices, choose: Callable[[list[_Step]], _Step]) -> Assignment:
        """Down by the steps that `choose` takes from all those that bring the plan nearer to the budgets."""
        while not fits(self.problem, plan := assignment(self.problem, choices), self.budgets):
            steps = [step for group in range(len(self.problem.groups)) for step in self._steps(choices, group)]
            choices = choices | choose(steps or self._stuck(plan)).choices
        return plan

    def run_in_order(self, choices: Choices) -> Assignment:
        """Down group by group from the first, one step each, and again."""
        while True:
            before = choices
            for group in range(len(self.problem.groups)):
                if fits(self.problem, plan := assignment(self.problem, choices), self.budgets):
                    return plan
                for step in self._steps(choices, group)[:1]:
                    choices = choices | step.choices
            if choices == before:
                self._stuck(plan)

    def _steps(self, choices: Choices, group: int) -> list[_Step]:
        """The narrower bits of one group that bring the plan nearer to the budgets, weights first."""
        found, before = [], self._excess(choices)
        for change in self._narrower(choices, group):
            relief = before - self._excess(choices | change)
            if relief > 0:
                error = sum(change[name].error - choices[name].error for name in change)
                found.append(_Step(change, error, relief))
        return found

    def _narrower(self, choices: Choices, number: int) -> Iterator[Choices]:
        group = self.problem.groups[number]
        width = choices[group.layers[0]].input_bits
        for name in group.layers:
            offered = _weights(self.problem, name, width)
            if below := [bits for bits in offered if bits < choices[name].weight_bits]:
                yield {name: offered[max(below)]}
        if below := [bits for bits in group.widths if bits < width]:
            change = {}
            for name in group.layers:
                offered, bits = _weights(self.problem, name, max(below)), choices[name].weight_bits
                change[name] = offered[min(offered, key=lambda each: (abs(each - bits), each))]
            yield change

    def _excess(self, choices: Choices) -> float:
        """By how much the budgets are exceeded, each relative to itself; of memory at every moment."""
        plan, excess = assignment(self.problem, choices), 0.0
        for name, limit in self.budgets.items():
            unit = abs(limit) or 1.0
            if name == MEMORY:
                for moment in self.problem.moments:
                    taken = sum(live.bytes(choices[live.layer].input_bits if live.layer else 8) for live in moment)
                    excess += max(0.0, taken - limit) / unit / len(self.problem.moments)
            else:
                excess += max(0.0, value_of(plan, name) - limit) / unit
        return excess

    def _stuck(self, plan: Assignment):
        over = [name for name, limit in self.budgets.items() if not fits(self.problem, plan, {name: limit})]
        raise IntqError(
            f"narrowing layer by layer found no plan within the budgets ({', '.join(over)} remains too large), "
            "though there is one; use --method ilp"
        )
