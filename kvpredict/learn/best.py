"""The best combination: a policy that learns in the cache, with or without a prior, chosen on later requests.

A model trained once and frozen is far worse than LRU where the workload moves after it was trained, and no part of the
past can tell that it will. A guarded policy learns on and falls back on heuristics; it may begin with a prior from the
past. Whether it should is decided where it counts: by the misses on the last part of the past. What the frozen model
would have missed there is said too, but it is returned only where that is asked for.
"""

import contextlib
from dataclasses import dataclass, replace

import numpy as np

from kvpredict.learn.evaluate import FitReport
from kvpredict.learn.learner import Fitted, Learner, NothingToLearn, Past, require
from kvpredict.learn.online import prior
from kvpredict.learn.origin import origin
from kvpredict.policies.guarded import Guarded
from kvpredict.policies.learned import Learned
from kvpredict.simulate.simulate import simulate

__all__ = ["Best"]


@dataclass(frozen=True)
class Best(Learner):
    """Compare a guarded policy, one with a prior, and a frozen model; take the better one of those under a guard.

    Parameters
    ----------
    learner : str, default "lightgbm"
        Who trains the frozen model.
    unguarded : bool, default False
        Whether the frozen model may be returned.
    hedge : float, default 0.01
        Share of its misses by which the frozen model, if it may be returned, must be better than the guarded policies:
        it cannot follow a workload that moves later.
    """

    name = "best"
    combines = True

    learner: str = "lightgbm"
    unguarded: bool = False
    hedge: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.learner != self.name, self, "learner must be another one than itself")
        require(0 <= self.hedge < 1, self, f"hedge must be in [0, 1), got {self.hedge}")
        self._base()

    @property
    def freezes(self) -> bool:
        return self.unguarded

    def _base(self) -> Learner:
        from kvpredict.learn import learner

        return learner(self.learner)

    def fit(self, x: np.ndarray, y: np.ndarray, seed: int = 0) -> Fitted:
        return self._base().fit(x, y, seed)

    def choose(
        self, past: Past, cold: Guarded, models: tuple[Learned, Learned] | None, report: FitReport
    ) -> Learned | Guarded:
        trace, cut, capacity, unit, seed = past
        rivals: dict[str, Learned | Guarded] = {"guarded": cold}
        with contextlib.suppress(NothingToLearn):
            taught = prior([(trace.head(cut), capacity)], cold, unit=unit)
            rivals["guarded with a prior"] = replace(cold, prior=taught)
        if models is not None:
            rivals["learned"] = models[0]
        compared = {
            name: simulate(trace, rival, capacity, unit=unit, warmup=cut, seed=seed).loss(cold.objective)
            for name, rival in rivals.items()
        }
        # The frozen model has nothing to fall back on, so it takes part only where that is asked for.
        weighed = {name: loss for name, loss in compared.items() if name != "learned"}
        if models is not None and self.unguarded:
            weighed["learned"] = compared["learned"] * (1.0 + self.hedge)
        chosen = min(weighed, key=weighed.__getitem__)
        report = replace(report, settings=report.settings | {"compared": compared, "chosen": chosen})
        if models is not None and chosen == "learned":
            metadata = {**models[1].artifact.metadata, "settings": report.settings}
            return replace(models[1], artifact=replace(models[1].artifact, metadata=metadata), report=report)
        if chosen == "guarded":
            return replace(cold, report=report)
        metadata = {**origin(trace, report), "prior": "trained by fit"}
        return replace(cold, prior=prior([(trace, capacity)], cold, unit=unit, metadata=metadata), report=report)
