"""How right transcripts are: word and character error rates, by jiwer. Shares of 1, and above it where much is added.

    WER = (substitutions + deletions + insertions) / words of the references      CER the same over characters

Both count over all references at once: long ones weigh more, and an empty one still counts what was made up for it.
A phoneme error rate is the WER of phonemes with spaces between them.
"""

from __future__ import annotations

from collections.abc import Sequence

from intq.errors import IntqError
from intq.speech.labels import normalized


def wer(found: Sequence[str], truth: Sequence[str]) -> float:
    """The word error rate of transcripts, each beside its reference, words being what lies between spaces."""
    import jiwer

    _check(found, truth)
    return float(jiwer.process_words(list(truth), list(found)).wer)


def cer(found: Sequence[str], truth: Sequence[str]) -> float:
    """The character error rate, spaces being characters."""
    import jiwer

    _check(found, truth)
    return float(jiwer.process_characters(list(truth), list(found)).cer)


def error_rates(found: Sequence[str], truth: Sequence[str]) -> dict[str, float]:
    """{"wer", "cer"} of texts after `normalized`: case and punctuation count for nothing, apostrophes do."""
    found, truth = [normalized(text) for text in found], [normalized(text) for text in truth]
    return {"wer": wer(found, truth), "cer": cer(found, truth)}


def _check(found: Sequence[str], truth: Sequence[str]) -> None:
    if len(found) != len(truth):
        raise IntqError(f"there are {len(found)} transcripts and {len(truth)} references: expected one for each")
    if not any(text.strip() for text in truth):
        raise IntqError("no reference has a word in it: there is nothing to compare with")
