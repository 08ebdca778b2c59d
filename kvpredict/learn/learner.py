"""The learner contract: rows and labels in, a scorer's arrays out.

A learner is a frozen dataclass of hyper-parameters whose ``fit`` trains a library's model and exports it to arrays.
It also returns the library's own ``predict``, against which the export is tested. A learner that trains on hits, and
not on labels alone, goes on from there in ``play``.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from kvpredict.core.errors import KvpredictError, MissingExtra
from kvpredict.core.fields import check_fields
from kvpredict.features.schema import Schema
from kvpredict.learn.evaluate import FitReport
from kvpredict.trace.trace import Trace

if TYPE_CHECKING:
    from kvpredict.policies.guarded import Guarded
    from kvpredict.policies.learned import Learned

__all__ = ["Curves", "Fitted", "Game", "Learner", "NothingToLearn", "Past", "missing_extra", "require"]

Curves = dict[str, dict[str, list[Any]]]  # name -> "step" and "value", what a training logged on its way


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


class Game(NamedTuple):
    """What a learner plays that trains on hits.

    ``trace``: the training part. ``capacity``: objects. ``schema``, ``history``: of the rows. ``x``, ``y``: labelled
    rows of the training part. ``judge``: the miss ratio on the validation part, for a scorer with link ``logit``.
    """

    trace: Trace
    capacity: int
    schema: Schema
    history: float
    x: np.ndarray
    y: np.ndarray
    judge: Callable[[Any], float]


class Past(NamedTuple):
    """What a policy is chosen on: the requests of ``trace`` from ``cut`` on, served with ``capacity`` of ``unit``."""

    trace: Trace
    cut: int
    capacity: int
    unit: str
    seed: int


@dataclass(frozen=True)
class Learner:
    """Base of all learners; a subclass adds hyper-parameters as fields, ``name`` and ``fit``.

    One that ``plays`` goes on from what ``fit`` returned, in caches of its own. With one that ``combines``,
    ``kvpredict.fit`` lets it ``choose`` between its model and policies that learn while they serve.
    """

    name: ClassVar[str]
    plays: ClassVar[bool] = False
    combines: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check that parameters are of the types that they are annotated with; a subclass that checks more calls it."""
        check_fields(self, f"learner {self.name!r}")

    @property
    def freezes(self) -> bool:
        """Whether ``kvpredict.fit`` may return the model as it is."""
        return True

    def fit(self, x: np.ndarray, y: np.ndarray, seed: int = 0) -> Fitted:
        """Train on rows ``x``, float32 ``[m, width]``, and labels ``y``, uint8 ``[m]``: 1 for reused in time.

        Both labels occur in ``y``. The same arguments give the same model.
        """
        raise NotImplementedError

    def play(self, fitted: Fitted, game: Game, seed: int = 0) -> tuple[Fitted, Curves]:
        """Improve on ``fitted`` by playing, and return the better model and the curves of its training.

        The training part is all that it may learn from; the validation part may choose among what it learned.
        """
        raise NotImplementedError

    def choose(
        self, past: Past, cold: "Guarded", models: "tuple[Learned, Learned] | None", report: FitReport
    ) -> "Learned | Guarded":
        """Return the policy to serve, with ``report`` and what was compared in it.

        ``cold`` has learned nothing yet. ``models``: a frozen model trained before ``past.cut`` and the one trained on
        all, None where there was nothing to learn.
        """
        raise NotImplementedError

    def params(self) -> dict[str, Any]:
        """Return the hyper-parameters by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


class NothingToLearn(KvpredictError):
    """A past from which nothing can be learned."""


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
