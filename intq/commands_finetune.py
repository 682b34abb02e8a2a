"""`intq finetune`."""

from dataclasses import asdict

from intq import artifact, show
from intq.app import check_output, command, use_threads
from intq.console import Answer
from intq.errors import IntqError
from intq.networks import check_of, opened, planned_bits, pruning, recorded, refuse_options
from intq.options import (
    Bits,
    Checkpoint,
    Distill,
    Epochs,
    Evaluated,
    Force,
    Hidden,
    LearnedSteps,
    Limit,
    Optimizer,
    Output,
    PlanFile,
    Prune,
    Rate,
    Rounding,
    Samples,
    Seed,
    Settle,
    Task,
    Teacher,
    Temperature,
    Threads,
    TrainBatch,
    Trained,
    WeightBits,
    WeightDecay,
)


@command("finetune")
def finetune(
    source: Checkpoint,
    output: Output,
    data: Trained = None,
    task: Task = None,
    prune: Prune = None,
    plan: PlanFile = None,
    bits: Bits = None,
    weight_bits: WeightBits = None,
    rounding: Rounding = "gptq",
    teacher: Teacher = None,
    distill: Distill = None,
    hidden: Hidden = 0.0,
    temperature: Temperature = 2.0,
    epochs: Epochs = 3.0,
    batch: TrainBatch = 64,
    rate: Rate = None,
    optimizer: Optimizer = "adamw",
    steps: LearnedSteps = "none",
    weight_decay: WeightDecay = 0.0,
    settle: Settle = False,
    held_out: Evaluated = None,
    limit: Limit = None,
    samples: Samples = 128,
    seed: Seed = 0,
    threads: Threads = None,
    force: Force = False,
) -> Answer:
    """Quantize a checkpoint and train the integer network that comes out of it.

    Every step computes with the deployed integers, exactly; the last accuracy it prints is that of the artifact. A
    training that was stopped goes on when the same command is given again.

    [b]Examples[/]

      intq finetune my-resnet/ --data photos/ --plan plan.json --teacher my-resnet/ -o net-tuned
      intq finetune my-bert/ --task sst2 --weight-bits '*=4' --rounding learned -o sst2-tuned
      intq finetune quartznet.nemo --data train.jsonl --eval dev.jsonl --weight-bits '*=4' -o speech-tuned

    [dim]JSON: {"artifact", "model", "history": [{"step", "epoch", "loss", metric: share of 1}],
    "recipe": {...}}[/]
    """
    check_output(output, force)
    use_threads(threads)
    from intq import processes, tuning
    from intq.finetune import Recipe
    from intq.prune import FASTER

    if data is None and task is None:
        raise IntqError("no data: give --data labelled examples to train on, or name a task of GLUE with --task")
    distill = (0.5 if teacher else 0.0) if distill is None else distill
    if distill and not teacher:
        raise IntqError("--distill weighs a teacher's answers: say which with --teacher CHECKPOINT")
    domain, checkpoint = opened(source, seed, task=task)
    refuse_options(domain, task=task)
    recipe = Recipe(
        epochs=epochs,
        batch=batch,
        lr=domain.RATE * (FASTER if prune else 1) if rate is None else rate,
        optimizer=optimizer,
        weight_decay=weight_decay,
        steps=steps,
        distill=distill,
        temperature=temperature,
        hidden=hidden,
        seed=seed,
    )
    other = None
    if teacher:
        other = checkpoint if teacher == source else opened(teacher, seed, task=task)[1]
    options = planned_bits(plan, bits, weight_bits) | pruning(prune, seed) | {"rounding": rounding}
    outcome = tuning.tuned(
        domain,
        checkpoint,
        output,
        recipe,
        data=data,
        held_out=data if held_out is None else held_out,
        task=task,
        teacher=other,
        samples=samples,
        limit=limit,
        settle=settle,
        check=check_of(plan, checkpoint.name),
        options={name: value for name, value in options.items() if value},
    )
    if processes.place()[0]:  # the first one writes
        return Answer({"artifact": str(output)})
    with artifact.new_folder(output, overwrite=force) as new:
        artifact.write(recorded(tuning.finished(outcome, recipe), seed, plan), new)
        domain.save(checkpoint, new)
    tuning.forget(output)
    value = {
        "artifact": str(output),
        "model": checkpoint.name,
        "history": [dict(row) for row in outcome.history],
        "recipe": asdict(recipe),
    }
    return Answer(value, show.training(value))
