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
from intq.problem import ERROR, MEMORY, Assignment, Choice, Evaluate, Problem, assignment, fits, slack, uniform_plan
from intq.search import search

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

    def cheapest(steps: list[_Step], relief: np.ndarray) -> int:
        return int(np.argmin(np.array([step.error for step in steps]) / relief))

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
        descent.run(descent.widest(), lambda steps, relief: int(rng.integers(len(steps)))) for _ in range(max(1, draws))
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
    """Narrower bits of a layer, or of what tied layers read: the error that they add, and what they add to each row."""

    choices: Choices
    error: float
    added: np.ndarray


class _Descent:
    """Narrows plans step by step until they are within the budgets.

    What plans are measured by are rows, as in the integer program: a budget is one, of memory one for each moment; each
    choice adds its own numbers to them. Raises IntqError at once when no plan is within the budgets.
    """

    def __init__(self, problem: Problem, budgets: Mapping[str, float]):
        search(problem, budgets)  # says what is reachable where nothing is
        self.problem, self.budgets = problem, budgets
        rows = [(name, number) for name in budgets for number in range(len(problem.moments) if name == MEMORY else 1)]
        self.limits = np.array([budgets[name] + slack(problem, name, budgets[name]) for name, _ in rows])
        # each budget counts relative to itself, memory as the mean over its moments
        units = [abs(budgets[name]) * (len(problem.moments) if name == MEMORY else 1) for name, _ in rows]
        self.weights = np.array([1 / unit if unit else 1.0 for unit in units])
        self.base = np.array([self._fixed(name, number) for name, number in rows], np.float64)
        self.rows = {
            (layer.name, choice.bits): np.array([self._adds(layer.name, choice, *row) for row in rows], np.float64)
            for layer in problem.layers
            for choice in layer.choices
        }

    def _fixed(self, row: str, number: int) -> float:
        if row == MEMORY:
            return sum(live.bytes(8) for live in self.problem.moments[number] if not live.layer)
        return self.problem.base.get(row, 0)

    def _adds(self, name: str, choice: Choice, row: str, number: int) -> float:
        if row == MEMORY:
            return sum(live.bytes(choice.input_bits) for live in self.problem.moments[number] if live.layer == name)
        return choice.error if row == ERROR else choice.costs[row]

    def widest(self) -> Choices:
        choices = {}
        for group in self.problem.groups:
            for name in group.layers:
                offered = _weights(self.problem, name, group.widths[-1])
                choices[name] = offered[max(offered)]
        return choices

    def run(self, choices: Choices, choose: Callable[[list[_Step], np.ndarray], int]) -> Assignment:
        """Down by the steps whose number ``choose(steps, relief)`` gives, of those that bring the plan nearer."""
        totals, groups = self._totals(choices), range(len(self.problem.groups))
        steps = [list(self._steps(choices, group)) for group in groups]
        while (excess := self._excess(totals)) > 0:
            every = [(group, step) for group in groups for step in steps[group]]
            added = np.array([step.added for _, step in every]).reshape(len(every), len(totals))
            relief = excess - self._excess(totals + added)
            nearer = np.flatnonzero(relief > 0)
            if not len(nearer):
                self._stuck(choices)
            group, step = every[nearer[choose([every[at][1] for at in nearer], relief[nearer])]]
            choices, totals = choices | step.choices, totals + step.added
            steps[group] = list(self._steps(choices, group))
        return assignment(self.problem, choices)

    def run_in_order(self, choices: Choices) -> Assignment:
        """Down group by group from the first, one step each, and again."""
        totals, before = self._totals(choices), None
        while (excess := self._excess(totals)) > 0:
            if choices == before:
                self._stuck(choices)
            before = choices
            for group in range(len(self.problem.groups)):
                for step in self._steps(choices, group):
                    if excess > 0 and self._excess(totals + step.added) < excess:
                        choices, totals = choices | step.choices, totals + step.added
                        excess = self._excess(totals)
                        break
        return assignment(self.problem, choices)

    def _totals(self, choices: Choices) -> np.ndarray:
        return self.base + sum(self.rows[name, choice.bits] for name, choice in choices.items())

    def _excess(self, totals: np.ndarray) -> np.ndarray:
        """By how much the budgets are exceeded; of several plans, one in each row of ``totals``."""
        return (np.maximum(totals - self.limits, 0) * self.weights).sum(-1)

    def _steps(self, choices: Choices, number: int) -> Iterator[_Step]:
        """To the next narrower weights of each layer of a group, and to its next narrower inputs."""
        group = self.problem.groups[number]
        width = choices[group.layers[0]].input_bits
        for name in group.layers:
            offered = _weights(self.problem, name, width)
            if below := [bits for bits in offered if bits < choices[name].weight_bits]:
                yield self._step(choices, {name: offered[max(below)]})
        if below := [bits for bits in group.widths if bits < width]:
            change = {}
            for name in group.layers:
                offered, bits = _weights(self.problem, name, max(below)), choices[name].weight_bits
                change[name] = offered[min(offered, key=lambda each: (abs(each - bits), each))]
            yield self._step(choices, change)

    def _step(self, choices: Choices, change: Choices) -> _Step:
        error = sum(choice.error - choices[name].error for name, choice in change.items())
        added = sum(self.rows[name, c.bits] - self.rows[name, choices[name].bits] for name, c in change.items())
        return _Step(change, error, added)

    def _stuck(self, choices: Choices):
        plan = assignment(self.problem, choices)
        over = [name for name, limit in self.budgets.items() if not fits(self.problem, plan, {name: limit})]
        raise IntqError(
            f"narrowing layer by layer found no plan within the budgets ({', '.join(over)} remains too large), "
            "though there is one; use --method ilp"
        )
