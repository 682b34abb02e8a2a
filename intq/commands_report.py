"""`intq report`."""

from pathlib import Path
from typing import Any

import intq
from intq import artifact
from intq.app import command, use_threads
from intq.bench import bench
from intq.console import Answer, step
from intq.documents import write_text
from intq.errors import IntqError
from intq.evaluation import check_same_head, measured
from intq.networks import Network, compiled, network_of, opened, refuse_options
from intq.options import (
    Besides,
    Calibration,
    Folder,
    Limit,
    Page,
    ReportBench,
    ReportCheckpoint,
    ReportEval,
    ReportSamples,
    ReportVerify,
    Seed,
    ShownPlan,
    Task,
    Threads,
)


@command("report")
def report(
    folder: Folder,
    output: Page,
    plan: ShownPlan = None,
    held_out: ReportEval = None,
    task: Task = None,
    beside: Besides = None,
    checkpoint: ReportCheckpoint = None,
    data: Calibration = None,
    verify: ReportVerify = False,
    timed: ReportBench = False,
    limit: Limit = None,
    samples: ReportSamples = 32,
    seed: Seed = 0,
    threads: Threads = None,
) -> Answer:
    """Write all that is known of an artifact as one HTML page.

    Layers, bits, costs, plan and training are in the artifact; what has to be measured is measured when asked for. The
    page needs no network and no script, and is light or dark as its reader likes. Exit code 1 when --verify finds
    what does not hold.

    [b]Examples[/]

      intq report net-tuned -o report.html
      intq report net-tuned --verify --bench -o report.html
      intq report net-tuned --eval photos/ --checkpoint my-resnet/ --data photos/ --beside net-mixed -o report.html

    [dim]JSON: {"page", "network", "costs", "w8a8", "layers": [{"name", "weight_bits", "input_bits", "parameters",
    "bytes", "macs", "bops", "sqnr_db", "ms", "errors", "traces"}], "plan", "accuracy": [{"name", "arithmetic", "data",
    "examples", "metrics", "bytes"}], "training", "curvature", "overflow", "verify", "bench", "report"}; null or empty:
    not measured[/]
    """
    use_threads(threads)
    from intq import reporting
    from intq.precision import read_plan
    from intq.report import page

    if output.is_dir() or not output.parent.is_dir():
        raise IntqError(f"{output} cannot be written: give the name of a file in a folder that exists")
    if data and not checkpoint:
        raise IntqError("--data is what the float network's loss is measured on: say which network with --checkpoint")
    if beside and not (held_out or task):
        raise IntqError("--beside compares accuracies: give labelled examples with --eval")
    if checkpoint and not (data or held_out or task):
        raise IntqError("--checkpoint is for its loss landscape, with --data, and its accuracy, with --eval: give one")
    graph = artifact.load(folder)
    found = read_plan(plan) if plan else reporting.plan_of(graph)
    if found:  # before minutes of measurements
        reporting.layer_names(graph, {name: each.shapes for name, each in found.layers.items()}, "the plan")
    accuracy, curvature = [], None
    if held_out or task:
        accuracy = _accuracy(folder, graph, checkpoint, beside or [], held_out, task, limit, threads)
    if checkpoint and data:
        domain, opened_checkpoint = opened(checkpoint, seed, task=task)
        given = {"task": task} if task else {}
        with step(f"Measuring the loss of {opened_checkpoint.name}") as advance:
            curvature = reporting.curvature_of(
                domain,
                opened_checkpoint,
                graph,
                data,
                given,
                samples,
                seed,
                lambda stage, done, total: advance(done, total, stage),
            )
    verified = None
    if verify:
        with step(f"Verifying {folder}") as advance:
            verified = intq.verify(graph, network=compiled(folder, threads), seed=seed, progress=advance)
    times = None
    if timed:
        compiled(folder, threads)
        with step(f"Timing {folder}"):
            times = bench(folder, threads)
    value = reporting.facts(
        folder, graph, found, accuracy=accuracy, verified=verified, timed=times, curvature=curvature
    )
    write_text(output, page(value))
    unequal = verified and (verified["float_instructions"] or sum(verified["mismatches"].values()))
    words = f"All that is known of {folder}: [b]{output}[/]"
    return Answer({"page": str(output), **value}, (words,), failed=bool(unequal))


def _accuracy(
    folder: Path,
    graph: intq.Graph,
    checkpoint: str | None,
    beside: list[Path],
    data: str | None,
    task: str | None,
    limit: int | None,
    threads: int | None,
) -> list[dict[str, Any]]:
    """The accuracy of the float network first, then of what is beside, and of the artifact itself."""
    from intq import reporting

    mine = network_of(str(folder), task, threads=threads)
    refuse_options(mine.domain, task=task)
    others: list[tuple[str, str, Network, Any]] = []
    if checkpoint:
        network = network_of(f"float:{checkpoint}", task)
        others.append((network.metadata["model"], "float", network, None))
    for other in beside:
        others.append((other.name, "integers", network_of(str(other), task, threads=threads), artifact.load(other)))
    for _, _, network, _ in others:
        check_same_head(mine.metadata, network.metadata)
    rows = []
    for name, arithmetic, network, its in (*others, (folder.name, "integers", mine, graph)):
        value = measured(network, task, None, data=data, limit=limit, batch=64)
        rows.append(reporting.row(name, arithmetic, value, data, its))
    return rows
