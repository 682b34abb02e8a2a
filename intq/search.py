"""Which layer gets which bits: the plan of least error within every budget at once, proven the best there is.

Every layer i has choices c, each with its error Omega_i(c), such as its mean Hessian trace times the squared change of
its weights (HAWQ-V2, Dong et al. 2020), and its costs. With x_ic = 1 for the choice that is taken, the integer linear
program of HAWQ-V3 (Yao et al. 2021), here with any number of budgets, is

    minimise  sum_ic Omega_i(c) x_ic
    so that   sum_c x_ic = 1                                    for every layer i
              sum_ic cost_i(c) x_ic <= budget                   for every budget: bytes, BOPS, seconds
              sum_v elements_v bytes_v(x) <= budget             for every moment of the network: peak memory
              the input bits of tied layers are the same,

solved by HiGHS through scipy, with branch and bound until the gap is closed. What is minimised and what is bounded are
interchangeable: the smallest network within an error is ``search(problem, {"error": e}, minimize="size")``.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from intq.budgets import spelled
from intq.errors import IntqError
from intq.problem import ERROR, MEMORY, SLACK, Assignment, Choice, Problem, assignment, fits, slack, value_of

# HiGHS lets a row be exceeded by 1e-6 and stops within 1e-6 of the best. So rows and objective count what is above each
# layer's least, what alone would exceed a budget is left out, and the rest is scaled to a million: what the solver may
# be wrong by is then far below SLACK.
_SCALE = 1e6


def search(
    problem: Problem,
    budgets: Mapping[str, float],
    *,
    minimize: str = ERROR,
    seconds: float = 600.0,
) -> Assignment:
    """The plan of least error, or of whatever ``minimize`` names, within all ``budgets``: the optimum.

    ``budgets``: {"size": bytes, "bops": BOPS, "latency": seconds, "memory": bytes, "error": Omega}, any of them. When
    the solver has not proven the optimum after so many ``seconds``, the plan is the best it has, and ``gap`` says how
    far it may be from the best there is.
    Raises IntqError when no plan meets the budgets, with the smallest values that can be reached.
    """
    start = time.perf_counter()
    _check(problem, [minimize, *budgets])
    found = _solve(problem, budgets, minimize, seconds)
    if found is None:
        raise IntqError(_unreachable(problem, budgets, seconds))
    return replace(found, seconds=time.perf_counter() - start)


def _check(problem: Problem, names: Sequence[str]) -> None:
    for name in names:
        if name != ERROR and name not in problem.costs:
            known = ", ".join([ERROR, *problem.costs])
            raise IntqError(f"there is no {name!r} to minimise or to limit here; there is {known}")


def _solve(problem: Problem, budgets: Mapping[str, float], minimize: str, seconds: float) -> Assignment | None:
    """The best plan, None where there is none."""
    program = _Program(problem)
    limits = program.within(budgets)
    if limits is None:
        return None
    objective = np.where(program.upper > 0, program.objective(minimize), 0.0)
    unit = float(objective.max()) / _SCALE or 1.0
    with _quiet():
        result = milp(
            objective / unit,
            integrality=program.integrality,
            bounds=Bounds(np.zeros(program.columns), program.upper),
            constraints=[*program.structure(), *limits, *([program.below_peak()] if minimize == MEMORY else [])],
            options={"mip_rel_gap": 0.0, "time_limit": seconds},
        )
    if result.x is None:
        if "nfeasible" not in result.message:  # out of time or in trouble: no proof that there is no plan
            raise IntqError(f"the solver found no plan in {seconds:.0f} s ({result.message}); give it longer")
        return None
    found = assignment(problem, program.choices(result.x), method="ilp", minimized=minimize)
    if not fits(problem, found, budgets):
        raise AssertionError(f"the solver exceeds a budget: {found.error}, {found.costs} of {dict(budgets)}")
    open_by = result.fun - result.mip_dual_bound  # in millionths of the largest coefficient
    gap = open_by * unit / abs(found.objective) if open_by > _SCALE * SLACK and found.objective else 0.0
    return replace(found, gap=gap)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps C's standard output out of ours, which is for answers: HiGHS has a line that it prints unasked."""
    try:
        sys.stdout.flush()
        kept = os.dup(1)
    except (OSError, AttributeError, ValueError):  # there is no standard output
        yield
        return
    flush = ctypes.CDLL(None).fflush
    flush(None)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    try:
        yield
    finally:
        flush(None)
        os.dup2(kept, 1)
        os.close(nothing)
        os.close(kept)


def _unreachable(problem: Problem, budgets: Mapping[str, float], seconds: float) -> str:
    """Why no plan meets the budgets: the smallest value of each alone, and with the others met."""
    lines = []
    for name, limit in budgets.items():
        alone = _solve(problem, {}, name, seconds)
        least = value_of(alone, name)
        line = f"{name} at most {spelled(name, limit)}, where {spelled(name, least, up=True)} is the smallest reachable"
        others = {other: value for other, value in budgets.items() if other != name}
        if others and fits(problem, alone, {name: limit}):
            together = _solve(problem, others, name, seconds)
            if together is not None:
                line += f", or {spelled(name, value_of(together, name), up=True)} with the other budgets met"
        lines.append(line)
    return f"no plan meets the budgets: {'; '.join(lines)}; raise a budget or offer the layers fewer bits"


class _Program:
    """The columns of the program: one for each choice of each layer, and the peak of memory as the last."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.pairs = [(layer.name, choice) for layer in problem.layers for choice in layer.choices]
        self.columns = len(self.pairs) + 1
        self.starts = np.cumsum([0, *(len(layer.choices) for layer in problem.layers[:-1])])
        self.of_layer: dict[str, list[int]] = {}
        for column, (name, _) in enumerate(self.pairs):
            self.of_layer.setdefault(name, []).append(column)
        self.integrality = np.array([1] * len(self.pairs) + [0])
        self.upper = np.ones(self.columns)  # 0: a choice that no budget has room for
        self.most = max([1.0, *(float(sum(live.bytes(16) for live in moment)) for moment in problem.moments)])

    def objective(self, name: str) -> np.ndarray:
        """What is minimised, above the least of each layer."""
        if name == MEMORY:
            return np.array([0.0] * len(self.pairs) + [self.most])
        above, _ = self._above_least(self._coefficients(name))
        return np.append(above, 0.0)

    def choices(self, x: np.ndarray) -> dict[str, Choice]:
        """The choice of each layer that a solution takes."""
        return {name: self.pairs[max(columns, key=x.__getitem__)][1] for name, columns in self.of_layer.items()}

    def structure(self) -> list[LinearConstraint]:
        """One choice a layer; tied layers read the same number of bits."""
        rows = [dict.fromkeys(columns, 1.0) for columns in self.of_layer.values()]
        values = [1.0] * len(rows)
        for group in self.problem.groups:
            first, *others = group.layers
            widths = {self.pairs[column][1].input_bits for name in group.layers for column in self.of_layer[name]}
            for other in others:
                for width in sorted(widths):
                    row = dict.fromkeys(self._reading(first, width), 1.0)
                    row |= dict.fromkeys(self._reading(other, width), -1.0)
                    rows.append(row)
                    values.append(0.0)
        return [LinearConstraint(self._matrix(rows), values, values)]

    def within(self, budgets: Mapping[str, float]) -> list[LinearConstraint] | None:
        """Every budget as rows, choices that exceed one alone being ruled out; None where even the least do."""
        found = []
        for name, limit in budgets.items():
            rows = self._moments() if name == MEMORY else [(self._coefficients(name), self.problem.base.get(name, 0))]
            for coefficients, base in rows:
                above, least = self._above_least(coefficients)
                room = limit + slack(self.problem, name, limit) / 2 - base - least
                if room < 0:
                    return None
                self.upper[:-1][above > room] = 0
                above[above > room] = 0
                if above.sum() > room:
                    factor = _SCALE / room
                    found.append(LinearConstraint(np.append(above, 0.0)[None] * factor, -np.inf, _SCALE))
        return found

    def below_peak(self) -> LinearConstraint:
        """That the last column, in units of ``most``, is no less than any moment's memory."""
        rows, bases = zip(*self._moments(), strict=True)
        matrix = np.hstack([np.array(rows) / self.most, -np.ones((len(rows), 1))])
        return LinearConstraint(_SCALE * matrix, -np.inf, -_SCALE / self.most * np.array(bases))

    def _coefficients(self, name: str) -> np.ndarray:
        """What each choice adds to the error or to a cost."""
        return np.array([c.error if name == ERROR else c.costs[name] for _, c in self.pairs], np.float64)

    def _above_least(self, coefficients: np.ndarray) -> tuple[np.ndarray, float]:
        """What each choice adds above the least of its layer, and the sum of the least."""
        least = np.minimum.reduceat(coefficients, self.starts)
        counts = [len(layer.choices) for layer in self.problem.layers]
        return coefficients - np.repeat(least, counts), float(least.sum())

    def _moments(self) -> list[tuple[np.ndarray, float]]:
        """Of each moment the bytes that each choice decides, and those that are there whatever is chosen."""
        found = []
        for moment in self.problem.moments:
            row = np.zeros(len(self.pairs))
            for live in moment:
                for column in self.of_layer.get(live.layer, ()):
                    row[column] += live.bytes(self.pairs[column][1].input_bits)
            found.append((row, float(sum(live.bytes(8) for live in moment if not live.layer))))
        return found

    def _reading(self, name: str, width: int) -> list[int]:
        return [column for column in self.of_layer[name] if self.pairs[column][1].input_bits == width]

    def _matrix(self, rows: list[dict[int, float]]) -> csr_array:
        data = [value for row in rows for value in row.values()]
        columns = [column for row in rows for column in row]
        starts = np.cumsum([0, *(len(row) for row in rows)])
        return csr_array((data, columns, starts), shape=(len(rows), self.columns))


# ---- the front ---------------------------------------------------------------------------------------------------


def pareto(
    problem: Problem, cost: str, budgets: Mapping[str, float] | None = None, points: int = 20
) -> tuple[Assignment, ...]:
    """The plans of least error for so many bounds on ``cost``, from the cheapest plan to that of least error.

    Each is optimal: no plan has less error at no more cost, nor less cost at no more error, within the other
    ``budgets``. Bounds lie evenly between the ends; where several give the same plan it is there once.
    Raises IntqError when no plan meets the budgets.
    """
    budgets = {name: limit for name, limit in (budgets or {}).items() if name != cost}
    _check(problem, [cost])
    if points < 2:
        raise IntqError(f"a front has 2 points or more, its ends, got {points}")
    cheapest = search(problem, budgets, minimize=cost).costs[cost]
    best = _cheapest_of(problem, budgets, cost, search(problem, budgets))
    found: dict[float, Assignment] = {}
    for limit in np.linspace(cheapest, best.costs[cost], points)[:-1].tolist():
        point = _cheapest_of(problem, budgets, cost, search(problem, {**budgets, cost: limit}))
        found.setdefault(point.costs[cost], point)
    found[best.costs[cost]] = best
    return tuple(sorted(found.values(), key=lambda point: point.costs[cost]))


def _cheapest_of(problem: Problem, budgets: Mapping[str, float], cost: str, best: Assignment) -> Assignment:
    """Of the plans with no more error the cheapest."""
    cheaper = search(problem, {**budgets, ERROR: best.error}, minimize=cost)
    if cheaper.costs[cost] >= best.costs[cost]:
        return best
    return replace(cheaper, minimized=ERROR, seconds=best.seconds + cheaper.seconds, gap=max(best.gap, cheaper.gap))
