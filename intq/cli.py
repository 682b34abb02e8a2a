"""The command line: one function a command. Answers go to standard output, everything else to standard error."""

import functools
import os
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

import intq
from intq import artifact, console, domains, show
from intq.bench import bench as measure
from intq.console import Answer, step
from intq.errors import IntqError
from intq.graph import Graph

app = typer.Typer(
    name="intq",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Seed = Annotated[int, typer.Option(help="Seed of everything random: weights, made-up data, the choice of samples.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads to compute with.", show_default="all cores")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace the output folder if it is an artifact.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="An artifact: a folder written by `intq quantize`.")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write.")]

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
    output: Output,
    data: Annotated[
        Path | None,
        typer.Option(metavar="PHOTOS", help="Images like those the network will see; labels are not needed."),
    ] = None,
    random: Annotated[bool, typer.Option("--random", help="Random weights and data: for exactness and speed.")] = False,
    samples: Annotated[int, typer.Option(min=1, help="Use so many of the images at most.")] = 128,
    method: Annotated[str, typer.Option(help="How ranges are chosen: mse, percentile or minmax.")] = "mse",
    residual_bits: Annotated[int, typer.Option(help="Width of the sums between blocks: 8, or 16 for accuracy.")] = 8,
    seed: Seed = 0,
    threads: Threads = None,
    force: Force = False,
) -> Answer:
    """Turn a checkpoint into an integer-only artifact.

    [b]Examples[/]

      intq quantize microsoft/resnet-50 --data photos/ -o resnet50-int8
      intq quantize mobilenet_v2-b0353104.pth --data photos/ -o mobilenet-int8
      intq quantize inception_v3 --random -o inception-int8

    [dim]JSON: {"artifact", "model", "nodes", "parameters", "bytes", "overflow": {"proven", "widest_bits", "node"},
    "notices": [...]}[/]
    """
    check_output(output, force)
    use_threads(threads)
    if random and data:
        raise IntqError("--random makes up its own data: leave out --data, or give a checkpoint and leave out --random")
    if not random and data is None:
        raise IntqError("no calibration data: give --data a folder with some images like those the network will see")
    graph = integer_network(source, data, seed, samples=samples, method=method, residual_bits=residual_bits)
    artifact.save(graph, output, overwrite=force)
    proof = graph.verify()
    size = folder_bytes(output)
    value = {
        "artifact": str(output),
        "model": graph.metadata["model"],
        "nodes": len(graph.nodes),
        "parameters": sum(node.constants["weight"].size for node in graph.nodes if "weight" in node.constants),
        "bytes": size,
        "overflow": {"proven": True, "widest_bits": proof.widest_bits, "node": proof.node},
        "notices": graph.metadata.get("notices", []),
    }
    return Answer(
        value,
        (
            f"[b]{value['model']}[/] now computes with integers alone: {len(graph.nodes)} nodes, {size / 1e6:.1f} MB.",
            f"No sum can overflow: the widest needs {proof.widest_bits} of 32 bits, in {proof.node}.",
            *(f"Note: {escape(notice)}" for notice in value["notices"]),
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
        arithmetic = "floating point"
    else:
        metadata = artifact.load(network).metadata
        domain = domains.of_graph(metadata)
        predict, arithmetic = compiled(Path(network), threads), "integers"
    with step("Evaluating") as advance:
        value = domain.evaluate(predict, metadata, data, limit=limit, batch=batch, progress=advance)
    scores = ", ".join(f"{name} [b]{100 * share:.2f} %[/]" for name, share in value["metrics"].items())
    return Answer(value, (f"{metadata['model']} in {arithmetic} on {value['examples']} examples: {scores}",))


@command("compile")
def compile_(
    folder: Folder,
    target: Annotated[
        str, typer.Option(help="[b]cpu[/], which is this machine, or any CPU as a TVM target.", metavar="TARGET")
    ] = "cpu",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Write a copy of the artifact with the library.", show_default="DIR"
        ),
    ] = None,
    force: Force = False,
) -> Answer:
    """Compile an artifact into one library.

    The library is kept in the artifact, where the other commands and intq.compile load it at once. Without it they
    compile for this machine and keep theirs.

    [b]Examples[/]

      intq compile resnet50-int8
      intq compile resnet50-int8 --target "llvm -mcpu=icelake-server" -o resnet50-icelake
      intq compile resnet50-int8 --target "llvm -mtriple=aarch64-linux-gnu" -o resnet50-arm

    [dim]JSON: {"artifact", "target", "instruction_set", "kernels", "library", "bytes"}[/]
    """
    graph = artifact.load(folder)
    if output:
        check_output(output, force)
    with step(f"Compiling {folder}"):
        library = import_module("intq.kernels.lower").build(graph, target)
        if output:
            with artifact.new_folder(output, overwrite=force) as new:
                artifact.write(graph, new)
                name = library.keep(new).name
        else:
            name = library.keep(folder).name
    path = (output or folder) / name
    value = {
        "artifact": str(output or folder),
        "target": target,
        "instruction_set": library.instruction_set,
        "kernels": len({kernel for kernel in library.kernels.values() if kernel}),
        "library": name,
        "bytes": path.stat().st_size,
    }
    what = f"{value['kernels']} kernels for {library.instruction_set}, {value['bytes'] / 1e6:.1f} MB"
    return Answer(value, (f"{what}: [b]{path}[/]",))


@command("run")
def run(
    folder: Folder,
    files: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    top: Annotated[int, typer.Option(min=1, help="Print so many labels.")] = 5,
    threads: Threads = None,
) -> Answer:
    """Run an artifact on files: best labels, integer scores.

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
    return Answer(value, (show.labels(value),))


@command("verify")
def verify(folder: Folder, seed: Seed = 0, threads: Threads = None) -> Answer:
    """Prove an artifact exact, overflow-free and free of floating point.

    Every backend is compared with the reference to the last bit on random and extreme inputs, the bounds are derived
    again, and the compiled kernels are disassembled. Exit code 1 when any of it does not hold.

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
    return Answer(
        value, show.verdict(value), failed=bool(value["float_instructions"] or sum(value["mismatches"].values()))
    )


@command("bench")
def bench(
    network: Annotated[
        str, typer.Argument(metavar="DIR|NAME", help="An artifact, or an architecture to take with random weights.")
    ],
    batch: Annotated[int, typer.Option(min=1, help="Inputs a run.")] = 1,
    seconds: Annotated[float, typer.Option(min=0, help="Time the whole network for so long.")] = 3.0,
    seed: Seed = 0,
    threads: Threads = None,
) -> Answer:
    """Measure time, memory, and what each layer reaches of the peak.

    The network runs in a process of its own, as where it is deployed. The peak is that of a loop of the same
    instruction, measured in turn with the layers.

    [b]Examples[/]

      intq bench resnet50-int8 --threads 2
      intq bench mobilenet_v2 --json

    [dim]JSON: {"model", "threads", "batch", "min_ms", "median_ms", "peak_memory_mb", "load_ms", "instruction_set",
    "peak_gops", "layers": [{"name", "op", "k", "ms", "gops", "peak_share"}]}[/]
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(network)
        if not folder.exists():
            if network not in domains.architectures():
                known = ", ".join(domains.architectures())
                raise IntqError(f"{network} is no artifact's folder, nor an architecture; there are {known}")
            folder = Path(temporary, network)
            artifact.save(integer_network(network, None, seed), folder)
        artifact.load(folder)
        compiled(folder, threads)
        with step(f"Timing {network}"):
            value = measure(folder, threads, batch, seconds)
    return Answer(value, show.timing(value))


def integer_network(source: str, data: Path | None, seed: int, samples: int = RANDOM_SAMPLES, **options) -> Graph:
    """The graph of a checkpoint calibrated on `data`, or where that is None of an architecture with random weights."""
    domain = domains.of_architecture(source) if data is None else domains.of_checkpoint(source)
    with step(f"Loading {source}"):
        checkpoint = domain.random(source, seed) if data is None else domain.load(source)
    if data is None:  # weights that mean nothing deserve no careful rounding
        samples, options = min(samples, RANDOM_SAMPLES), options | {"rounding": "nearest"}
    with step(f"Quantizing {checkpoint.name}") as advance:

        def progress(stage: str, done: int, total: int) -> None:
            advance(done, total, stage)

        return domain.quantize(checkpoint, data, samples=samples, seed=seed, progress=progress, **options)


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
