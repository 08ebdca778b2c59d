"""The workload contract: a frozen dataclass of parameters, each with its range, and ``generate(seed)``."""

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np

from kvpredict.core.errors import KvpredictError
from kvpredict.trace.trace import Trace

__all__ = ["Workload", "WorkloadError", "param"]


class WorkloadError(KvpredictError, ValueError):
    """A parameter of a workload that is of the wrong type or out of its range."""


def param(default: float, low: float, high: float = float("inf")) -> Any:
    """Declare a parameter with its ``default`` and the closed range that it must lie in."""
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class Workload:
    """Base of all workloads; a subclass adds its parameters with ``param`` and ``_generate``.

    Class member: ``name``, the module's name. Parameters are whole numbers (``int``) or finite ones (``float``).
    """

    name: ClassVar[str]

    def __post_init__(self) -> None:
        for f in fields(self):
            value, low, high = getattr(self, f.name), f.metadata["low"], f.metadata["high"]
            number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
            whole = f.type is int
            if not number or not np.isfinite(value) or (whole and value != int(value)):
                self.reject(f.name, "must be a whole number" if whole else "must be a finite number")
            if not low <= value <= high:
                bounds = f"at least {low:g}" if np.isinf(high) else f"between {low:g} and {high:g}"
                self.reject(f.name, f"must be {bounds}")
            # A yaml file may say 1e6 where a count is meant, and NumPy's scalars would print as such in reports.
            object.__setattr__(self, f.name, int(value) if whole else float(value))
        self.check()

    def check(self) -> None:
        """Raise ``WorkloadError`` where parameters contradict each other."""

    def reject(self, parameter: str, why: str) -> None:
        """Raise ``WorkloadError`` about ``parameter``."""
        raise WorkloadError(f"workload {self.name!r}: {parameter} {why}, got {getattr(self, parameter)!r}")

    def params(self) -> dict[str, Any]:
        """Return the parameters by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def generate(self, seed: int = 0) -> Trace:
        """Make the trace.

        Parameters
        ----------
        seed : int, default 0
            Not negative. The same seed and parameters give the same trace.

        Returns
        -------
        Trace
            Exactly ``requests`` requests with times in seconds from 0; ``info`` holds the workload's name, parameters
            and seed.
        """
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
            raise WorkloadError(f"workload {self.name!r}: the seed must be a whole number of at least 0, got {seed!r}")
        trace = self._generate(np.random.default_rng(int(seed)))
        trace.name = self.name
        trace.info = {"format": "workload", "workload": self.name, "seed": int(seed), **self.params()}
        return trace

    def _generate(self, rng: np.random.Generator) -> Trace:
        raise NotImplementedError
