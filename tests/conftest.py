"""What all tests share: one thread a process (scripts/test runs a process for each core) and the checkout's root."""

import os

# Set before NumPy and torch are imported anywhere: their thread pools read it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("busy machine", deadline=None)  # how long an example takes says nothing of the code
settings.load_profile("busy machine")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout: the folder of pyproject.toml."""
    return Path(__file__).resolve().parent.parent
