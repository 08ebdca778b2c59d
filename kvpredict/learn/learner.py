"""The learner contract: rows and labels in, a scorer's arrays out.

A learner is a frozen dataclass of hyper-parameters whose ``fit`` trains a library's model and exports it to arrays.
It also returns the library's own ``predict``, against which the export is tested.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import numpy as np

from kvpredict.core.errors import KvpredictError, MissingExtra

__all__ = ["Fitted", "Learner", "missing_extra", "require"]


class Fitted(NamedTuple):
    """A trained model.

    ``scorer``: arrays (``kvpredict.scorers``). ``link``: how a raw score becomes a probability. ``importance``:
    float64 ``[width]``, not negative, summing to 1 (or all 0). ``predict``: the library's own probabilities for rows
    float32 ``[m, width]``.
    """

    scorer: Any
    link: str
    importance: np.ndarray
    predict: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Learner:
    """Base of all learners; a subclass adds hyper-parameters as fields, ``name`` and ``fit``."""

    name: ClassVar[str]

    def fit(self, x: np.ndarray, y: np.ndarray, seed: int = 0) -> Fitted:
        """Train on rows ``x``, float32 ``[m, width]``, and labels ``y``, uint8 ``[m]``: 1 for reused in time.

        Both labels occur in ``y``. The same arguments give the same model.
        """
        raise NotImplementedError

    def params(self) -> dict[str, Any]:
        """Return the hyper-parameters by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def missing_extra(package: str, error: ImportError) -> MissingExtra:
    """Return (not raise) the error for a learner whose library is not installed."""
    return MissingExtra(f"this learner needs {package}: pip install 'kvpredict[train]' ({error})")


def require(condition: bool, learner: Learner, message: str) -> None:
    """Raise ``KvpredictError`` naming the learner unless a hyper-parameter's ``condition`` holds."""
    if not condition:
        raise KvpredictError(f"learner {learner.name!r}: {message}")


def shares(importance: np.ndarray) -> np.ndarray:
    """Scale importances to sum to 1; all zeros stay."""
    total = float(importance.sum())
    return np.asarray(importance, np.float64) / (total if total > 0 else 1.0)
