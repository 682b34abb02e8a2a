"""What the made corpus says: phrases of Jane Austen's novels in common words, and the prompts of a telephone exchange.

English spelling tells little of how a rare word sounds. Phrases of words that occur often let a small network without
a language model learn to spell what it hears, as LibriSpeech's books do for one that hears a thousand hours.
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from intq.errors import IntqError
from intq.speech.labels import normalized

SHORTEST, LONGEST = 4, 14  # words of a phrase
COMMON = 50  # how often a word occurs in the novels to be one of the common words
SPOKEN = {"mr": "mister", "mrs": "missus", "dr": "doctor", "esq": "esquire"}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
END = re.compile(r'[.;:!?"()]|--')  # of a phrase; a comma is inside one


def phrases(novels: Path) -> list[str]:
    """The different phrases of 4 to 14 common words, normalised as transcripts are, in alphabetical order.

    novels: the file of the package. A common word occurs at least 50 times in the novels: there are some 1,300.
    """
    found = [_words(piece) for text in _novels(novels) for piece in END.split(_plain(text))]
    count = Counter(word for words in found for word in words)
    common = {word for word, times in count.items() if times >= COMMON}
    return sorted(
        {" ".join(words) for words in found if SHORTEST <= len(words) <= LONGEST and common.issuperset(words)}
    )


def prompts(transcripts: Path) -> dict[str, str]:
    """{name of a recorded prompt: its transcript} of those that are words.

    Left out: tones, lone letters and abbreviations such as PIN, numbers of several digits. "Press 1" says "press one".
    """
    with gzip.open(transcripts, "rt", encoding="utf-8") as file:
        lines = [line.strip().partition(":") for line in file]
    return {name: words for name, _, text in lines if (words := _prompt(name, text))}


def _prompt(name: str, text: str) -> str:
    if name.startswith(";") or "/" in name or re.search(r"[<>\[\]#*@]|\d\w|\b[A-Z]{2,}\b|\b[B-HJ-Z]\b", text):
        return ""
    return normalized(re.sub(r"\d", lambda digit: DIGITS[int(digit.group())], text))


def _plain(text: str) -> str:
    """Without the marks of italics, and with the titles as they are spoken: their full stop ends no phrase."""
    text = text.replace("_", "").replace("*", "")
    return re.sub(r"\b(Mr|Mrs|Dr|Esq)\b\.?", lambda title: SPOKEN[title.group(1).lower()], text)


def _words(piece: str) -> tuple[str, ...]:
    """The words of a phrase in lower case, without the marks of quotations; none when it holds more than letters."""
    if re.search(r"[^A-Za-z', \n-]", piece):
        return ()
    return tuple(filter(None, (word.strip("'") for word in re.sub("[,-]", " ", piece).lower().split())))


# ---- the novels as a package ships them --------------------------------------------------------------------------


def _novels(path: Path) -> Iterator[str]:
    """The text of each novel in a lazy-load database of GNU R: a row of vectors of strings, one string a line.

    Each vector is its unpacked length (4 bytes) and R's serialization of it, packed by zlib.
    """
    content, at = path.read_bytes(), 0
    try:
        while at < len(content):
            unpacker = zlib.decompressobj()
            packed = unpacker.decompress(content[at + 4 :])
            at = len(content) - len(unpacker.unused_data)
            yield " ".join(_strings(packed))
    except (zlib.error, struct.error, UnicodeDecodeError, ValueError) as error:
        raise IntqError(f"{path} is not the file of novels that r-cran-janeaustenr ships ({error})") from None


def _strings(content: bytes) -> Iterator[str]:
    """The strings of a character vector in R's binary serialization ("XDR", version 3; R Internals, 1.8)."""
    size = struct.unpack_from(">I", content, 14)[0]  # behind "X\\n", three version numbers and the encoding's length
    at = 18 + size
    kind, count = struct.unpack_from(">II", content, at)
    if content[:2] != b"X\n" or kind & 0xFF != 16:
        raise ValueError("it holds no character vector")
    at += 8
    for _ in range(count):
        length = struct.unpack_from(">i", content, at + 4)[0]  # -1: not available
        at += 8 + max(length, 0)
        yield content[at - max(length, 0) : at].decode("utf-8")
