"""The command's application: what all commands share. The commands themselves are in :mod:`intq.cli` and beside it."""

import functools
import os
import shutil
from pathlib import Path
from typing import Annotated

import typer

import intq
from intq import artifact, console
from intq.errors import IntqError

app = typer.Typer(
    name="intq",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

command = functools.partial(console.command, app)


def main() -> None:
    """The entry point of the `intq` command."""
    app()


def print_version(value: bool) -> None:
    if value:
        console.out.print(f"intq {intq.__version__}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Turn a trained network into one that computes with [b]integers only[/], from raw input to answer, and run it
    bit for bit the same everywhere.

    [b]Start here[/]

      intq quantize microsoft/resnet-50 --data photos/ -o resnet50-int8
      intq run resnet50-int8 dog.jpg

      intq quantize textattack/roberta-base-SST-2 --task sst2 -o sst2-int8
      intq run sst2-int8 "a gripping, beautifully shot film"

    No checkpoint at hand? Any architecture at full size with random weights, for exactness and speed:

      intq quantize resnet50 --random -o resnet50-int8
      intq verify resnet50-int8 && intq bench resnet50-int8
    """


def check_output(folder: Path, force: bool) -> None:
    """Refuse, before minutes of work, what `artifact.save` would refuse; and never replace what is no artifact."""
    if not folder.exists():
        return
    if not force:
        raise IntqError(f"{folder} exists already: choose another name, or replace it with --force")
    if not artifact.is_artifact(folder):
        raise IntqError(f"{folder} exists and is no artifact: --force replaces artifacts only; choose another name")


def use_threads(threads: int | None) -> None:
    """For torch, which reads it when it is first imported: after this, in a command."""
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def copy_folders(source: Path, target: Path) -> None:
    """What an artifact holds besides its graph: a tokenizer."""
    for path in source.iterdir():
        if path.is_dir():
            shutil.copytree(path, target / path.name)
