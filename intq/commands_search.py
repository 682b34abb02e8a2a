"""`intq search`."""

import functools
from dataclasses import replace

from intq import show
from intq.app import command, use_threads
from intq.console import Answer, step
from intq.errors import IntqError
from intq.networks import RANDOM_SAMPLES, asked, opened, refuse_options
from intq.options import (
    OFFERED,
    Budgets,
    Calibration,
    Checkpoint,
    DropCost,
    Judging,
    Keep,
    LatencyFile,
    Limit,
    MaxDrop,
    Offer,
    PlanOutput,
    Random,
    Rounding,
    Samples,
    SearchMethod,
    Seed,
    Sensitivity,
    SensitivitySamples,
    Task,
    Threads,
    Trials,
)


@command("search")
def search(
    source: Checkpoint,
    output: PlanOutput,
    budget: Budgets = None,
    max_drop: MaxDrop = None,
    minimize: DropCost = "size",
    data: Calibration = None,
    task: Task = None,
    random: Random = False,
    offer: Offer = OFFERED,
    keep: Keep = None,
    method: SearchMethod = "ilp",
    trials: Trials = 100,
    sensitivity: Sensitivity = "loss",
    rounding: Rounding = "gptq",
    probed: SensitivitySamples = 32,
    latencies: LatencyFile = None,
    held_out: Judging = None,
    limit: Limit = 2000,
    samples: Samples = 128,
    seed: Seed = 0,
    threads: Threads = None,
) -> Answer:
    """Find which bits every layer gets: the plan of least error within budgets, proven the best there is.

    [b]Examples[/]

      intq search my-resnet/ --data photos/ --budget size=7.5MB,bops=0.5x -o plan.json
      intq search my-resnet/ --data photos/ --max-drop 0.5 -o plan.json
      intq search sst2/ --task sst2 --budget size=0.6x --offer W8A8,W4A8 -o plan.json
      intq search my-resnet/ --data photos/ --budget latency=0.8x -o plan.json
      intq quantize my-resnet/ --data photos/ --plan plan.json -o mixed

    Budgets: size, bops, latency, memory; absolute with a unit, or with x so many times what the network costs in W8A8.
    For a budget of latency every layer is timed on this machine in all the bits that are offered, once: the table is
    kept in the cache. For another machine make it there (intq bench CHECKPOINT --latencies FILE).

    [dim]JSON: {"plan", "model", "method", "error", "costs", "budgets", "w8a8", "gap", "search_seconds", "sensitivity",
    "sensitivity_seconds", "evaluations", "score", "layers": {name: {"weight_bits", "input_bits"}}, "fronts": {cost:
    list of (cost, error)}, "traces": {"weights" and "activations": {name: {...}}}}[/]
    """
    use_threads(threads)
    from intq import latency, searching
    from intq.baselines import METHODS
    from intq.budgets import parse_budgets
    from intq.cost import read_latencies
    from intq.precision import parse_bits, write_plan
    from intq.quantize import observe

    if not budget and max_drop is None:
        raise IntqError(
            "nothing to search for: give a budget, as --budget size=0.5x, or how many points of accuracy may be lost "
            "with --max-drop"
        )
    if output.is_dir() or not output.parent.is_dir():
        raise IntqError(f"{output} cannot be written: give the name of a file in a folder that exists")
    budgets, offered = parse_budgets(budget) if budget else {}, parse_bits(offer)
    if method not in METHODS:
        raise IntqError(f"the method must be one of {', '.join(METHODS)}, got {method!r}")
    if not (random or data or task):
        raise IntqError("no data: give --data what the network will see, labels are not needed, or a --task")
    table = read_latencies(latencies) if latencies else None
    domain, checkpoint = opened(source, seed, random=random, task=task)
    refuse_options(domain, task=task)
    given = {"task": task} if task else {}
    calibrated = given | {"seed": seed, "rounding": rounding}
    samples = max(RANDOM_SAMPLES, probed) if random else samples
    with step(f"Observing {checkpoint.name}") as advance:
        report = lambda stage, done, total: advance(done, total, stage)  # noqa: E731
        prepared = domain.prepare(checkpoint, data, samples=samples, progress=report, **calibrated)
        seen = observe(prepared.model, prepared.samples, progress=report, **prepared.options)
    if table is None and "latency" in {*budgets, minimize if max_drop is not None else ""}:
        sizes, rate = searching.sizes_of(seen), domain.metadata(checkpoint).get("sample_rate")
        with step("Timing layers") as advance:
            table, _ = latency.measured(
                seen,
                checkpoint.name,
                offered,
                complete=prepared.complete,
                threads=threads,
                sequence=sizes.get("s"),
                audio=sizes["t"] / rate if "t" in sizes else None,
                progress=advance,
            )
    with step("Measuring sensitivity") as advance:
        found = searching.sensitivities(
            *(seen, offered, sensitivity, probed),
            seed=seed,
            progress=lambda stage, done, total: advance(done, total, stage),
        )
    made, layers = searching.problem(seen, found, offered, keep or (), table)
    judged = functools.partial(
        _points, domain, checkpoint, prepared, seen, data if held_out is None else held_out, limit, given
    )
    with step("Searching") as advance:
        if max_drop is not None:
            wide = judged(None)
            drop_of = lambda choices: wide - judged(choices)  # noqa: E731
            value = searching.within_drop(made, budgets, minimize, drop_of, max_drop, advance)
        else:
            evaluate = (lambda choices: -judged(choices)) if method in ("evolution", "tpe") else None
            value = searching.chosen(made, budgets, method, seed=seed, trials=trials, evaluate=evaluate)
    plan = searching.precision_plan(value, checkpoint.name, seen.graph, layers, found)
    write_plan(output, replace(plan, command=asked()))
    told = {"plan": str(output), "model": checkpoint.name, **searching.as_json(value, found)}
    return Answer(told, show.searched(told))


def _points(domain, checkpoint, prepared, seen, data, limit, given, choices) -> float:
    """The accuracy in points, of the float network (None) or with these bits."""
    from intq import searching, tuning

    if data is None and not given:
        raise IntqError("accuracy needs labelled data: give them with --eval")
    if choices is None:
        metadata = domain.metadata(checkpoint)
        reader = domain.reader(checkpoint, metadata)
        metrics = domain.evaluate(domain.network(checkpoint), reader, metadata, data, limit=limit, batch=64, **given)
        return tuning.points(metrics["metrics"])
    graph = prepared.complete(searching.applied(seen, choices))
    return tuning.points(tuning.evaluation(domain, checkpoint, data, limit, given)(graph))
