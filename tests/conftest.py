"""Fixtures shared by all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Whichever example comes first compiles, and on a slow machine that takes as long as it takes.
settings.register_profile("compiled", deadline=None)
settings.load_profile("compiled")

SHARED_TRACES = Path(__file__).resolve().parents[2] / "shared" / "traces"


@pytest.fixture(scope="session")
def shared_traces() -> Path:
    """Folder of public traces that are not part of the project; tests that need it skip where it is absent."""
    if not SHARED_TRACES.is_dir():
        pytest.skip(f"public traces are not at {SHARED_TRACES}")
    return SHARED_TRACES


@pytest.fixture(autouse=True)
def _own_tracking_uri() -> Iterator[None]:
    """Forget what ``mlflow.set_tracking_uri`` leaves in the environment, so that no test sees another's store."""
    before = os.environ.pop("MLFLOW_TRACKING_URI", None)
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if before is not None:
        os.environ["MLFLOW_TRACKING_URI"] = before
