"""Facts of a run that say where its figures came from: trace, versions, machine."""

import os
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from kvpredict.pipelines.config import Config
from kvpredict.trace import Trace

__all__ = ["machine", "plain_config", "trace_facts", "versions"]

PACKAGES = (
    "kvpredict", "numpy", "numba", "scikit-learn", "lightgbm", "torch", "pandas", "pyarrow", "hydra-core", "mlflow",
)  # fmt: skip


def trace_facts(trace: Trace) -> dict[str, Any]:
    """Return what a trace is: counts, span, shares that bound every miss ratio, and its origin."""
    counts = np.bincount(trace.ids, minlength=trace.unique) if len(trace) else np.zeros(0, np.int64)
    facts: dict[str, Any] = {
        "name": trace.name,
        "fingerprint": trace.fingerprint,
        "requests": len(trace),
        "unique": trace.unique,
        "requests_per_key": len(trace) / trace.unique if trace.unique else None,
        "seen_once": float((counts == 1).mean()) if trace.unique else None,  # share of the keys
        "compulsory_miss_ratio": trace.unique / len(trace) if len(trace) else None,
        "footprint_bytes": None if trace.sizes is None else trace.footprint,
        "span_seconds": None if trace.times is None or not len(trace) else float(trace.times[-1] - trace.times[0]),
        "columns": sorted(trace.columns),
    }
    return facts | {k: v for k, v in trace.info.items() if isinstance(v, str | int | float | dict | None)}


def plain_config(config: Config) -> dict[str, Any]:
    """Return the configuration as plain values."""
    return asdict(config)


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that figures depend on; None for one not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def machine() -> dict[str, Any]:
    """Return what the requests/s were measured on."""
    return {"system": platform.system(), "machine": platform.machine(), "cpus": os.cpu_count()}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
