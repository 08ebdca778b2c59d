"""Origin: what an artifact says of the trace, the settings and the versions that it was made with."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from kvpredict.learn.evaluate import FitReport
from kvpredict.trace.trace import Trace

__all__ = ["origin"]


def origin(trace: Trace, report: FitReport) -> dict[str, Any]:
    """Return what an artifact says of its origin: plain JSON, without nan."""
    packages = ("kvpredict", "numpy", "numba", "scikit-learn", "lightgbm", "torch")
    return {
        "trace": {
            "name": trace.name,
            "fingerprint": trace.fingerprint,
            "requests": len(trace),
            "unique": trace.unique,
        },
        "settings": report.settings,
        "metrics": {k: (v if np.isfinite(v) else None) for k, v in report.metrics.items()},
        "importance": report.importance,
        "calibration": report.calibration,
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in packages}},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
