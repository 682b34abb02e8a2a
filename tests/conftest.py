"""What all tests share: one thread per process (scripts/test runs one process per core) and the checkout's root."""

import os

# Set before NumPy, torch or TVM is imported anywhere: their thread pools read it once.
for variable in ("OMP_NUM_THREADS", "TVM_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout: the folder of pyproject.toml."""
    return Path(__file__).resolve().parent.parent
