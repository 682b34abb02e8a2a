"""What all tests share: one thread a process (scripts/test runs a process for each core) and the checkout's root."""

import os

# Set before NumPy and torch are imported anywhere: their thread pools read it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout: the folder of pyproject.toml."""
    return Path(__file__).resolve().parent.parent
