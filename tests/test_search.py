"""The integer program: the published plans, brute force on small problems, budgets kept, what cannot be met is said."""

import itertools
import math
import subprocess
import sys
import time

import published
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import OptimizeResult

import intq.search
from intq.baselines import METHODS
from intq.cost import Geometry, Latencies
from intq.errors import IntqError
from intq.problem import Assignment, Choice, Layer, Live, Problem, assignment, fits, problem_of, uniform_plan, value_of
from intq.search import pareto, search

# ---- problems and their plans, one by one ------------------------------------------------------------------------


def parts(most: float, least: float = 0.0):
    """Numbers up to ``most``, to nine digits."""
    return st.integers(round(1e9 * least / most), 10**9).map(lambda n: n * 1e-9 * most)


@st.composite
def problems(draw, most_layers: int = 4) -> Problem:
    """Small problems: errors of either sign and any size, costs that more bits mostly raise, ties, memory."""
    names = [f"layer{place}" for place in range(draw(st.integers(1, most_layers)))]
    size = st.one_of(parts(1e3), parts(1e9), st.integers(0, 5).map(float))
    error = st.one_of(parts(1, -1), parts(1e-6), parts(1e6), st.integers(0, 3).map(float))
    layers = []
    for name in names:
        bits = draw(
            st.lists(
                st.tuples(st.sampled_from([2, 4, 8]), st.sampled_from([4, 8, 16])), min_size=1, max_size=4, unique=True
            )
        )
        layers.append(
            Layer(name, tuple(Choice(*b, draw(error), {"size": draw(size), "bops": draw(size)}) for b in bits))
        )
    ties = draw(st.lists(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True), max_size=2))
    live = st.builds(Live, st.integers(0, 1000), st.sampled_from(["", *names]), st.sampled_from([1, 1, 2, 4]))
    moments = draw(st.lists(st.lists(live, max_size=3), max_size=3))
    try:
        return Problem(tuple(layers), tuple(map(tuple, ties)), tuple(map(tuple, moments)))
    except IntqError as error:
        assume("no input bits in common" not in str(error))
        raise


def every_plan(problem: Problem) -> list[Assignment]:
    """All plans in which tied layers agree."""
    plans = []
    for choices in itertools.product(*(layer.choices for layer in problem.layers)):
        chosen = dict(zip((layer.name for layer in problem.layers), choices, strict=True))
        if all(len({chosen[name].input_bits for name in tie}) == 1 for tie in problem.ties):
            plans.append(assignment(problem, chosen))
    return plans


def budgets_for(problem: Problem, plans: list[Assignment], data) -> dict[str, float]:
    """A budget of some costs: what some plan costs, or between what two of them do."""
    names = data.draw(st.lists(st.sampled_from(["error", *problem.costs]), unique=True, max_size=3))
    budgets = {}
    for name in names:
        a, b = (value_of(data.draw(st.sampled_from(plans)), name) for _ in range(2))
        budgets[name] = data.draw(st.sampled_from([a, a, (a + b) / 2]))
    return budgets


def agree(problem: Problem, a: float, b: float, name: str) -> bool:
    values = [c.error if name == "error" else c.costs.get(name, 0) for layer in problem.layers for c in layer.choices]
    return math.isclose(a, b, rel_tol=2e-9, abs_tol=2e-9 * sum(map(abs, values)))


@settings(max_examples=300)
@given(problems(), st.data())
def test_the_optimum_is_that_of_brute_force(problem, data):
    plans = every_plan(problem)
    budgets = budgets_for(problem, plans, data)
    minimize = data.draw(st.sampled_from(["error", *problem.costs]))
    possible = [plan for plan in plans if fits(problem, plan, budgets)]
    if not possible:
        with pytest.raises(IntqError, match="no plan meets the budgets"):
            search(problem, budgets, minimize=minimize)
        return
    found = search(problem, budgets, minimize=minimize)
    assert fits(problem, found, budgets) and found.gap == 0
    assert found == assignment(problem, found.choices, **how(found))
    assert agree(problem, found.objective, min(value_of(plan, minimize) for plan in possible), minimize)


def how(found: Assignment) -> dict:
    return {name: getattr(found, name) for name in ("method", "minimized", "gap", "seconds", "seed")}


@settings(max_examples=60)
@given(problems(), st.data())
def test_no_other_method_is_better(problem, data):
    plans = every_plan(problem)
    budgets = budgets_for(problem, plans, data)
    assume(any(fits(problem, plan, budgets) for plan in plans))
    best = search(problem, budgets)
    for method in (METHODS[name] for name in ("uniform", "greedy", "random")):
        try:
            found = method(problem, budgets, seed=1)
        except IntqError as error:  # a method may find none where there is one, and says so
            assert "--method ilp" in str(error)
            continue
        assert fits(problem, found, budgets)
        assert found.error >= best.error or agree(problem, found.error, best.error, "error")


@settings(max_examples=60)
@given(problems(), st.data())
def test_the_front_is_that_of_brute_force(problem, data):
    plans = every_plan(problem)
    cost = data.draw(st.sampled_from(list(problem.costs)))
    front = pareto(problem, cost, points=6)
    for point in front:
        better = [p for p in plans if p.error <= point.error and p.costs[cost] <= point.costs[cost]]
        for plan in better:
            assert agree(problem, plan.error, point.error, "error")
            assert agree(problem, plan.costs[cost], point.costs[cost], cost)
    assert agree(problem, front[0].costs[cost], min(p.costs[cost] for p in plans), cost)
    assert agree(problem, front[-1].error, min(p.error for p in plans), "error")
    assert [p.costs[cost] for p in front] == sorted({p.costs[cost] for p in front})


# ---- the published plans -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("network", "plan"), published.PLANS)
def test_finds_each_published_plan_or_a_better_one(network, plan):
    """All but one are HAWQ-V3's own; of ResNet-50's smallest there is a plan with 10 % less error within the limit."""
    problem = published.problem(network)
    name, limit = published.budget(problem, plan)
    theirs = published.published_plan(problem, network, plan)
    assert fits(problem, theirs, {name: limit})  # what their budgets mean
    ours = search(problem, {name: limit})
    assert fits(problem, ours, {name: limit}) and ours.gap == 0
    at_no_more_cost = search(problem, {name: theirs.costs[name]})
    assert at_no_more_cost.costs[name] <= theirs.costs[name] * (1 + 1e-9)
    assert at_no_more_cost.error <= theirs.error * (1 + 1e-9)
    if (network, plan) == ("resnet50", "modelsize_0.25"):
        assert ours.error == pytest.approx(0.074949, abs=1e-6) and theirs.error == pytest.approx(0.083110, abs=1e-6)
    else:
        assert {n: c.bits for n, c in ours.choices.items()} == {n: c.bits for n, c in theirs.choices.items()}
    assert ours.seconds < 5  # milliseconds, on a machine that has nothing else to do


def test_budgets_hold_together():
    problem = published.problem("resnet18")
    whole = uniform_plan(problem).costs
    budgets = {"size": 0.7 * whole["size"], "bops": 0.6 * whole["bops"], "latency": 0.8 * whole["latency"]}
    found = search(problem, budgets)
    assert fits(problem, found, budgets)
    for name in budgets:  # each alone allows no more error
        assert search(problem, {name: budgets[name]}).error <= found.error
    smallest = search(problem, {"error": found.error}, minimize="size")
    assert smallest.costs["size"] <= found.costs["size"] and smallest.error <= found.error * (1 + 1e-9)
    assert smallest.objective == smallest.costs["size"]


def test_a_large_network_takes_seconds_at_most():
    """300 layers of 9 choices under four budgets, larger than anything to be searched here."""
    layers = {f"layer{i}": Geometry(10**6 * (1 + i % 7), ((64 + i, 64, 3, 3),)) for i in range(300)}
    weights = {name: {b: (1 + i % 11) * 4.0**-b for b in (2, 4, 8)} for i, name in enumerate(layers)}
    inputs = {name: {b: (1 + i % 5) * 4.0**-b for b in (4, 8, 16)} for i, name in enumerate(layers)}
    moments = [[Live(1000 + i, f"layer{i}"), Live(2000, f"layer{i + 1}")] for i in range(299)]
    ties = [(f"layer{i}", f"layer{i + 1}") for i in range(0, 300, 6)]
    problem = problem_of(layers, weights, inputs, ties=ties, moments=moments)
    whole = uniform_plan(problem).costs
    start = time.perf_counter()
    found = search(problem, {"size": 0.6 * whole["size"], "bops": 0.4 * whole["bops"], "memory": 1.6 * whole["memory"]})
    assert found.gap == 0 and time.perf_counter() - start < 60


# ---- what cannot be met, and what is malformed -------------------------------------------------------------------


def simple(**more) -> Problem:
    """Two layers whose bytes and seconds pull apart."""
    a = Layer(
        "a", (Choice(4, 8, 1.0, {"size": 4e6, "latency": 3e-3}), Choice(8, 8, 0.1, {"size": 8e6, "latency": 1e-3}))
    )
    b = Layer(
        "b", (Choice(4, 4, 2.0, {"size": 2e6, "latency": 1e-3}), Choice(8, 8, 0.2, {"size": 4e6, "latency": 2e-3}))
    )
    return Problem((a, b), **more)


def test_says_the_smallest_reachable():
    with pytest.raises(IntqError) as error:
        search(simple(), {"size": 5e6})
    assert "size at most 5 MB, where 6 MB is the smallest reachable" in str(error.value)
    with pytest.raises(IntqError) as error:
        search(simple(), {"size": 7e6, "latency": 2.5e-3})
    assert "where 6 MB is the smallest reachable, or 10 MB with the other budgets met" in str(error.value)
    assert "latency at most 2.5 ms, where 2 ms is the smallest reachable, or 4 ms with" in str(error.value)
    with pytest.raises(
        IntqError, match="there is no 'bops' to minimise or to limit here; there is error, size, latency"
    ):
        search(simple(), {"bops": 1.0})


def test_a_solver_that_ran_out_of_time(monkeypatch):
    whole = intq.search.milp

    def stopped(*args, **kwargs):
        found = whole(*args, **kwargs)
        found.mip_dual_bound = 0.5 * found.fun
        return found

    monkeypatch.setattr("intq.search.milp", stopped)
    found = search(simple(), {"size": 7e6})
    # 2.7 above the least of each layer, 0.3 together; half of that is what the solver would still have to rule out
    assert found.error == pytest.approx(3.0) and found.gap == pytest.approx(0.45)
    monkeypatch.setattr("intq.search.milp", lambda *_, **__: OptimizeResult(x=None, status=1, message="Time limit."))
    with pytest.raises(IntqError, match=r"the solver found no plan in 600 s \(Time limit\.\); give it longer"):
        search(simple(), {"size": 7e6})


def test_what_no_choice_changes_counts():
    assert search(simple(base={"latency": 1e-3}), {}).costs["latency"] == pytest.approx(4e-3)
    with pytest.raises(IntqError, match="3 ms is the smallest reachable"):
        search(simple(base={"latency": 1e-3}), {"latency": 2.5e-3})


def test_memory_is_the_peak_of_all_moments():
    wide = (Choice(8, 8, 1.0), Choice(8, 16, 0.1))
    problem = Problem(
        (Layer("a", wide), Layer("b", wide)),
        moments=((Live(100, "a"), Live(10)), (Live(100, "a"), Live(50, "b")), (Live(5, least=4),)),
    )
    assert search(problem, {}).costs == {"memory": 300}
    assert search(problem, {"memory": 250}).costs == {"memory": 250}
    found = search(problem, {"memory": 209})
    assert found.costs == {"memory": 200} and found.choices["b"].input_bits == 16
    assert search(problem, {}, minimize="memory").costs == {"memory": 150}
    with pytest.raises(IntqError, match="memory at most 1 B, where 150 B is the smallest reachable"):
        search(problem, {"memory": 1})


def test_ties_join_and_take_common_widths():
    def layer(name, *widths):
        return Layer(name, tuple(Choice(8, width, 1 / width) for width in widths))

    problem = Problem(
        (layer("a", 4, 8), layer("b", 8, 16), layer("c", 4, 8, 16), layer("d", 4)), (("a", "b"), ("c", "b"))
    )
    assert [(group.layers, group.widths) for group in problem.groups] == [(("a", "b", "c"), (8,)), (("d",), (4,))]
    assert [choice.input_bits for choice in search(problem, {}).choices.values()] == [8, 8, 8, 4]


def test_malformed_problems():
    one = Layer("a", (Choice(8, 8, 0.0, {"size": 1.0}),))

    def error(match, *problem):
        with pytest.raises(IntqError, match=match):
            Problem(*problem)

    error("layers of different names", ())
    error("layers of different names", (one, one))
    error("a: its choices must be one or more", (Layer("a", ()),))
    error("of different bits", (Layer("a", one.choices * 2),))
    error("they must agree", (one, Layer("b", (Choice(8, 8, 0.0, {"bops": 1.0}),))))
    error("the error of W8A8 is nan", (Layer("a", (Choice(8, 8, math.nan),)),))
    error("the size of W8A8 is -1", (Layer("a", (Choice(8, 8, 0.0, {"size": -1.0}),)),))
    error("a tie names 'x'", (one,), (("a", "x"),))
    error("read by 'x'", (one,), (), ((Live(1, "x"),),))
    error("has a latency, its layers have none", (one,), (), (), {"latency": 1.0})
    error("no input bits in common", (one, Layer("b", (Choice(8, 4, 0.0, {"size": 1.0}),))), (("a", "b"),))
    with pytest.raises(IntqError, match="2 points or more"):
        pareto(simple(), "size", points=1)


def test_the_solver_prints_nothing():
    """What C prints while it runs is lost, what is printed before and after is not."""
    code = (
        "import ctypes\n"
        "from intq.search import _quiet\n"
        "puts = ctypes.CDLL(None).puts\n"
        "print('one', end=' ')\nputs(b'two')\n"
        "with _quiet():\n    puts(b'three')\n"
        "puts(b'four')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["one", "two", "four"]


# ---- building a problem ------------------------------------------------------------------------------------------


def test_a_problem_of_measurements():
    layers = {"conv": Geometry(1000, ((4, 3, 3, 3),)), "fc": Geometry(40, ((10, 4),))}
    weights = {"conv": {4: 1.0, 8: 0.25}, "fc": {8: 0.0}}
    problem = problem_of(layers, weights, {"conv": {8: 0.5}, "fc": {4: 2.0, 8: 0.125}})
    assert [choice.bits for choice in problem.by_name["conv"].choices] == [(4, 8), (8, 8)]
    assert problem.by_name["conv"].choices[0].error == 1.5
    assert problem.by_name["conv"].choices[0].costs == {"size": 54 + 4 * 13, "bops": 32000}
    assert problem_of(layers, weights).by_name["fc"].choices[0].bits == (8, 8)
    table = Latencies("net", "here", 1, {"conv": {(4, 8): 2.0, (8, 8): 1.0}, "fc": {(8, 8): 0.5}}, other=0.25)
    assert search(problem_of(layers, weights, latencies=table), {}).costs["latency"] == 1.75
    with pytest.raises(IntqError, match="the error of the weights of 'fc' is not known"):
        problem_of(layers, {"conv": {8: 0.0}})
    with pytest.raises(IntqError, match="the error of the inputs of 'conv' is not known"):
        problem_of(layers, weights, {"fc": {8: 0.0}})
    with pytest.raises(IntqError, match="latency of 'conv' at W8A4 was not measured, only at W4A8, W8A8"):
        problem_of(layers, {"conv": {8: 0.0}, "fc": {8: 0.0}}, {n: {4: 0.0} for n in layers}, latencies=table)
