"""What `intq bench` measures of texts; tests/test_cli.py has it on images."""

import pytest
from graphs import random_graph
from text_graphs import LONGEST, random_text_graph

import intq
from intq.bench import bench
from intq.errors import IntqError


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts") / "artifact"
    random_text_graph(seed=0).save(folder)
    intq.compile(folder)
    return folder


def test_texts_have_as_many_tokens_as_asked_for(texts):
    value = bench(texts, threads=1, batch=2, sequence=7, seconds=0.01)
    assert (value["batch"], value["sequence"]) == (2, 7)
    products = {layer["op"] for layer in value["layers"] if layer["gops"]}
    assert products == {"linear", "attention"}
    attention = next(layer for layer in value["layers"] if layer["op"] == "attention")
    assert attention["k"] == 2 * 7
    assert attention["peak_share"] == pytest.approx(attention["gops"] / value["peak_gops"])


def test_texts_are_as_long_as_they_can_be_when_that_is_short(texts):
    assert bench(texts, threads=1, seconds=0.01)["sequence"] == LONGEST


def test_texts_that_are_too_long_and_images_with_tokens_are_errors(texts, tmp_path):
    with pytest.raises(IntqError, match=f"at most {LONGEST} tokens here, got 99"):
        bench(texts, sequence=99)
    random_graph(seed=0).save(tmp_path / "images")
    with pytest.raises(IntqError, match="fixed shape: leave out --sequence"):
        bench(tmp_path / "images", sequence=7)
