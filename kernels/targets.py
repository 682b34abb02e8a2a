"""Which target TVM compiles for, and which instruction set the kernels use there."""

from __future__ import annotations

import json
from dataclasses import dataclass

import tvm

from intq.errors import IntqError
from intq.kernels.cpu.isa import ISAS, Isa

ARCHITECTURES = ("x86_64", "amd64", "aarch64", "arm", "riscv")


@dataclass(frozen=True)
class Choice:
    """A target and the instruction set that the kernels use on it."""

    target: tvm.target.Target
    isa: Isa

    @property
    def triple(self) -> str:
        """LLVM's name of the machine, such as "aarch64-linux-gnu"."""
        return _triple(self.target)


def choose(target: str | dict = "cpu", isa: str | None = None) -> Choice:
    """The TVM target of "cpu" (this machine), a string such as "llvm -mcpu=icelake-server" or JSON, or a dict.

    The instruction set is the best that the target has, or ``isa``. Raises IntqError for a target that TVM does not
    know, that is no CPU, or that lacks ``isa``.
    """
    parsed = _host() if target == "cpu" else _parse(target)
    has = _features(parsed)
    found = [name for name, candidate in ISAS.items() if set(candidate.features) <= has]
    if isa is not None and isa not in found:
        raise IntqError(f"the target {target} has no {isa!r}: choose one of {', '.join(found)}")
    return Choice(parsed, ISAS[isa or found[0]])


def _host() -> tvm.target.Target:
    llvm = tvm.get_global_func
    features = llvm("tvm.codegen.llvm.GetHostCPUFeatures")()
    return tvm.target.Target(
        {
            "kind": "llvm",
            "mtriple": llvm("tvm.codegen.llvm.GetDefaultTargetTriple")(),
            "mcpu": llvm("tvm.codegen.llvm.GetHostCPUName")(),
            "mattr": sorted(f"+{name}" for name, has in features.items() if has),
        }
    )


def _parse(target: str | dict) -> tvm.target.Target:
    try:
        if isinstance(target, str) and target.lstrip().startswith("{"):
            target = json.loads(target)
        if isinstance(target, str):
            kind, *options = target.split()
            pairs = [option.lstrip("-").partition("=") for option in options]
            target = {"kind": kind} | {key: v.split(",") if key == "mattr" else v for key, _, v in pairs}
        parsed = tvm.target.Target(target)
    except Exception as error:  # TVM raises whatever its parser met
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise IntqError(f"TVM does not know the target {target}: {reason}") from None
    if parsed.kind.name != "llvm":
        raise IntqError(f"the target must be a CPU, of kind llvm; got {parsed.kind.name}")
    # LLVM ends the process on a name that it does not know: ask first.
    triple, cpu = _triple(parsed), str(parsed.attrs.get("mcpu", ""))
    if not any(_architecture(triple).startswith(prefix) for prefix in ARCHITECTURES):
        raise IntqError(f"TVM does not know the target {target}: no architecture {_architecture(triple)!r}")
    if cpu and not tvm.get_global_func("target.llvm_is_valid_cpu")(cpu, triple):
        raise IntqError(f"TVM does not know the target {target}: {_architecture(triple)} has no processor {cpu!r}")
    return parsed


def _triple(target: tvm.target.Target) -> str:
    return str(target.attrs.get("mtriple", "")) or tvm.get_global_func("tvm.codegen.llvm.GetDefaultTargetTriple")()


def _architecture(triple: str) -> str:
    return triple.partition("-")[0]


def _features(target: tvm.target.Target) -> set[str]:
    """LLVM's names of what the target's processor has."""
    if _architecture(_triple(target)) not in ("x86_64", "amd64"):
        return set()
    return {str(name) for name in tvm.get_global_func("target.llvm_get_cpu_features")(target)}
