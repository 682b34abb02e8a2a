"""The dependency arrows: who may import whom, read from the import statements of every module.

errors <- fixedpoint <- value <- ops <- graph <- {backends, artifact} <- {quantize, verification, bench} <- cli
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Each room sees the rooms above it and itself. A module that is in no room fails the test: give it its place here.
ROOMS = (
    {"intq.errors", "intq.ranking", "intq.lines", "intq.packing", "intq.documents", "intq.budgets"},
    {"intq.fixedpoint", "intq.dims"},
    {"intq.value"},
    {"intq.curves"},
    {"intq.ops"},
    {"intq.bounds"},
    {"intq.graph"},
    {"intq.artifact", "intq.cost"},
    {"intq.problem"},
    {"intq.search", "intq.precision"},
    {"intq.baselines"},
    {"intq.functions", "intq.backends"},
    {
        "intq.frontend",
        "intq.operators",
        "intq.floatgraph",
        "intq.rewriter",
        "intq.aten",
        "intq.capture",
        "intq.transformer",
        "intq.tokens",
        "intq.frames",
        "intq.widths",
        "intq.affines",
        "intq.simplify",
        "intq.calibrate",
        "intq.equalize",
        "intq.migrate",
        "intq.plan",
        "intq.quants",
        "intq.learned_rounding",
        "intq.rounding",
        "intq.approximation",
        "intq.emit",
        "intq.emit_frames",
        "intq.emit_layers",
        "intq.emit_moves",
        "intq.emit_transformer",
        "intq.quantize",
        "intq.ablation",
        "intq.batchnorm",
        "intq.optimizers",
        "intq.finetune",
        "intq.dataflow",
        "intq.zero_shot",
        "intq.losses",
        "intq.processes",
        "intq.hessian",
        "intq.sensitivity",
        "intq.spectrum",
        "intq.landscape",
        "intq.channels",
        "intq.prune",
    },
    {"intq.assets", "intq.pretrained", "intq.probes", "intq.verification", "intq.bench", "intq.domains"},
    {
        "intq.console",
        "intq.show",
        "intq.networks",
        "intq.evaluation",
        "intq.options",
        "intq.app",
        "intq.tuning",
        "intq.commands",
        "intq.commands_finetune",
        "intq.commands_search",
        "intq.commands_report",
        "intq.searching",
        "intq.reporting",
        "intq.plots",
        "intq.report",
        "intq.latency",
        "intq.cli",
        "intq.__main__",
    },
)
TRAINING = {name for room in ROOMS if "intq.quantize" in room for name in room}
# The outer houses, and what they may see of intq.
KERNELS_SEE = {
    *("intq.errors", "intq.packing", "intq.fixedpoint", "intq.dims"),
    *("intq.value", "intq.curves", "intq.ops", "intq.graph"),
}
DOMAINS_SEE = set().union(*ROOMS[:-1])
DOMAINS = ("intq.vision", "intq.nlp", "intq.speech")
PRETRAINED = {"intq.pretrained", *DOMAINS}

# Third parties that may be imported only where listed; NumPy and safetensors may be imported anywhere.
ONLY_IN = {
    "torch": {
        "intq.backends.torch",
        "intq.backends.real",
        "intq.backends.steps",
        "intq.backends.straight_through",
        "intq.functions",
        "intq.tuning",
        "intq.searching",
        *TRAINING,
        *PRETRAINED,
    },
    "tvm": {"intq.kernels"},
    "tvm_ffi": {"intq.kernels"},
    "PIL": {"intq.vision"},
    "transformers": PRETRAINED,
    "huggingface_hub": PRETRAINED,
    "datasets": set(DOMAINS),
    "scipy": {"intq.search", *DOMAINS},
    "optuna": {"intq.baselines"},
    "matplotlib": {"intq.plots"},
    "sklearn": {"intq.nlp"},
    "yaml": {"intq.speech"},
    "sentencepiece": {"intq.speech"},
    "onnx": {"intq.speech"},
    "soundfile": {"intq.speech"},
    "soxr": {"intq.speech"},
    "jiwer": {"intq.speech"},
    "ctc_beam_decoder": {"intq.speech"},
    "torchaudio": {"intq.speech"},
    "G722": {"intq.speech"},
    "accelerate": {"intq.processes"},
    "typer": {"intq.app", "intq.console", "intq.options"},
    "rich": {"intq.commands", "intq.console", "intq.show"},
}
ANYWHERE = {"numpy", "safetensors"}
# Methods that reach a room below by name, on call: Graph.save writes an artifact.
ON_CALL = {("intq.graph", "intq.artifact")}


def modules() -> dict[str, Path]:
    """Every module of the package by its name in code: vision/models/resnet.py is intq.vision.models.resnet."""
    found = {}
    houses = {"intq": "intq", **{name: f"intq.{name}" for name in ("vision", "nlp", "speech", "kernels")}}
    for folder, package in houses.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def within(name: str, places: set[str]) -> bool:
    return any(name == place or name.startswith(place + ".") for place in places)


def imports(name: str) -> set[str]:
    """The modules that a module's import statements name, at any depth of its code."""
    found = set()
    is_package = MODULES[name].name == "__init__.py"
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = name.split(".")[: len(name.split(".")) - node.level + is_package]
                base = ".".join([*parents, base]) if base else ".".join(parents)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in MODULES else base)
    return found


def sees(name: str) -> set[str]:
    """The rooms of intq whose modules `name` may import."""
    if within(name, {"intq.kernels"}):
        return KERNELS_SEE | {"intq.kernels"}
    for domain in DOMAINS:
        if within(name, {domain}):
            return DOMAINS_SEE | {domain}
    if name == "intq":
        return set()
    for rank, room in enumerate(ROOMS):
        if within(name, room):
            return set().union(*ROOMS[: rank + 1])
    pytest.fail(f"{name} has no place in ROOMS: say which modules it may import")


@pytest.mark.parametrize("name", MODULES)
def test_imports_follow_the_arrows(name):
    allowed = sees(name)
    for imported in sorted(imports(name)):
        top = imported.split(".")[0]
        if top == "intq":
            ok = imported == "intq" or within(imported, allowed) or (name, imported) in ON_CALL
            assert ok, f"{name} may not import {imported}: the arrows are {__doc__.strip().splitlines()[-1]}"
        elif top in ONLY_IN:
            assert within(name, ONLY_IN[top]), f"{name} may not import {imported}: only {sorted(ONLY_IN[top])} do"
        else:
            assert top in sys.stdlib_module_names | ANYWHERE, f"{name} imports {imported}, which no extra declares"


def test_the_api_is_lazy_and_survives_importing_its_modules():
    # `import intq` costs nothing; and after `import intq.quantize`, intq.quantize is still the function.
    code = (
        "import sys, intq\n"
        "assert not {'numpy', 'torch', 'tvm'} & set(sys.modules), sorted(sys.modules)\n"
        "import intq.quantize, intq.verification\n"
        "assert intq.quantize.__name__ == 'quantize' and callable(intq.quantize), intq.quantize\n"
        "assert callable(intq.verify), intq.verify\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
