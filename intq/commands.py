"""The commands that make, run and check artifacts: one function each."""

import functools
import hashlib
import tempfile
from importlib import import_module
from pathlib import Path

from rich.markup import escape

import intq
from intq import artifact, domains, show
from intq.app import check_output, command, copy_folders, folder_bytes, use_threads
from intq.bench import bench as measure
from intq.bench import prediction
from intq.console import Answer, step
from intq.errors import IntqError
from intq.evaluation import glue, measured
from intq.networks import (
    compiled,
    integer_network,
    latency_table,
    network_of,
    opened,
    planned_bits,
    pruning,
    refuse_options,
)
from intq.options import (
    OFFERED,
    Audio,
    Batch,
    BenchBatch,
    Beside,
    Bits,
    Calibration,
    Checkpoint,
    Constants,
    CopyTo,
    Download,
    FloatOrFolder,
    Folder,
    FolderOrName,
    Force,
    Functions,
    GlueTask,
    Inputs,
    Labelled,
    Labels,
    LanguageModel,
    LatencyOutput,
    Limit,
    Method,
    Offer,
    Output,
    Pair,
    PlanFile,
    Predict,
    Prune,
    Random,
    ResidualBits,
    Rounding,
    Samples,
    Seconds,
    Seed,
    Sequence,
    Target,
    Task,
    Threads,
    Top,
    Truncate,
    WeightBits,
    ZeroShot,
)

WEIGHTS = {"weight", "word", "position", "segment", "distances"}  # the constants that count as parameters


@command("quantize")
def quantize(
    source: Checkpoint,
    output: Output,
    data: Calibration = None,
    task: Task = None,
    zero_shot: ZeroShot = False,
    random: Random = False,
    samples: Samples = 128,
    method: Method = "mse",
    rounding: Rounding = "gptq",
    functions: Functions = None,
    prune: Prune = None,
    plan: PlanFile = None,
    bits: Bits = None,
    weight_bits: WeightBits = None,
    residual_bits: ResidualBits = None,
    labels: Labels = None,
    seed: Seed = 0,
    threads: Threads = None,
    force: Force = False,
) -> Answer:
    """Turn a checkpoint into an integer-only artifact.

    [b]Examples[/]

      intq quantize microsoft/resnet-50 --data photos/ -o resnet50-int8
      intq quantize microsoft/resnet-50 --zero-shot -o resnet50-int8
      intq quantize textattack/roberta-base-SST-2 --task sst2 -o sst2-int8
      intq quantize my-bert/ --data reviews.csv --bits '*.output.dense=16' -o reviews-int8
      intq quantize quartznet15x5.nemo --data LibriSpeech/dev-clean -o quartznet-int8
      intq quantize roberta-base --random -o roberta-int8

    [dim]JSON: {"artifact", "model", "nodes", "parameters", "bytes", "overflow": {"proven", "widest_bits", "node"},
    "calibration": "data", "zero-shot" or "random", "notices": [...]}; parameters: weights, those of embeddings too; one
    of 16 bits is two of 8[/]
    """
    check_output(output, force)
    use_threads(threads)
    if random and (data or task):
        given = "--data" if data else "--task"
        raise IntqError(f"--random makes up its own data: leave out {given}, or give a checkpoint without --random")
    if zero_shot and (data or task or random):
        given = "--data" if data else "--task" if task else "--random"
        raise IntqError(f"--zero-shot calibrates a trained checkpoint without data: leave out {given} or --zero-shot")
    if not (random or data or task or zero_shot):
        raise IntqError(
            "no calibration data: give --data a folder of images or recordings or a file of texts like those the "
            "network will see, or name the task of GLUE that the checkpoint is for with --task, or do without with "
            "--zero-shot"
        )
    options = {"method": method, "rounding": rounding, "functions": functions, "residual_bits": residual_bits}
    options |= planned_bits(plan, bits, weight_bits) | pruning(prune, seed)
    options = {name: value for name, value in options.items() if value}
    domain, checkpoint = opened(source, seed, random=random, task=task, labels=labels)
    refuse_options(domain, task=task)
    given = ({"task": task} if task else {}) | ({"zero_shot": True} if zero_shot else {})
    graph = integer_network(
        domain, checkpoint, data, seed, random=random, samples=samples, plan=plan, **given, **options
    )
    proof = graph.verify()
    weights = [n.constants[name] for n in graph.nodes for name in WEIGHTS & n.constants.keys()]
    distinct = {hashlib.sha256(array.tobytes()).digest(): array.size for array in weights}  # two bytes read the same
    with artifact.new_folder(output, overwrite=force) as new:
        artifact.write(graph, new)
        domain.save(checkpoint, new)
    size = folder_bytes(output)
    value = {
        "artifact": str(output),
        "model": graph.metadata["model"],
        "nodes": len(graph.nodes),
        "parameters": sum(distinct.values()),
        "bytes": size,
        "overflow": {"proven": True, "widest_bits": proof.widest_bits, "node": proof.node},
        "calibration": graph.metadata.get("calibration", "random" if random else "data"),
        "notices": graph.metadata.get("notices", []),
    }
    return Answer(
        value,
        (
            f"[b]{value['model']}[/] now computes with integers alone: {len(graph.nodes)} nodes, {size / 1e6:.1f} MB.",
            f"No sum can overflow: the widest needs {proof.widest_bits} of 32 bits, in {proof.node}.",
            *(f"Note: {escape(notice)}" for notice in value["notices"]),
            f"[dim]Next: intq run {output} INPUT | intq verify {output} | intq bench {output}[/]",
        ),
    )


@command("eval")
def evaluate(
    network: FloatOrFolder,
    data: Labelled = None,
    task: GlueTask = None,
    beside: Beside = None,
    labels: Labels = None,
    truncate: Truncate = False,
    download: Download = None,
    language_model: LanguageModel = None,
    limit: Limit = None,
    batch: Batch = 16,
    threads: Threads = None,
) -> Answer:
    """Measure accuracy on labelled data.

    [b]Examples[/]

      intq eval resnet50-int8 --data imagenet/val
      intq eval float:microsoft/resnet-50 --data imagenet/val
      intq eval sst2-int8 --task sst2
      intq eval reviews-int8 --data reviews.csv --float my-bert/
      intq eval artifacts/ --task glue --data glue_data/
      intq eval quartznet-int8 --data LibriSpeech/dev-clean

    A user's own texts: the columns are found by name, text or sentence, or a pair (sentence1 and sentence2, premise
    and hypothesis, question and passage, ...), and label or score; words and their tags are lists in JSONL, or CoNLL.
    With --task glue, DIR holds one artifact for each task; it remembers its task, otherwise its name tells.

    [dim]JSON: {"task", "examples", "metrics": {name: share of 1}}; of recordings also "hours" and "notices"; with
    --float also "float": {...} and "same", the share of equal answers. Of --task glue: {"task", "tasks": [{"artifact",
    ...as before}], "score", "float_score", "missing", "notices"}; score: the mean of the tasks' mean metrics[/]
    """
    use_threads(threads)
    open_network = functools.partial(network_of, labels=labels, truncate=truncate, threads=threads)
    own = {"download": download, "language_model": language_model}
    own = {name: value for name, value in own.items() if value}
    measure_one = functools.partial(measured, data=data, limit=limit, batch=batch, own=own)
    arithmetic = "floating point" if network.startswith("float:") else "integers"
    if task and task.lower() == "glue":
        value = glue(network, beside, open_network, measure_one)
        return Answer(value, show.glue(value, arithmetic))
    found = open_network(network, task)
    other = open_network(f"float:{beside.replace('{task}', task or '')}", task) if beside else None
    value = measure_one(found, task, other)
    return Answer(value, show.accuracy(value, found.metadata["model"], arithmetic))


@command("compile")
def compile_(
    folder: Folder,
    target: Target = "cpu",
    output: CopyTo = None,
    constants: Constants = False,
    force: Force = False,
) -> Answer:
    """Compile an artifact into one library.

    The library is kept in the artifact, where the other commands and intq.compile load it at once. Without it they
    compile for this machine and keep theirs. No GPU is needed to compile for one.

    [b]Examples[/]

      intq compile resnet50-int8
      intq compile resnet50-int8 --target "llvm -mcpu=icelake-server" -o resnet50-icelake
      intq compile resnet50-int8 --target "llvm -mtriple=aarch64-linux-gnu" -o resnet50-arm
      intq compile resnet50-int8 --target nvidia/nvidia-t4 -o resnet50-t4

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
                copy_folders(folder, new)
                name = _keep(graph, library, new, constants)
        else:
            name = _keep(graph, library, folder, constants)
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


def _keep(graph, library, folder: Path, constants: bool) -> str:
    """Writes a library, and the constants that it takes if they are wanted; the library's name."""
    if constants:
        import_module("intq.kernels.runtime").save_constants(graph, library, folder)
    return library.keep(folder).name


@command("run")
def run(
    folder: Folder,
    inputs: Inputs,
    pair: Pair = None,
    truncate: Truncate = False,
    language_model: LanguageModel = None,
    top: Top = 5,
    threads: Threads = None,
) -> Answer:
    """Run an artifact on images, texts or recordings: best labels with integer scores, or transcripts.

    [b]Examples[/]

      intq run resnet50-int8 photos/*.jpg --top 1 --json
      intq run sst2-int8 "a gripping, beautifully shot film"
      intq run mnli-int8 "A man plays the flute." --pair "Someone makes music."
      intq run sst2-int8 - < reviews.txt
      intq run quartznet-int8 talk.wav meeting.flac

    [dim]JSON: [{"input", "pair", ...}] with "top": [{"label", "index", "score"}] of a classifier; "score" and "value",
    the real number it means, of a regression; "words": [{"word", "label", "score"}]; or "embedding" and "similarity",
    the cosine with the first text's. Of recordings "text", "top" or "parts": [{"label", "start", "end"}], with
    "seconds", "real_time_factor" and "notices"[/]
    """
    found = network_of(str(folder), truncate=truncate, threads=threads)
    given = {name: value for name, value in (("pair", pair), ("language_model", language_model)) if value}
    refuse_options(found.domain, **given)
    with step(f"Running {folder}") as advance:
        value = found.domain.run(
            found.predict, found.reader, found.metadata, inputs, top=top, progress=advance, **given
        )
    return Answer(value, show.answers(value))


@command("verify")
def verify(folder: Folder, seed: Seed = 0, threads: Threads = None) -> Answer:
    """Prove an artifact exact, overflow-free and free of floating point.

    Every backend is compared with the reference to the last bit on random and extreme inputs, texts and recordings
    also alone with themselves in a padded batch, the bounds are derived again, and the compiled kernels are
    disassembled. Exit code 1 when any of it does not hold.

    [b]Examples[/]

      intq verify resnet50-int8
      intq verify resnet50-int8 --json | jq .mismatches

    [dim]JSON: {"mismatches": {"torch", "cpu", "alone_equals_padded" (not of images)}, "float_instructions",
    "overflow": {"proven", "widest_bits", "node"}, "layers": [{"name", "sqnr_db"}], ...}; layers worst first, against
    the float network on its calibration data[/]
    """
    use_threads(threads)
    graph = artifact.load(folder)
    network = compiled(folder, threads)
    with step(f"Verifying {folder}") as advance:
        value = intq.verify(graph, network=network, seed=seed, progress=advance)
    return Answer(
        value, show.verdict(value), failed=bool(value["float_instructions"] or sum(value["mismatches"].values()))
    )


@command("functions")
def functions() -> Answer:
    """Measure how far the integer functions are from the real ones, beside I-BERT's polynomials.

    Every input there is of 8 bits (tables) and of 16 bits (curves of 32 polynomials), with 16-bit results; the square
    root and the division are compared with Python's integers.

    [b]Examples[/]

      intq functions
      intq functions --json | jq '.[] | select(.function == "gelu")'

    [dim]JSON: [{"function", "interval", "bits", "compared", "error", "ibert_error", "ratio", "exact"}]; errors are the
    largest absolute ones, "ratio" is how many times larger I-BERT's is[/]
    """
    from intq.approximation import table

    with step("Measuring functions"):
        rows = table()
    return Answer(rows, show.functions(rows))


@command("bench")
def bench(
    network: FolderOrName,
    batch: BenchBatch = 1,
    sequence: Sequence = None,
    audio: Audio = None,
    seconds: Seconds = 3.0,
    latencies: LatencyOutput = None,
    offer: Offer = OFFERED,
    predict: Predict = None,
    seed: Seed = 0,
    threads: Threads = None,
) -> Answer:
    """Measure time, memory, and what each layer reaches of the peak.

    The network runs in a process of its own, as where it is deployed. The peak is that of a loop of the same
    instruction, measured in turn with the layers.

    [b]Examples[/]

      intq bench resnet50-int8 --threads 2
      intq bench mobilenet_v2 --json
      intq bench roberta-base --batch 8 --sequence 128
      intq bench my-resnet/ --latencies times.json --offer W8A8,W4A8
      intq bench resnet50 --batch 8 --predict nvidia/nvidia-t4

    With --latencies it is the table for `intq search --latencies`: each layer's time in each pair of bits. The same
    network with the same offer is measured once on a machine; then the table comes from the cache.

    [dim]JSON: {"model", "threads", "batch", "sequence", "audio", "min_ms", "median_ms", "peak_memory_mb", "load_ms",
    "instruction_set", "peak_gops", "layers": [{"name", "op", "k", "ms", "gops", "peak_share"}]}; sequence is null for
    what is no text, audio (seconds) for what is no recording. With --latencies: {"latencies", "network", "target",
    "threads", "kept", "other", "layers": {name: {"W4A8": seconds}}}; other: of all that is no layer; kept: the cache's
    file. With --predict: {"model", "gpu", "batch", "sequence", "audio", "ms", "layers": [{"name", "op", "ms", "bound",
    "filled"}]}; bound: by "products", "operands" on their way to them, "bytes" of memory or the "gap" between kernels;
    filled: the share of the products that are taken which the layer needs, null where tensor cores take none[/]
    """
    if latencies:
        if batch != 1:
            raise IntqError("a table of latencies is of single inputs: leave out --batch or --latencies")
        value = latency_table(network, latencies, offer, sequence, audio, seed, threads)
        return Answer(value, show.latencies(value))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(network)
        if not folder.exists():
            if network not in domains.architectures():
                known = ", ".join(domains.architectures())
                raise IntqError(f"{network} is no artifact's folder, nor an architecture; there are {known}")
            folder = Path(temporary, network)
            domain, checkpoint = opened(network, seed, random=True)
            graph = integer_network(domain, checkpoint, None, seed, random=True)
            artifact.save(graph, folder)
        graph = artifact.load(folder)
        if predict:
            value = prediction(graph, predict, batch, sequence, audio)
            return Answer(value, show.prediction(value))
        compiled(folder, threads)
        with step(f"Timing {network}"):
            value = measure(folder, threads, batch, sequence, audio, seconds)
    return Answer(value, show.timing(value))
