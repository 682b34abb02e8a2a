"""The methods that the search is compared with: within the budgets, reproducible, counting what they try."""

import published
import pytest

from intq.baselines import METHODS
from intq.errors import IntqError
from intq.problem import Choice, Layer, Problem, fits, uniform_plan
from intq.search import search

BLACK_BOXES = ("evolution", "tpe")


@pytest.fixture(scope="module")
def problem() -> Problem:
    return published.problem("resnet18")


@pytest.fixture(scope="module")
def budgets(problem) -> dict[str, float]:
    whole = uniform_plan(problem).costs
    return {"bops": 0.5 * whole["bops"], "size": 0.9 * whole["size"]}


def loss(choices) -> float:
    """Something to evaluate that Omega does not know: every third layer wants 8 bits."""
    return sum(1.0 for place, choice in enumerate(choices.values()) if place % 3 == 0 and choice.weight_bits < 8)


@pytest.mark.parametrize("method", METHODS)
def test_within_the_budgets_and_the_same_again(method, problem, budgets):
    best = search(problem, budgets)
    for evaluate in (None, loss):
        found, again = (METHODS[method](problem, budgets, seed=3, trials=20, evaluate=evaluate) for _ in range(2))
        assert fits(problem, found, budgets)
        assert found.choices == again.choices
        assert found.method == method and found.error >= best.error - 1e-12 and found.seconds > 0
        assert (found.score is None) == (evaluate is None)
        assert found.score is None or found.score == loss(found.choices)
        assert (found.evaluations > 0) == (evaluate is not None)
        ties = [{found.choices[name].input_bits for name in tie} for tie in problem.ties]
        assert all(len(widths) == 1 for widths in ties)


def test_evaluations_are_counted_and_never_repeated(problem, budgets):
    for method in ("random", *BLACK_BOXES):
        tried = []

        def evaluate(choices, tried=tried) -> float:
            tried.append(tuple(choice.bits for choice in choices.values()))
            return loss(choices)

        found = METHODS[method](problem, budgets, trials=25, evaluate=evaluate)
        assert found.evaluations == len(tried) == len(set(tried)) <= 25
        assert found.score == min(loss_of(bits) for bits in tried)


def loss_of(bits) -> float:
    return sum(1.0 for place, (weight_bits, _) in enumerate(bits) if place % 3 == 0 and weight_bits < 8)


def test_seeds_draw_differently(problem, budgets):
    for method in ("random", *BLACK_BOXES):
        plans = {
            tuple(c.bits for c in METHODS[method](problem, budgets, seed=seed, trials=8).choices.values())
            for seed in range(3)
        }
        assert len(plans) > 1


@pytest.mark.parametrize("method", BLACK_BOXES)
def test_black_boxes_learn(method, problem, budgets):
    """More trials of what they choose beat as many draws at random."""
    drawn = METHODS["random"](problem, budgets, seed=0, trials=150, evaluate=loss)
    found = METHODS[method](problem, budgets, seed=0, trials=150, evaluate=loss)
    assert found.score <= drawn.score


def test_random_draws_use_their_budget(problem, budgets):
    """A draw ends just within the budgets: one step less would exceed one."""
    found = METHODS["random"](problem, budgets, seed=5)
    assert found.costs["bops"] > 0.8 * budgets["bops"] or found.costs["size"] > 0.8 * budgets["size"]


def test_uniform_takes_the_next_wider_bits_a_layer_may_have():
    pinned = Layer("first", (Choice(8, 8, 0.0, {"size": 10.0}),))
    free = Layer("second", tuple(Choice(b, b, 8.0 - b, {"size": 10.0 * b / 8}) for b in (4, 8)))
    problem = Problem((pinned, free))
    found = METHODS["uniform"](problem, {"size": 16.0})
    assert [choice.bits for choice in found.choices.values()] == [(8, 8), (4, 4)]
    assert uniform_plan(problem, 2, 2).choices == found.choices
    assert uniform_plan(problem, 16, 16).choices == uniform_plan(problem).choices


@pytest.mark.parametrize("method", METHODS)
def test_budgets_that_nothing_meets(method, problem):
    with pytest.raises(
        IntqError, match=r"no plan meets the budgets: size at most 1 MB, where 5\.57876 MB is the smallest"
    ):
        METHODS[method](problem, {"size": 1e6}, trials=5)


def test_where_wider_bits_are_cheaper_narrowing_says_so():
    """A latency may grow as bits shrink; the integer program does not mind."""
    layer = Layer("a", (Choice(4, 4, 1.0, {"latency": 2.0}), Choice(8, 8, 2.0, {"latency": 1.0})))
    other = Layer("b", (Choice(2, 8, 0.0, {"latency": 1.0}), Choice(4, 8, 0.0, {"latency": 3.0})))
    problem = Problem((layer, other))
    found = search(problem, {"latency": 2.0})
    assert found.choices["a"].bits == (8, 8) and found.choices["b"].bits == (2, 8)
    assert METHODS["greedy"](problem, {"latency": 2.0}).choices == found.choices
    narrow = Problem(
        (
            Layer(
                "a",
                (
                    Choice(4, 8, 0.0, {"latency": 1.0}),
                    Choice(8, 8, 0.0, {"latency": 9.0}),
                    Choice(
                        2,
                        8,
                        0.0,
                        {
                            "latency": 0.5,
                        },
                    ),
                ),
            ),
            Layer("b", (Choice(4, 8, 0.0, {"latency": 5.0}), Choice(2, 8, 0.0, {"latency": 7.0}))),
        )
    )
    assert METHODS["random"](narrow, {"latency": 5.5}).costs["latency"] == 5.5
    stuck = Problem(
        (
            Layer(
                "a",
                (
                    Choice(8, 8, 0.0, {"latency": 2.0}),
                    Choice(4, 8, 0.0, {"latency": 3.0}),
                    Choice(2, 8, 0.0, {"latency": 1.0}),
                ),
            ),
        )
    )
    with pytest.raises(IntqError, match=r"narrowing layer by layer found no plan .*latency remains.*--method ilp"):
        METHODS["greedy"](stuck, {"latency": 1.0})
