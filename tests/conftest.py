"""Fixtures shared by all tests."""

from pathlib import Path

import pytest

SHARED_TRACES = Path(__file__).resolve().parents[2] / "shared" / "traces"


@pytest.fixture(scope="session")
def shared_traces() -> Path:
    """Folder of public traces that are not part of the project; tests that need it skip where it is absent."""
    if not SHARED_TRACES.is_dir():
        pytest.skip(f"public traces are not at {SHARED_TRACES}")
    return SHARED_TRACES
