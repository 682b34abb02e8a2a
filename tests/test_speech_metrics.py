"""Error rates against a dynamic programme of their definition."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intq.errors import IntqError
from intq.speech.metrics import cer, error_rates, wer


def distance(found, truth):
    """The fewest substitutions, deletions and insertions (Levenshtein)."""
    row = list(range(len(truth) + 1))
    for i, a in enumerate(found, 1):
        last, row[0] = row[0], i
        for j, b in enumerate(truth, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (a != b))
    return row[-1]


words = st.lists(st.sampled_from(["a", "b", "cd"]), max_size=6).map(" ".join)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=4))
def test_the_rates_are_the_definition(pairs):
    found, truth = zip(*pairs, strict=True)
    count = sum(len(text.split()) for text in truth)
    if not count:
        with pytest.raises(IntqError, match="nothing to compare with"):
            wer(found, truth)
        return
    errors = sum(distance(a.split(), b.split()) for a, b in pairs)
    assert wer(found, truth) == errors / count
    assert cer(found, truth) == sum(distance(a, b) for a, b in pairs) / sum(map(len, truth))


def test_an_empty_reference_counts_what_was_made_up_for_it():
    assert wer(["a b", "c"], ["a b", ""]) == 0.5
    assert wer([""], ["a b"]) == 1.0


def test_case_and_punctuation_do_not_count_but_apostrophes_do():
    assert error_rates(["it isnt, so."], ["IT ISN\u2019T SO"]) == {
        "wer": 1 / 3,
        "cer": 1 / 11,
    }


def test_phonemes_are_words():
    assert wer(["HH AH L OW"], ["HH EH L OW"]) == 0.25


def test_a_transcript_is_missing():
    with pytest.raises(IntqError, match="1 transcripts and 2 references"):
        wer(["a"], ["a", "b"])
