"""intq turns a trained network into one that computes with integers alone and runs bit for bit the same everywhere.

graph = intq.quantize(model, calibration=batches)   # any torch.nn.Module
graph.save("net")                                   # graph.json + weights.safetensors
network = intq.compile("net")                       # the host CPU, through TVM
scores = network(pixels)                            # uint8 (n, h, w, 3) -> int32 (n, classes)
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

__version__ = "0.1.0"

# A wheel holds vision/, nlp/, speech/ and kernels/ inside this package; a checkout holds them beside it.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file():
    __path__.append(str(_checkout))

# Loaded on first use: a deployed network must not pay for (or even have) torch.
_LAZY = {
    "quantize": ("intq.quantize", "quantize"),
    "load": ("intq.artifact", "load"),
    "compile": ("intq.kernels.runtime", "compile"),
    "verify": ("intq.verification", "verify"),
    "Graph": ("intq.graph", "Graph"),
    "IntqError": ("intq.errors", "IntqError"),
}
__all__ = ["__version__", *_LAZY]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'intq' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """Importing the module intq.quantize would bind it to that name in the package, where the function has to stay."""

    def __setattr__(self, name: str, value) -> None:
        if not (name in _LAZY and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
