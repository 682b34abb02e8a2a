"""Top-k with ties, agreement, SQNR, and evaluation over a data set."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from intq.errors import IntqError
from intq.vision.data import open_dataset
from intq.vision.evaluate import evaluate
from intq.vision.metrics import agreement, ranks, sqnr_db, top_k
from intq.vision.preprocess import Preprocess


@given(
    scores=arrays(np.int32, (4, 7), elements=st.integers(-3, 3)), labels=arrays(np.int64, 4, elements=st.integers(0, 6))
)
def test_ranks_are_positions_in_a_stable_sort(scores, labels):
    order = np.argsort(-scores, axis=1, kind="stable")
    expected = [list(row).index(label) for row, label in zip(order, labels, strict=True)]
    assert ranks(scores, labels).tolist() == expected
    assert top_k(scores, labels, 1) == (np.argmax(scores, 1) == labels).mean()
    assert top_k(scores, labels, 7) == 1


def test_extreme_integers_do_not_wrap():
    scores = np.array([[-(2**31), 2**31 - 1, 0]], np.int32)
    assert [ranks(scores, np.array([label]))[0] for label in range(3)] == [2, 0, 1]


def test_agreement_and_sqnr():
    reference = np.array([[1.0, 2.0], [3.0, 1.0]])
    assert agreement(reference * 2, reference) == 1 and agreement(-reference, reference) == 0
    assert sqnr_db(reference, reference) == np.inf
    np.testing.assert_allclose(sqnr_db(reference * 1.1, reference), 20)
    assert sqnr_db(reference, reference * 0) == -np.inf
    for function in (agreement, sqnr_db):
        with pytest.raises(IntqError, match="cannot compare outputs"):
            function(reference, reference[:1])


@pytest.mark.parametrize("labels", [[0, 2], [-1, 0], [0]])
def test_labels_must_fit(labels):
    with pytest.raises(IntqError):
        ranks(np.zeros((2, 2)), np.array(labels))


def test_evaluate(tmp_path):
    for index in range(7):
        Image.new("L", (4, 4), index).save(tmp_path / f"a_{index}_{index}.png")
    dataset = open_dataset(tmp_path, Preprocess(None, None, "bilinear", (0.5,), (0.5,)))
    progress = []

    def predict(pixels: np.ndarray) -> np.ndarray:  # right for even pixels; otherwise the label comes third
        scores = np.zeros((len(pixels), 8), np.int32)
        for row, value in zip(scores, pixels[:, 0, 0, 0], strict=True):
            row[value] = 5
            if value % 2:
                row[[7, 0]] = 6
        return scores

    result = evaluate(predict, dataset, 3, lambda done, total: progress.append((done, total)))
    assert result == {"task": "image-classification", "examples": 7, "metrics": {"top1": 4 / 7, "top5": 1.0}}
    assert progress == [(3, 7), (6, 7), (7, 7)]
    few = open_dataset(tmp_path / "a_0_0.png", dataset.preprocess).source
    few = replace(dataset, source=few, labels=np.array([2]), indices=np.array([0]))
    assert evaluate(lambda _pixels: np.eye(5)[[2]], few)["metrics"] == {"top1": 1.0}  # five classes: no top 5
    (tmp_path / "other.png").write_bytes((tmp_path / "a_0_0.png").read_bytes())
    with pytest.raises(IntqError, match="has no labels to compare with"):
        evaluate(predict, open_dataset(tmp_path, dataset.preprocess))
