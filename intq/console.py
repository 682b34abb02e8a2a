"""The terminal: progress on standard error, silent where that is no terminal, and one JSON value on standard output."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


@contextmanager
def step(title: str) -> Iterator[Callable[..., None]]:
    """Show that something is going on: a spinner and the time, and a bar once `advance(done, total[, now])` was called.

    `now` says in a word or two what is being done.

    On a terminal a line with the time it took stays; elsewhere nothing is printed at all.
    """
    started = time.perf_counter()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(24),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(title, total=None)

        def advance(done: int, total: int, now: str = "") -> None:
            progress.update(task, completed=done, total=total, description=f"{title}: {now}" if now else title)

        yield advance
    if err.is_terminal:
        err.print(f"[green]✓[/] {title} [dim]{time.perf_counter() - started:.1f} s[/]")


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Whatever a library prints goes to standard error: standard output holds the answer alone."""
    with redirect_stdout(sys.stderr):
        yield


def print_json(value: Any) -> None:
    """The command's one JSON value. NaN and infinity are not JSON: they are an error here, not in the reader."""
    print(json.dumps(value, indent=2, allow_nan=False))
