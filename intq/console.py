"""The terminal: progress on standard error, silent where that is no terminal; answers on standard output."""

import functools
import inspect
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from intq.errors import IntqError

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

# Which extra brings what is missing; where none is named, a domain's.
EXTRAS = {"PIL": "vision", "torch": "quantize", "sklearn": "nlp", "matplotlib": "report"}
EXTRAS |= dict.fromkeys(("soundfile", "jiwer", "sentencepiece", "yaml"), "speech")


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


Json = Annotated[bool, typer.Option("--json", help="Print one JSON value on standard output and nothing else there.")]


@dataclass(frozen=True)
class Answer:
    """What a command found: the documented JSON value, and the same for people."""

    value: Any
    human: tuple = ()
    failed: bool = False  # the command found what it looks for: exit code 1


def sentence(error: Exception) -> str:
    """A user's mistake in words; what is our own mistake is raised again."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ModuleNotFoundError) and not error.name.startswith("intq"):
        extra = EXTRAS.get(error.name.partition(".")[0], "vision,nlp")
        return f"this command needs {error.name}, which is not installed: pip install 'intq[{extra}]'"
    if isinstance(error, IntqError):
        return str(error)
    raise error


def command(app: typer.Typer, name: str) -> Callable:
    """Register a function that returns an Answer as a command with a --json switch.

    A user's mistake becomes one sentence and exit code 2; what a library prints goes to standard error.
    """

    def register(function: Callable[..., Answer]) -> Callable:
        @functools.wraps(function)
        def run(*args: Any, json: bool, **kwargs: Any) -> None:
            try:
                with stdout_to_stderr():
                    answer = function(*args, **kwargs)
            except (IntqError, OSError, ModuleNotFoundError) as error:
                err.print(f"[bold red]error:[/] {escape(sentence(error))}", soft_wrap=True)
                raise typer.Exit(2) from None
            if json:
                print_json(answer.value)
            else:
                for part in answer.human:
                    out.print(part, soft_wrap=isinstance(part, str))
            if answer.failed:
                raise typer.Exit(1)

        switch = inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json)
        signature = inspect.signature(function)
        run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), switch])
        run.__annotations__ = function.__annotations__ | {"json": Json}
        needs = any(p.default is inspect.Parameter.empty for p in signature.parameters.values())
        return app.command(name, no_args_is_help=needs)(run)

    return register
