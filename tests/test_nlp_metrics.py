"""The metrics against their formulas, and where these have no value."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intq.nlp.metrics import accuracy, cosines, entities, entity_f1, f1, macro_f1, matthews, pearson, spearman

TRUTH = np.array([1, 1, 1, 0, 0, 0, 0, 1])
FOUND = np.array([1, 0, 1, 0, 1, 0, 0, 1])  # 3 right ones, 1 wrong one, 1 missed, 3 right zeros


def test_classes_against_the_formulas():
    assert accuracy(FOUND, TRUTH) == 6 / 8
    assert f1(FOUND, TRUTH) == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert macro_f1(FOUND, TRUTH) == pytest.approx((3 / 4 + 3 / 4) / 2)
    assert matthews(FOUND, TRUTH) == pytest.approx((3 * 3 - 1 * 1) / (4 * 4 * 4 * 4) ** 0.5)


def test_scores_against_the_formulas():
    found, truth = np.array([3, -1, 4, 10]), np.array([1.0, 0.5, 2.0, 2.5])
    assert pearson(found, truth) == pytest.approx(np.corrcoef(found, truth)[0, 1])
    assert spearman(found, truth) == pytest.approx(1.0)
    assert spearman(-found, truth) == pytest.approx(-1.0)


def test_where_a_metric_has_no_value_it_is_zero():
    zeros, ones = np.zeros(4, int), np.ones(4, int)
    assert matthews(zeros, np.array([0, 1, 0, 1])) == 0 and f1(zeros, ones) == 0 and f1(zeros, zeros) == 0
    for correlation in (pearson, spearman):
        assert correlation(ones, np.arange(4.0)) == correlation(np.array([3]), np.array([1.0])) == 0
    assert entity_f1([["O"]], [["O"]]) == 0
    assert cosines(np.zeros((1, 3)), np.ones((1, 3))).tolist() == [0]


def test_cosines_do_not_see_the_scale():
    a, b = np.random.default_rng(0).integers(-99, 99, (2, 5, 8))
    each = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]
    assert cosines(a, b) == pytest.approx(each)
    assert cosines(7 * a, b) == pytest.approx(each)


@pytest.mark.parametrize(
    ("tags", "spelled"),
    [
        ("O B-PER I-PER O", {("PER", 1, 3)}),
        ("B-PER B-PER", {("PER", 0, 1), ("PER", 1, 2)}),
        ("B-PER I-LOC I-LOC", {("PER", 0, 1), ("LOC", 1, 3)}),
        ("I-LOC O I-LOC", {("LOC", 0, 1), ("LOC", 2, 3)}),
        ("O O", set()),
        ("B-LOC I-LOC", {("LOC", 0, 2)}),
    ],
)
def test_entities_as_conll_reads_them(tags, spelled):
    assert entities(tags.split()) == spelled


def test_entity_f1_counts_whole_entities():
    truth = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC"]]
    found = [["B-PER", "O", "O", "B-LOC"], ["B-PER"]]  # of three, one is right, and three are found
    assert entity_f1(found, truth) == pytest.approx(1 / 3)
    assert entity_f1(truth, truth) == 1


@given(st.lists(st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B"]), max_size=12))
def test_entities_lie_in_the_sentence_and_do_not_overlap(tags):
    taken = [position for _, begin, end in entities(tags) for position in range(begin, end)]
    assert len(taken) == len(set(taken)) == sum(tag != "O" for tag in tags)
    assert all(tags[position] != "O" for position in taken)
