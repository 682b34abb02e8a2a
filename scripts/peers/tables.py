"""The rows of a comparison on standard output: as JSON, as the README's table, or as a table for people."""

import argparse
from collections.abc import Callable, Sequence

from rich.table import Table

from intq.console import out, print_json


def add_formats(parser: argparse.ArgumentParser) -> None:
    """The switches that `show` reads, of which one at most is given."""
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument("--json", action="store_true", help="print one JSON list")
    formats.add_argument("--markdown", action="store_true", help="print the README's table")


def show(
    rows: Sequence[dict],
    header: Sequence[str],
    cells: Callable[[dict], list[str]],
    options: argparse.Namespace,
) -> None:
    """Print the rows; cells: one row for people, a word for each of the header's."""
    if options.json:
        print_json(rows)
    elif options.markdown:
        print(markdown(header, map(cells, rows)))
    else:
        table = Table(*header)
        for row in rows:
            table.add_row(*cells(row))
        out.print(table)


def markdown(header: Sequence[str], lines) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *lines))
