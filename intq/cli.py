"""The command line: one function a command. Answers go to standard output, everything else to standard error."""

import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

import intq
from intq import artifact, domains
from intq.console import err, out, print_json, stdout_to_stderr, step
from intq.errors import IntqError

app = typer.Typer(
    name="intq",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON value on standard output and nothing else there.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random: weights, made-up data, the choice of samples.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads to compute with.", show_default="all cores")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace the output folder if it is an artifact.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="An artifact: a folder written by `intq quantize`.")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write.")]


@dataclass(frozen=True)
class Answer:
    """What a command found: the documented JSON value, and the same for people."""

    value: Any
    human: tuple = ()
    failed: bool = False  # the command found what it looks for: exit code 1


def command(name: str) -> Callable:
    """Register a function that returns an Answer as a command with a --json switch.

    A user's mistake becomes one sentence and exit code 2; what a library prints goes to standard error.
    """

    def register(function: Callable[..., Answer]) -> Callable:
        @functools.wraps(function)
        def run(*args: Any, json: bool, **kwargs: Any) -> None:
            try:
                with stdout_to_stderr():
                    answer = function(*args, **kwargs)
            except (IntqError, OSError) as error:
                if isinstance(error, OSError):
                    if error.filename is None:
                        raise
                    error = f"{error.filename}: {error.strerror}"
                err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
                raise typer.Exit(2) from None
            if json:
                print_json(answer.value)
            else:
                out.print(*answer.human, sep="\n")
            if answer.failed:
                raise typer.Exit(1)

        switch = inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json)
        signature = inspect.signature(function)
        run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), switch])
        run.__annotations__ = function.__annotations__ | {"json": Json}
        return app.command(name, no_args_is_help=True)(run)

    return register


def main() -> None:
    """The entry point of the `intq` command."""
    app()


def print_version(value: bool) -> None:
    if value:
        out.print(f"intq {intq.__version__}")
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

    No checkpoint at hand? Any architecture at full size with random weights, for exactness and speed:

      intq quantize resnet50 --random -o resnet50-int8
      intq verify resnet50-int8 && intq bench resnet50-int8
    """


RANDOM_SAMPLES = 8  # made-up images need no more: their statistics are all the same

Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A folder written by save_pretrained, a torchvision state dict (.pth), a hub id, "
        "or with --random the name of an architecture.",
    ),
]


@command("quantize")
def quantize(
    source: Checkpoint,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write.")],
    data: Annotated[
        Path | None,
        typer.Option(metavar="PHOTOS", help="Images like those the network will see; labels are not needed."),
    ] = None,
    random: Annotated[bool, typer.Option("--random", help="Random weights and data: for exactness and speed.")] = False,
    samples: Annotated[int, typer.Option(min=1, help="Use so many of the images at most.")] = 128,
    method: Annotated[str, typer.Option(help="How ranges are chosen: mse, percentile or minmax.")] = "mse",
    seed: Seed = 0,
    threads: Threads = None,
    force: Force = False,
) -> Answer:
    """Turn a checkpoint into an integer-only artifact.

    [b]Examples[/]

      intq quantize microsoft/resnet-50 --data photos/ -o resnet50-int8
      intq quantize mobilenet_v2-b0353104.pth --data photos/ -o mobilenet-int8
      intq quantize inception_v3 --random -o inception-int8

    [dim]JSON: {"artifact", "model", "nodes", "parameters", "bytes", "overflow": {"proven", "widest_bits", "node"}}[/]
    """
    check_output(output, force)
    use_threads(threads)
    if random and data:
        raise IntqError("--random makes up its own data: leave out --data, or give a checkpoint and leave out --random")
    if not random and data is None:
        raise IntqError("no calibration data: give --data a folder with some images like those the network will see")
    domain = domains.of_architecture(source) if random else domains.of_checkpoint(source)
    with step(f"Loading {source}"):
        checkpoint = domain.random(source, seed) if random else domain.load(source)
    with step(f"Quantizing {checkpoint.name}") as advance:
        graph = domain.quantize(
            checkpoint,
            data,
            samples=min(samples, RANDOM_SAMPLES) if random else samples,
            seed=seed,
            method=method,
            progress=lambda stage, done, total: advance(done, total, stage),
        )
    artifact.save(graph, output, overwrite=force)
    proof = graph.verify()
    size = folder_bytes(output)
    value = {
        "artifact": str(output),
        "model": checkpoint.name,
        "nodes": len(graph.nodes),
        "parameters": sum(node.constants["weight"].size for node in graph.nodes if "weight" in node.constants),
        "bytes": size,
        "overflow": {"proven": True, "widest_bits": proof.widest_bits, "node": proof.node},
    }
    return Answer(
        value,
        (
            f"[b]{checkpoint.name}[/] now computes with integers alone: {len(graph.nodes)} nodes, {size / 1e6:.1f} MB.",
            f"No sum can overflow: the widest needs {proof.widest_bits} of 32 bits, in {proof.node}.",
            f"[dim]Next: intq run {output} IMAGE | intq verify {output} | intq bench {output}[/]",
        ),
    )


@command("eval")
def evaluate(
    network: Annotated[
        str,
        typer.Argument(
            metavar="DIR|float:CHECKPOINT",
            help="An artifact, or the float network of a checkpoint to compare it with.",
        ),
    ],
    data: Annotated[
        str,
        typer.Option(metavar="DATA", help="An ImageFolder, the files of CIFAR or MNIST, or a `datasets` name."),
    ],
    limit: Annotated[
        int | None, typer.Option(min=1, help="So many examples, drawn at random, at most.", show_default="all")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Examples a batch.")] = 16,
    threads: Threads = None,
) -> Answer:
    """Measure accuracy on labelled data.

    [b]Examples[/]

      intq eval resnet50-int8 --data imagenet/val
      intq eval float:microsoft/resnet-50 --data imagenet/val

    [dim]JSON: {"task", "examples", "metrics": {"top1", "top5"}}, metrics as shares of 1[/]
    """
    use_threads(threads)
    if network.startswith("float:"):
        source = network.removeprefix("float:")
        domain = domains.of_checkpoint(source)
        with step(f"Loading {source}"):
            checkpoint = domain.load(source)
            metadata, predict = domain.metadata(checkpoint), domain.network(checkpoint)
    else:
        metadata = artifact.load(network).metadata
        domain = domains.of_graph(metadata)
        predict = compiled(Path(network), threads)
    with step("Evaluating") as advance:
        value = domain.evaluate(predict, metadata, data, limit=limit, batch=batch, progress=advance)
    scores = ", ".join(f"{name} [b]{100 * share:.2f} %[/]" for name, share in value["metrics"].items())
    return Answer(value, (f"{metadata['model']} on {value['examples']} examples: {scores}",))


@command("run")
def run(
    folder: Folder,
    files: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    top: Annotated[int, typer.Option(min=1, help="Print so many labels.")] = 5,
    threads: Threads = None,
) -> Answer:
    """Run an artifact on files: the best labels with their integer scores.

    [b]Examples[/]

      intq run resnet50-int8 dog.jpg
      intq run resnet50-int8 photos/*.jpg --top 1 --json

    [dim]JSON: [{"input", "top": [{"label", "index", "score"}]}][/]
    """
    metadata = artifact.load(folder).metadata
    domain = domains.of_graph(metadata)
    inputs = list(domain.read(files, metadata))
    network = compiled(folder, threads)
    value = [
        {"input": str(file), "top": domain.answer(network(array)[0], metadata, top)}
        for file, array in zip(files, inputs, strict=True)
    ]
    table = Table(box=None, header_style="dim")
    table.add_column("input")
    table.add_column("label", style="bold")
    table.add_column("score", justify="right")
    for item in value:
        for rank, row in enumerate(item["top"]):
            name = "" if rank else Path(item["input"]).name
            table.add_row(escape(name), escape(row["label"]), str(row["score"]), style=None if rank == 0 else "dim")
    return Answer(value, (table,))


@command("verify")
def verify(folder: Folder, seed: Seed = 0, threads: Threads = None) -> Answer:
    """Prove an artifact exact: every backend equals the reference to the last bit, no sum can overflow, and no kernel
    computes in floating point. Exit code 1 when it does not hold.

    [b]Examples[/]

      intq verify resnet50-int8
      intq verify resnet50-int8 --json | jq .mismatches

    [dim]JSON: {"mismatches": {"torch", "cpu"}, "float_instructions", "overflow": {"proven", "widest_bits", "node"},
    "layers": [{"name", "sqnr_db"}], ...}; layers worst first, against the float network on its calibration data[/]
    """
    use_threads(threads)
    graph = artifact.load(folder)
    network = compiled(folder, threads)
    with step(f"Verifying {folder}") as advance:
        value = intq.verify(graph, network=network, seed=seed, progress=advance)
    return Answer(value, verdict(value), failed=bool(value["float_instructions"] or sum(value["mismatches"].values())))


def verdict(value: dict[str, Any]) -> tuple:
    """`intq verify` for people."""
    table = Table(box=None, show_header=False)
    for backend, count in value["mismatches"].items():
        compared = f"{value['compared'][backend]:,} values compared with the reference"
        table.add_row(mark(count == 0), backend, f"{count:,} mismatches", f"[dim]{compared}[/]")
    count = value["float_instructions"]
    kernels = f"{len(value['kernels'])} kernels, {value['instruction_set']}"
    table.add_row(mark(count == 0), "float audit", f"{count:,} floating-point instructions", f"[dim]{kernels}[/]")
    proof = value["overflow"]
    widest = f"widest: {proof['widest_bits']} of 32 bits"
    table.add_row(mark(proof["proven"]), "overflow", "impossible, proven", f"[dim]{widest}, {proof['node']}[/]")
    human = [table]
    if value["first_mismatch"]:
        human.append(f"[red]First mismatch:[/] {escape(str(value['first_mismatch']))}")
    if value["layers"]:
        worst = Table("layer", Column("SQNR", justify="right"), box=None, header_style="dim")
        for layer in value["layers"][:5]:
            worst.add_row(escape(layer["name"]), f"{layer['sqnr_db']:.1f} dB")
        human += ["\nThe layers that cost most accuracy, of " + str(len(value["layers"])) + ":", worst]
    return tuple(human)


def mark(ok: bool) -> str:
    return "[green]✓[/]" if ok else "[red]✗[/]"


def check_output(folder: Path, force: bool) -> None:
    """Refuse, before minutes of work, what `artifact.save` would refuse; and never replace what is no artifact."""
    if not folder.exists():
        return
    if not force:
        raise IntqError(f"{folder} exists already: choose another name, or replace it with --force")
    if not artifact.is_artifact(folder):
        raise IntqError(f"{folder} exists and is no artifact: --force replaces artifacts only; choose another name")


def compiled(folder: Path, threads: int | None) -> Callable:
    """The artifact's network for this machine."""
    with step(f"Loading {folder}"):
        return intq.compile(folder, threads=threads)


def use_threads(threads: int | None) -> None:
    """For torch, which reads it when it is first imported: after this, in a command."""
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
