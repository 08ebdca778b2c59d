"""The best combination: a model trained beforehand, one that learns in the cache, or both, chosen on later requests.

A model trained once and frozen is as good as it gets where the workload stays as it is, and far worse than LRU where it
moves. A guarded policy learns on and falls back on heuristics; it may begin with a prior from the same past. Which of
them to serve is decided where it counts: by the misses of each on the last part of the past, which none has seen.
"""

from dataclasses import dataclass

import numpy as np

from kvpredict.learn.learner import Fitted, Learner, require

__all__ = ["Best"]


@dataclass(frozen=True)
class Best(Learner):
    """Compare a frozen model, a guarded policy, and a guarded policy with a prior; take the best.

    Parameters
    ----------
    learner : str, default "lightgbm"
        Who trains the frozen model.
    hedge : float, default 0.01
        Share of its misses by which a frozen model must be better than the guarded ones: it cannot follow a workload
        that moves later.
    """

    name = "best"
    combines = True

    learner: str = "lightgbm"
    hedge: float = 0.01

    def __post_init__(self) -> None:
        require(self.learner != self.name, self, "learner must be another one than itself")
        require(0 <= self.hedge < 1, self, f"hedge must be in [0, 1), got {self.hedge}")
        self._base()

    def _base(self) -> Learner:
        from kvpredict.learn import learner

        return learner(self.learner)

    def fit(self, x: np.ndarray, y: np.ndarray, seed: int = 0) -> Fitted:
        return self._base().fit(x, y, seed)
