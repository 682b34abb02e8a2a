"""Texts as ids: what transformers gives, batches of similar length, and texts that the network cannot take."""

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_models import tiny_tokenizer
from texts import A, B, tiny_reader

from intq.errors import IntqError
from intq.nlp.tokens import batches, load_tokenizer, padded, save_tokenizer


def where(row):
    return f"text {row}"


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("texts", [[A, B], [(A, B), (B, A)], [A.split(), B.split()]], ids=["one", "pair", "words"])
def test_ids_are_those_of_the_tokenizer(family, texts):
    reader = tiny_reader(family)
    pairs = isinstance(texts[0], tuple)
    first, second = zip(*texts, strict=True) if pairs else (texts, None)
    split = isinstance(texts[0], list)
    want = reader.tokenizer(list(first), list(second) if pairs else None, is_split_into_words=split)["input_ids"]
    found = reader.ids(texts, where)
    assert [row.tolist() for row in found] == want and {row.dtype for row in found} == {np.dtype("int32")}


def test_a_pair_has_a_separator_more_by_which_segments_are_told():
    reader = tiny_reader()
    (single,), (pair,) = reader.ids([A], where), reader.ids([(A, B)], where)
    separator = reader.tokenizer.sep_token_id
    assert (single == separator).sum() == 1 and (pair == separator).sum() == 2


def test_a_special_tokens_name_in_a_text_is_text():
    reader = tiny_reader()
    (row,) = reader.ids(["good [SEP] [PAD] bad"], where)
    assert (row == reader.tokenizer.sep_token_id).sum() == 1 and not (row == reader.padding).any()


def test_a_text_that_is_too_long_is_an_error_that_says_by_how_much_or_is_cut():
    with pytest.raises(IntqError, match=r"text 1: is 11 tokens long, 3 more than the 8 .*--truncate"):
        tiny_reader(longest=8).ids(["good", " ".join(["film"] * 9)], where)
    (row,) = tiny_reader(longest=8, truncate=True).ids([" ".join(["film"] * 9)], where)
    assert len(row) == 8 and row[-1] == tiny_reader().tokenizer.sep_token_id
    (row,) = tiny_reader(longest=8, truncate=True).ids([("good", " ".join(["film"] * 9))], where)
    assert len(row) == 8 and (row == tiny_reader().tokenizer.sep_token_id).sum() == 2


def test_ids_that_the_network_does_not_know_are_an_error():
    with pytest.raises(IntqError, match=r"text 0: .* the id 55 \('word55'\), but the network knows 50 ids"):
        tiny_reader(vocabulary=50).ids(["word55"], where)


def test_the_padding_id_in_a_text_is_an_error():
    with pytest.raises(IntqError, match="padding"):
        tiny_reader(padding=tiny_reader().tokenizer.convert_tokens_to_ids("film")).ids(["a film"], where)


def test_words_know_their_first_token():
    reader = tiny_reader()
    ids, words = reader.words(["The film, very good", "bad"], where)
    assert [word.text for word in words[0]] == ["The", "film", ",", "very", "good"]
    said = reader.tokenizer.convert_ids_to_tokens(ids[0].tolist())
    assert [said[word.token] for word in words[0]] == ["the", "film", ",", "very", "good"]
    _, (own,) = reader.words([["The", "film"]], where)
    assert [(word.index, word.text) for word in own] == [(0, "The"), (1, "film")]
    _, (cut,) = tiny_reader(longest=4, truncate=True).words([A.split()], where)
    assert [word.index for word in cut] == [0, 1]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=40), st.integers(1, 9))
def test_batches_hold_every_row_once_padded_as_little_as_can_be(lengths, size):
    rows = [np.full(length, 7 + i, np.int32) for i, length in enumerate(lengths)]
    seen, widths = [], []
    for chosen, ids in batches(rows, size, 1):
        assert ids.dtype == np.int32 and len(chosen) == len(ids) <= size
        for index, row in zip(chosen, ids, strict=True):
            assert np.array_equal(row[: lengths[index]], rows[index]) and (row[lengths[index] :] == 1).all()
            seen.append(index)
        assert ids.shape[1] == max(lengths[i] for i in chosen)
        widths.append(ids.shape[1])
    assert sorted(seen) == list(range(len(rows))) and widths == sorted(widths)


def test_padded_fills_up_at_the_end():
    assert padded([np.array([5]), np.array([6, 7])], 1).tolist() == [[5, 1], [6, 7]]


def test_the_tokenizer_travels_in_a_folder(tmp_path):
    tokenizer = tiny_tokenizer("roberta")
    save_tokenizer(tokenizer, tmp_path / "net")
    shutil.move(tmp_path / "net", tmp_path / "copy")
    loaded = load_tokenizer(tmp_path / "copy")
    assert loaded([A], [B])["input_ids"] == tokenizer([A], [B])["input_ids"]


def test_a_tokenizer_that_is_missing_or_damaged_is_an_error(tmp_path):
    with pytest.raises(IntqError, match=r"no tokenizer .*intq.compile\(folder\)\(ids\)"):
        load_tokenizer(tmp_path)
    save_tokenizer(tiny_tokenizer("bert"), tmp_path)
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(IntqError, match="tokenizer does not load"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(IntqError, match="tokenizer does not load"):
        load_tokenizer(tmp_path)
