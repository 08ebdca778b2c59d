"""Learned: a hazard model says how long each block's reuse may take, and a guard decides whether to believe it.

When a request ends, rows describe its segments (``turns``); a boosted model gives each row's hazard by age
(``hazard``), and blocks are ranked by what that makes their space worth: the geometric mean of the Gittins index and of
the chance of a reuse soon, over the age. That ranking competes with simple ones: each runs in a shadow that holds block
numbers only, and the serving cache follows the one whose shadow has hit most lately: it stores when that does, and
evicts first what that does not hold. With a model of no use that is the best of the simple rules. The model is trained
on all the past, again and again while it serves; a saved policy brings a first one.

Rows are scored when one of their blocks becomes an unused leaf for the first time, since most never do.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kvpredict.core.jit import lean_kernel, lean_subroutine
from kvpredict.llm.prefix.hazard import BINS, age_step, gittins, reuse_within
from kvpredict.llm.prefix.model import Model, fit_model, load_model, no_model, save_model
from kvpredict.llm.prefix.policy import PrefixPolicy, Traits, require
from kvpredict.llm.prefix.turns import CONTINUES, FEATURES, Turns, make_turns, note_arrival, note_end, write_segments
from kvpredict.scorers.trees import Trees, score_steps

__all__ = ["RANKINGS", "Learned"]

# LRU that stores on arrival and at a request's end; uses; uses over age; LRU without the sessions said to be over; the
# model.
RANKINGS = ("arrival", "lru", "lfu", "frequent", "hint", "model")
ARRIVAL, LRU, LFU, FREQUENT, HINT, MODEL = range(6)
AGE_BIN = len(FEATURES)  # column of what is scored
WITHIN = 300.0  # seconds
DEAD = -1e10  # rank of what will not be used again, over which order decides


class State(NamedTuple):
    turns: Turns
    trees: Trees
    ready: np.ndarray  # uint8 [1], whether there is a model
    hazard: np.ndarray  # float32 [m, BINS], by row of turns
    scored: np.ndarray  # int64 [m], stamp of the row that the hazard belongs to
    x: np.ndarray  # float32 [features + 1], to score
    y: np.ndarray  # float64 [BINS]


@lean_subroutine
def _score(s, row):
    for f in range(AGE_BIN):
        value = s.turns.x[row, f]
        s.x[f] = -1.0 if np.isnan(value) else value
    score_steps(s.trees, s.x, AGE_BIN, BINS, s.y)
    for k in range(BINS):
        s.hazard[row, k] = 1.0 / (1.0 + np.exp(-s.y[k]))
    s.scored[row] = s.turns.stamp[row]


@dataclass(frozen=True)
class Learned(PrefixPolicy):
    """Hazard model under a guard.

    Parameters
    ----------
    model : Model, optional
        The first model; without one the policy serves by the simple rankings until it has learned.
    every : float, default 120
        Seconds of the server's time between trainings, at least; 0: never.
    growth : float, default 0.05
        By what share of those remembered at the last training segments must have been added since, or it is put off for
        another ``every`` seconds: what a quiet server learns from hardly changes in that time.
    first : int, default 500
        Rows needed for the first training.
    half_life : float, default 200
        Seconds in which the guard forgets half of the shadows' hits.
    favour : float, default 0.01
        By what share another shadow must hit more than the one followed; hits that all shadows had are left out.
    rows : int, default 65536
        Segments remembered, about four a request.
    rounds, leaves : int, defaults 80 and 15
        Trees of the model, and their leaves.
    """

    name = "learned"
    traits = Traits(timed=True, rankings=len(RANKINGS), late=True, early=ARRIVAL)

    model: Model | None = field(default=None, repr=False, compare=False, metadata={"config": False})
    every: float = 120.0
    growth: float = 0.05
    first: int = 500
    half_life: float = 200.0
    favour: float = 0.01
    rows: int = 65536
    rounds: int = 80
    leaves: int = 15

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.model is None or isinstance(self.model, Model), self, f"model must be a Model, got {self.model!r:.60}"
        )
        require(self.every >= 0, self, f"every must be at least 0 seconds, got {self.every}")
        require(self.growth >= 0, self, f"growth must be at least 0, got {self.growth}")
        require(self.first >= 50, self, f"first must be at least 50 rows, got {self.first}")
        require(self.half_life > 0, self, f"half_life must be above 0 seconds, got {self.half_life}")
        require(0 <= self.favour < 1, self, f"favour must be between 0 and 1, got {self.favour}")
        require(self.rows >= 1024, self, f"rows must be at least 1024, got {self.rows}")
        require(self.rounds >= 1 and 2 <= self.leaves <= 64, self, "rounds must be at least 1, leaves 2 to 64")

    @property
    def steer(self) -> tuple[float, ...]:
        return (self.half_life, 0.0, 0.0, 1.0, self.favour)

    def state(self, nodes: int, capacity: int, requests: int) -> State:
        turns = make_turns(nodes, requests, self.rows)
        m = len(turns.stamp)
        model = self.model or no_model()
        return State(
            turns=turns,
            trees=model.trees,
            ready=np.array([self.model is not None], np.uint8),
            hazard=np.zeros((m, BINS), np.float32),
            scored=np.full(m, -2, np.int64),
            x=np.zeros(len(FEATURES) + 1, np.float32),
            y=np.zeros(BINS),
        )

    def replay(self, run: Any, state: State, seed: int) -> dict[str, Any]:
        """Run a whole trace, training on the past on the way."""
        times = run.requests.time
        n, at, count, seen, model = len(times), 0, 0, 0, self.model
        due = times[0] + self.every if n and self.every else np.inf
        while at < n:
            stop = min(n, max(at + 1, int(np.searchsorted(times, due)) if due < np.inf else n))
            run(state, at, stop)
            at = stop
            if at < n and times[at] >= due:
                now = float(times[at])
                due = now + self.every
                if not self.grown(state.turns, seen):
                    continue
                seen = int(state.turns.tally[0])
                fresh = self.trained(state, now, seed)
                if fresh is not state:
                    state, count = fresh, count + 1
                    model = replace(model or no_model(), trees=state.trees)
                    run.engine.rerank(state, run.pool, now)
        followed = RANKINGS[int(run.pool.follows[0])]
        shadows = dict(zip(RANKINGS, run.shadows.tolist(), strict=True))
        return {"trained": count, "shadows": shadows, "followed": followed, "model": model, "turns": state.turns}

    def trained(self, state: State, now: float, seed: int = 0) -> State:
        """Return the state with a model trained on all that ``state`` remembers; itself where that is too little."""
        model = self.fitted(state.turns, now, seed)
        return state if model is None else self.adopted(state, model)

    def grown(self, turns: Turns, seen: int) -> bool:
        """Return whether enough segments were added since there had been ``seen`` of them."""
        segments, remembered = int(turns.tally[0]), len(turns.stamp)
        return min(segments, remembered) >= self.first and segments - seen >= self.growth * min(seen, remembered)

    def fitted(self, turns: Turns, now: float, seed: int = 0) -> Model | None:
        """Return a model trained on ``turns``; None where they are too few."""
        return fit_model(turns, now, least=self.first, rounds=self.rounds, leaves=self.leaves, seed=seed)

    def adopted(self, state: State, model: Model) -> State:
        """Return the state with another model; what is ranked stays so until it is ranked anew."""
        state.ready[0] = 1
        state.scored[:] = -2  # all rows are scored anew
        return state._replace(trees=model.trees)

    def save(self, folder: str | Path, metadata: Mapping[str, Any] | None = None) -> Path:
        """Write model and settings to ``folder``; ``load_prefix_policy`` reads them."""
        settings = {k: v for k, v in self.params().items() if k != "model"}
        return save_model(folder, self.model, {"name": self.name, **settings}, metadata or {})

    @staticmethod
    def load(folder: str | Path) -> "Learned":
        """Return the policy that ``save`` wrote."""
        model, settings = load_model(folder)
        settings.pop("name", None)
        return replace(Learned(**settings), model=model)

    @staticmethod
    @lean_kernel
    def arrive(s, p, r, i, now):
        note_arrival(s.turns, p, r, i, now)

    @staticmethod
    @lean_kernel
    def finish(s, p, r, i, now):
        write_segments(s.turns, p, r, i, now)
        note_end(s.turns, p, r, i, now)

    @staticmethod
    @lean_kernel
    def rank(s, p, node, which, now):
        if which <= LRU:
            return float(p.order[node])
        if s.turns.dead[node]:
            return DEAD + 1e-3 * p.order[node]
        if which == LFU:
            return float(p.touches[node])
        age = max(0.0, now - p.last[node])
        frequent = np.sqrt(1.0 + p.touches[node]) / (age + 30.0)
        number = s.turns.row[node]
        row = number % s.turns.stamp.size
        if which == HINT:
            said = s.turns.x[row, CONTINUES]
            over = number >= 0 and s.turns.stamp[row] == number and not np.isnan(said) and said < 0.5
            return float(p.order[node]) - (1e9 if over else 0.0)
        if which == FREQUENT or not s.ready[0]:
            return frequent
        if number < 0 or s.turns.stamp[row] != number:  # forgotten: about what a model says of its like
            return 1e-3 * frequent
        if s.scored[row] != number:
            _score(s, row)
        hazard = s.hazard[row]
        return np.sqrt(gittins(hazard, age) * reuse_within(hazard, age, WITHIN) / (age + 60.0))

    @staticmethod
    @lean_kernel
    def until(s, p, node, which, now):
        if which <= LFU or which == HINT or s.turns.dead[node]:
            return np.inf
        return p.last[node] + age_step(now - p.last[node])
