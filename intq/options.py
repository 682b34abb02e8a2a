"""What the commands' options and arguments are called, what they take, and how `--help` explains them."""

from pathlib import Path
from typing import Annotated

import typer

# ---- of several commands -----------------------------------------------------------------------------------------

Seed = Annotated[int, typer.Option(help="Seed of everything random: weights, made-up data, the choice of samples.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads to compute with.", show_default="all cores")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace the output folder if it is an artifact.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="An artifact: a folder written by `intq quantize`.")]
Labels = Annotated[
    str | None,
    typer.Option(metavar="A,B,...", help="Call the network's classes so, in its order.", show_default="as it does"),
]
LanguageModel = Annotated[
    str | None,
    typer.Option(
        "--language-model",
        metavar="FILE",
        help="Of recordings: search transcripts with an n-gram model (KenLM). It computes outside the integer network.",
    ),
]
Truncate = Annotated[bool, typer.Option("--truncate", help="Cut texts that are too long for the network.")]

# ---- quantize ----------------------------------------------------------------------------------------------------

Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A folder written by save_pretrained, a torchvision state dict (.pth), a NeMo archive (.nemo), a hub id, "
        "or with --random the name of an architecture.",
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write.")]
Task = Annotated[
    str | None,
    typer.Option(metavar="TASK", help="Of texts: a task of GLUE (sst2, mnli, stsb, ...), from the hub or in --data."),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="Input like what the network will see; labels are not needed: a folder of images or of recordings, a "
        "file of texts (.tsv, .csv, .jsonl, .txt), or with --task the folder of its official files.",
    ),
]
ZeroShot = Annotated[
    bool,
    typer.Option(
        "--zero-shot",
        help="Calibrate without data: on samples made to fit the statistics that the network's BatchNorms keep of "
        "its training, or on noise and random words where it has none.",
    ),
]
Random = Annotated[bool, typer.Option("--random", help="Random weights and data: for exactness and speed.")]
Samples = Annotated[int, typer.Option(min=1, help="Calibrate on so many inputs at most.")]
Method = Annotated[str, typer.Option(help="How ranges are chosen: mse, percentile or minmax.")]
Functions = Annotated[
    str | None,
    typer.Option(
        help="GELU, softmax and the like as they are (exact), or as I-BERT approximates them (ibert).",
        show_default="as the checkpoint was trained",
    ),
]
Bits = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LAYERS=BITS",
        help="In how many bits (4, 8, 16) layers read their input, by pattern; repeatable.",
        show_default="8; of a Conformer 16",
    ),
]
WeightBits = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LAYERS=BITS",
        help="How many bits (2, 4, 8, 16) layers' weights have, by pattern; repeatable.",
        show_default="8; of a Conformer 16",
    ),
]
ResidualBits = Annotated[
    int | None,
    typer.Option(help="Width of the sums between blocks: 8, or 16 for accuracy.", show_default="8; of texts 16"),
]

Rounding = Annotated[
    str,
    typer.Option(
        help="How weights are rounded: nearest; gptq, which makes up for errors; or learned, for 4 bits and fewer "
        "(minutes; wider ones as by gptq)."
    ),
]
Prune = Annotated[
    str | None,
    typer.Option(
        metavar="NAME=SHAREx,...",
        help="First remove channels until so much is left, bops=0.5x or size=0.5x, those that matter least by the "
        "Hessian; 3x3 filters become 1x1 in between. For images; fine-tune afterwards.",
    ),
]
PlanFile = Annotated[
    Path | None,
    typer.Option("--plan", metavar="FILE", help="The bits of every layer, as `intq search` found them."),
]

# ---- search ------------------------------------------------------------------------------------------------------

PlanOutput = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The plan to write, JSON.")]
Budgets = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="NAME=LIMIT,...",
        help="What the network may cost, any of size, bops, latency and memory: size=7.5MB,bops=0.5x.",
    ),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(metavar="POINTS", help="Find the cheapest network that loses no more accuracy; needs labelled data."),
]
DropCost = Annotated[str, typer.Option(help="With --max-drop: what cheap means, size, bops, latency or memory.")]
Offer = Annotated[str, typer.Option(metavar="WxAy,...", help="Bits of weights and inputs that layers may have.")]
OFFERED = "W8A8,W4A8,W8A4,W4A4,W2A8,W2A4"
Keep = Annotated[
    list[str] | None, typer.Option(metavar="LAYERS", help="Layers that keep 8 bits, by pattern; repeatable.")
]
SearchMethod = Annotated[
    str, typer.Option("--method", help="ilp, or for comparison uniform, greedy, random, evolution or tpe.")
]
Trials = Annotated[int, typer.Option(min=1, help="Candidates that random, evolution and tpe may evaluate.")]
Sensitivity = Annotated[
    str,
    typer.Option(
        help="loss (what rounding a layer alone costs), hessian (HAWQ-V2: mean trace times squared error) or fisher "
        "(the same by squared gradients)."
    ),
]
SensitivitySamples = Annotated[
    int, typer.Option("--sensitivity-samples", min=2, help="Inputs on which sensitivity is measured.")
]
LatencyFile = Annotated[
    Path | None,
    typer.Option(
        "--latencies",
        metavar="FILE",
        help="Times of every layer from `intq bench --latencies`, for budgets of latency.",
        show_default="measured here, once",
    ),
]
Judging = Annotated[
    str | None,
    typer.Option(
        "--eval",
        metavar="DATA",
        help="Labelled examples by which --max-drop, evolution and tpe judge.",
        show_default="the held-out split of --data",
    ),
]

# ---- finetune ----------------------------------------------------------------------------------------------------

Trained = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="Labelled examples to train on, as `intq eval` takes them; their train split where they have one.",
    ),
]
Evaluated = Annotated[
    str | None,
    typer.Option(
        "--eval",
        metavar="DATA",
        help="Labelled examples on which accuracy is measured after each epoch.",
        show_default="the held-out split of --data",
    ),
]
Teacher = Annotated[
    str | None,
    typer.Option(metavar="CHECKPOINT", help="A float network to learn from, with the same labels: often CHECKPOINT."),
]
Distill = Annotated[
    float | None,
    typer.Option(
        min=0.0, max=1.0, help="The teacher's share of the loss; the labels have the rest.", show_default="0.5"
    ),
]
Hidden = Annotated[
    float, typer.Option(min=0.0, help="Weight of the distance from the float network's values at the ends of blocks.")
]
Temperature = Annotated[float, typer.Option(min=0.01, help="Of the teacher's answers.")]
Epochs = Annotated[float, typer.Option(min=0.0, help="How often all examples are seen.")]
TrainBatch = Annotated[int, typer.Option(min=1, help="Examples a step.")]
Rate = Annotated[
    float | None,
    typer.Option(
        "--lr",
        min=0.0,
        help="Learning rate, relative: 0.001 moves a weight by a thousandth of the largest.",
        show_default="0.001 for images, else 0.0001; with --prune ten times that",
    ),
]
Optimizer = Annotated[str, typer.Option(help="adamw, sgd or adahessian.")]
LearnedSteps = Annotated[
    str, typer.Option("--steps", help="Learn where activations clip (pact), or all steps (lsq), too.")
]
Settle = Annotated[
    bool,
    typer.Option("--settle", help="Settle BatchNorms' statistics on the calibration samples before they are folded."),
]
WeightDecay = Annotated[float, typer.Option(min=0.0, help="By how much weights shrink, times the learning rate.")]

# ---- report ------------------------------------------------------------------------------------------------------

Page = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page to write, HTML.")]
ShownPlan = Annotated[
    Path | None,
    typer.Option(
        "--plan", metavar="FILE", help="The plan of `intq search`.", show_default="that which the artifact was made by"
    ),
]
ReportEval = Annotated[
    str | None, typer.Option("--eval", metavar="DATA", help="Labelled examples: measure accuracy on them.")
]
Besides = Annotated[
    list[Path] | None,
    typer.Option(metavar="DIR", help="With --eval: another artifact of the network to measure too; repeatable."),
]
ReportCheckpoint = Annotated[
    str | None,
    typer.Option(
        metavar="CHECKPOINT",
        help="The float network: with --data its loss landscape and eigenvalues, with --eval its accuracy.",
    ),
]
ReportVerify = Annotated[bool, typer.Option("--verify", help="Prove the artifact, as `intq verify` does.")]
ReportBench = Annotated[bool, typer.Option("--bench", help="Time it, as `intq bench` does.")]
ReportSamples = Annotated[int, typer.Option("--samples", min=1, help="Inputs on which the loss is measured.")]

# ---- eval --------------------------------------------------------------------------------------------------------

FloatOrFolder = Annotated[
    str,
    typer.Argument(
        metavar="DIR|float:CHECKPOINT",
        help="An artifact, or the float network of a checkpoint to compare it with. For --task glue a folder that "
        "holds one for each task.",
    ),
]
Labelled = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="Images: an ImageFolder, the files of CIFAR or MNIST, or a `datasets` name. Texts: a TSV, CSV, JSONL "
        "or CoNLL file with labels, a `datasets` name, or with --task the folder of the official files. "
        "Recordings: LibriSpeech's folders, or a manifest (CSV, JSONL) with transcripts.",
    ),
]
GlueTask = Annotated[
    str | None,
    typer.Option(
        metavar="TASK",
        help="Of texts: a task of GLUE (cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli), from the hub or in "
        "--data; or glue, all that DIR holds an artifact for.",
    ),
]
Beside = Annotated[
    str | None,
    typer.Option(
        "--float",
        metavar="CHECKPOINT",
        help="Of texts: put this float network beside it; {task} stands for the task's name.",
        show_default="of --task glue, what each artifact was made from",
    ),
]
Download = Annotated[
    str | None,
    typer.Option(metavar="SUBSET", help="Of recordings: a subset of LibriSpeech, such as dev-clean, kept in --data."),
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="So many examples, drawn at random, at most.", show_default="all")
]
Batch = Annotated[int, typer.Option(min=1, help="Examples a batch.")]

# ---- compile, run ------------------------------------------------------------------------------------------------

Target = Annotated[
    str,
    typer.Option(help="[b]cpu[/], which is this machine, or any CPU or NVIDIA GPU as a TVM target.", metavar="TARGET"),
]
CopyTo = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="DIR", help="Write a copy of the artifact with the library.", show_default="DIR"
    ),
]
Constants = Annotated[
    bool,
    typer.Option(
        "--constants",
        help="Also write constants.params: what a program without Python gives the library (examples/cpp).",
    ),
]
Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGE|TEXT|AUDIO...",
        help="Files of images or recordings, or texts; - for lines of standard input, where a tab parts a pair.",
    ),
]
Pair = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="The second text of a pair, as often as there are first ones."),
]
Top = Annotated[int, typer.Option(min=1, help="Print so many labels.")]

# ---- bench -------------------------------------------------------------------------------------------------------

FolderOrName = Annotated[
    str,
    typer.Argument(
        metavar="DIR|NAME",
        help="An artifact, or an architecture to take with random weights; with --latencies a checkpoint or a name.",
    ),
]
LatencyOutput = Annotated[
    Path | None,
    typer.Option(
        "--latencies",
        metavar="FILE",
        help="Instead measure how long every layer takes in each of --offer's bits, and write the table, JSON.",
    ),
]
BenchBatch = Annotated[int, typer.Option(min=1, help="Inputs a run.")]
Sequence = Annotated[
    int | None, typer.Option(min=1, metavar="TOKENS", help="The tokens of each text.", show_default="128")
]
Audio = Annotated[
    float | None, typer.Option(min=0.01, metavar="SECONDS", help="The length of each recording.", show_default="10")
]
Seconds = Annotated[float, typer.Option(min=0, help="Time the whole network for so long.")]
Predict = Annotated[
    str | None,
    typer.Option(
        metavar="GPU",
        help="Instead tell the least time of each layer on a GPU that need not be here, from its published limits: "
        "nvidia/nvidia-t4, nvidia/nvidia-a100 or nvidia/nvidia-h100.",
    ),
]
