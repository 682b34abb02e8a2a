"""Where the parts of CUDA lie: NVIDIA's wheels beside this package, or a toolkit installed on the machine.

The wheels come first, since the extra ``intq[cuda]`` pins them. All parts are of CUDA 13, as TVM's runtime is.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from pathlib import Path
from shutil import which

from intq.errors import IntqError

MAJOR = 13
INSTALL = "pip install 'intq[cuda]'"


def homes() -> list[Path]:
    """The folders that hold CUDA's lib/ and bin/: the wheels', then CUDA_HOME and CUDA_PATH."""
    spec = importlib.util.find_spec("nvidia")
    wheels = [Path(place) / f"cu{MAJOR}" for place in spec.submodule_search_locations or ()] if spec else []
    named = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    return [home for home in (*wheels, *named) if home.is_dir()]


def library(name: str, package: str) -> ctypes.CDLL:
    """A shared library of CUDA, such as ``libnvrtc.so.13``; where no home has it, the system's.

    Raises IntqError, naming the ``package`` on PyPI, where it is nowhere.
    """
    for home in homes():
        for folder in ("lib64", "lib"):
            if (home / folder / name).is_file():
                return ctypes.CDLL(str(home / folder / name), ctypes.RTLD_GLOBAL)
    try:
        return ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
    except OSError:
        raise IntqError(f"{name} of CUDA {MAJOR} is not installed: {INSTALL} brings it (package {package})") from None


def program(name: str, package: str) -> Path:
    """A program of CUDA, such as ``cuobjdump``, from a home's bin/ or the PATH.

    Raises IntqError, naming the ``package`` on PyPI, where it is nowhere.
    """
    found = which(name, path=os.pathsep.join(str(home / "bin") for home in homes())) or which(name)
    if found is None:
        raise IntqError(f"{name} of CUDA {MAJOR} is not installed: {INSTALL} brings it (package {package})")
    return Path(found)
