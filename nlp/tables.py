"""Files of examples as tables: TSV, CSV, JSON lines, CoNLL columns, plain lines; every row knows its line.

TSV is what GLUE's files are: a field ends at a tab and a row at a line feed, quotation marks mean themselves. In CSV
they quote, as in RFC 4180.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intq.errors import IntqError
from intq.lines import json_objects, numbered, utf8


@dataclass(frozen=True)
class Table:
    """Rows by column, and of a file the line in which each begins, from 1. A row may be shorter than the header."""

    name: str
    columns: tuple[str, ...]
    rows: list[Sequence[Any]]
    lines: list[int] | None = None

    def where(self, row: int) -> str:
        """For a message: the file and the line of a row."""
        return f"{self.name}, example {row}" if self.lines is None else f"{self.name}, line {self.lines[row]}"

    @property
    def top(self) -> str:
        """For a message about the columns: the file and the line of its header."""
        return self.name if self.lines is None else f"{self.name}, line 1"

    def column(self, name: str) -> list[Any]:
        """The values of a column. IntqError, with file and line, when the file or one row of it lacks the column."""
        if name not in self.columns:
            raise IntqError(f"{self.top}: there is no column {name!r}; the columns are {self.said()}")
        position = self.columns.index(name)
        for row, values in enumerate(self.rows):
            if len(values) <= position:
                raise IntqError(
                    f"{self.where(row)}: the column {name!r} is missing: found {len(values)} of the "
                    f"{len(self.columns)} columns {self.said()}"
                )
        return [values[position] for values in self.rows]

    def said(self) -> str:
        """The columns, for a message."""
        return ", ".join(map(repr, self.columns)) or "none"


def read_table(path: Path, header: tuple[str, ...] = ()) -> Table:
    """The table in a file, by its ending; `header`: the columns of a TSV whose first line is a row already.

    Raises IntqError for an ending that is not known, text that is not UTF-8, and lines that the format does not have.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise IntqError(f"{path} ends in none of {', '.join(READERS)}: rename or convert it")
    table = read_tsv(path, header) if header else reader(path)
    if not table.rows:
        raise IntqError(f"{path} holds no examples")
    return table


def read_tsv(path: Path, header: tuple[str, ...] = ()) -> Table:
    """Fields between tabs; the first line names them unless `header` does."""
    found = [(number, line.split("\t")) for number, line in numbered(path) if line]
    if not header and found:
        header = tuple(name.strip() for name in found.pop(0)[1])
    return Table(str(path), header, [row for _, row in found], [number for number, _ in found])


def read_csv(path: Path) -> Table:
    """Fields between commas, in quotation marks where they hold commas or line feeds; the first row names them."""
    rows, lines = [], []
    with utf8(path), path.open(encoding="utf-8-sig", newline="") as file:
        reader, line = csv.reader(file, strict=True), 1
        try:
            for row in reader:
                if row:
                    rows.append(row)
                    lines.append(line)
                line = reader.line_num + 1
        except csv.Error as error:
            raise IntqError(f"{path}, line {line}: is not CSV ({error})") from None
    return Table(str(path), tuple(name.strip() for name in rows[0]) if rows else (), rows[1:], lines[1:])


def read_jsonl(path: Path) -> Table:
    """A JSON object a line; the columns are those of the first, and every line has to have them."""
    columns: tuple[str, ...] = ()
    rows, lines = [], []
    for number, row in json_objects(path):
        columns = columns or tuple(row)
        missing = [name for name in columns if name not in row]
        if missing:
            found = ", ".join(map(repr, row)) or "nothing"
            raise IntqError(f"{path}, line {number}: the column {missing[0]!r} is missing; found {found}")
        rows.append([row[name] for name in columns])
        lines.append(number)
    return Table(str(path), columns, rows, lines)


def read_conll(path: Path) -> Table:
    """A word a line with its label last (Tjong Kim Sang and De Meulder 2003); an empty line ends a sentence."""
    rows: list[Sequence[Any]] = []
    lines: list[int] = []
    words: list[str] = []
    labels: list[str] = []
    for number, line in [*numbered(path), (0, "")]:
        fields = line.split()
        if fields and fields[0] != "-DOCSTART-":
            if len(fields) < 2:
                raise IntqError(f"{path}, line {number}: expected a word and its label, found {line!r}")
            if not words:
                lines.append(number)
            words.append(fields[0])
            labels.append(fields[-1])
        elif words:
            rows.append((words, labels))
            words, labels = [], []
    return Table(str(path), ("tokens", "labels"), rows, lines)


def read_lines(path: Path) -> Table:
    """A text a line, without labels."""
    found = [(number, line) for number, line in numbered(path) if line.strip()]
    return Table(str(path), ("text",), [(line,) for _, line in found], [number for number, _ in found])


READERS: dict[str, Callable[[Path], Table]] = {
    ".tsv": read_tsv,
    ".csv": read_csv,
    **dict.fromkeys((".jsonl", ".json", ".ndjson"), read_jsonl),
    **dict.fromkeys((".conll", ".bio", ".iob", ".iob2"), read_conll),
    ".txt": read_lines,
}
