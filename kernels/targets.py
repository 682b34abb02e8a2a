"""Which target TVM compiles for, and which instruction set the kernels use there."""

from __future__ import annotations

import json
from dataclasses import dataclass

import tvm

from intq.errors import IntqError
from intq.kernels.cpu.isa import ISAS, Isa
from intq.kernels.cuda.arch import Arch, arch_of

ARCHITECTURES = ("x86_64", "amd64", "aarch64", "arm", "riscv")


@dataclass(frozen=True)
class Choice:
    """A target and what the kernels use on it: a CPU's instruction set, or a GPU's architecture."""

    target: tvm.target.Target
    isa: Isa | Arch

    @property
    def gpu(self) -> bool:
        return isinstance(self.isa, Arch)

    @property
    def triple(self) -> str:
        """LLVM's name of the machine, such as "aarch64-linux-gnu"; with a GPU, of the one that it is in."""
        return _triple(self.target.host if self.gpu else self.target)


def choose(target: str | dict = "cpu", isa: str | None = None) -> Choice:
    """The TVM target of "cpu" (this machine), a string such as "llvm -mcpu=icelake-server" or JSON, or a dict.

    A GPU is one of TVM's names ("nvidia/nvidia-t4"), "cuda -arch=sm_75", or a dict of kind cuda, which may name its
    "host"; by default that is any processor of this machine's family.
    The instruction set is the best that the target has, or ``isa``. Raises IntqError for a target that TVM does not
    know, that is neither a CPU nor one of NVIDIA's GPUs, or that lacks ``isa`` or tensor cores for 8-bit integers.
    """
    parsed = _host() if target == "cpu" else _parse(target)
    if parsed.kind.name == "cuda":
        if isa is not None:
            raise IntqError(f"the target {target} has no instruction set to choose, got {isa!r}")
        return Choice(parsed, arch_of(str(parsed.attrs["arch"])))
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
        parsed = _read(target)
    except Exception as error:  # TVM raises whatever its parser met
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise IntqError(f"TVM does not know the target {target}: {reason}") from None
    if parsed.kind.name not in ("llvm", "cuda"):
        raise IntqError(f"the target must be a CPU or a GPU, of kind llvm or cuda; got {parsed.kind.name}")
    cpu = parsed if parsed.kind.name == "llvm" else parsed.host
    if cpu.kind.name != "llvm":
        raise IntqError(f"the host of a GPU must be a CPU, of kind llvm; got {cpu.kind.name}")
    _check_processor(target, cpu)
    return parsed


def _read(target: str | dict) -> tvm.target.Target:
    if isinstance(target, str) and target.lstrip().startswith("{"):
        target = json.loads(target)
    if isinstance(target, str):
        kind, *options = target.split()
        pairs = [option.lstrip("-").partition("=") for option in options]
        named = {"tag": kind} if "/" in kind else {"kind": kind}
        target = named | {key: v.split(",") if key == "mattr" else v for key, _, v in pairs}
    if target.get("kind") == "cuda" and "arch" not in target:
        raise ValueError("say which GPU, by 'cuda -arch=sm_75' or by a name such as nvidia/nvidia-t4")
    parsed = tvm.target.Target(target)
    if parsed.kind.name == "cuda" and parsed.host is None:
        return parsed.with_host(tvm.target.Target({"kind": "llvm", "mtriple": _triple(None)}))
    return parsed


def _check_processor(target: str | dict, cpu: tvm.target.Target) -> None:
    """LLVM ends the process on a name that it does not know: ask first."""
    triple, name = _triple(cpu), str(cpu.attrs.get("mcpu", ""))
    if not any(_architecture(triple).startswith(prefix) for prefix in ARCHITECTURES):
        raise IntqError(f"TVM does not know the target {target}: no architecture {_architecture(triple)!r}")
    if name and not tvm.get_global_func("target.llvm_is_valid_cpu")(name, triple):
        raise IntqError(f"TVM does not know the target {target}: {_architecture(triple)} has no processor {name!r}")


def _triple(target: tvm.target.Target | None) -> str:
    """A CPU's; of None, this machine's."""
    named = str(target.attrs.get("mtriple", "")) if target else ""
    return named or tvm.get_global_func("tvm.codegen.llvm.GetDefaultTargetTriple")()


def _architecture(triple: str) -> str:
    return triple.partition("-")[0]


def _features(target: tvm.target.Target) -> set[str]:
    """LLVM's names of what the target's processor has."""
    if _architecture(_triple(target)) not in ("x86_64", "amd64"):
        return set()
    return {str(name) for name in tvm.get_global_func("target.llvm_get_cpu_features")(target)}
