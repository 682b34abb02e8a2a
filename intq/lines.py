"""Text files line by line, for messages that say where: UTF-8, and a line ends at a line feed alone.

(Texts hold other characters that Unicode breaks lines at.)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from intq.errors import IntqError


@contextmanager
def utf8(path: Path) -> Iterator[None]:
    """What reads the file inside finds text, or this raises IntqError with the place of the first other byte."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise IntqError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): convert it") from None


def numbered(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end). Raises IntqError for what is not UTF-8."""
    with utf8(path), path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            yield number, line.rstrip("\r\n")


def json_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of its line, object) of a file with a JSON object a line; empty lines are passed over.

    Raises IntqError, with the line's number, for a line that holds anything else.
    """
    for number, line in numbered(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise IntqError(f"{path}, line {number}: is not JSON ({error}); expected one object a line") from None
        if not isinstance(row, dict):
            raise IntqError(f"{path}, line {number}: expected a JSON object, found {line.strip()[:40]!r}")
        yield number, row
