"""Tuner: moves a live cache to the policy that would do best on its keys.

Every so often it asks a ``Shadow`` what each candidate would have hit. A move costs the new policy its finer memory,
and chance makes one or another policy look better for a while; so a candidate must miss clearly less than the present
policy would have, several times in a row, before the cache moves to it. Every decision is logged with its figures.
"""

import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from kvpredict.cache.background import run_every
from kvpredict.cache.cache import Cache
from kvpredict.cache.expiry import duration
from kvpredict.cache.shadow import Forecast, Shadow
from kvpredict.core.arguments import whole_number
from kvpredict.core.errors import KvpredictError
from kvpredict.core.policy import Policy

__all__ = ["Decision", "Tuner"]

log = logging.getLogger("kvpredict")


class Decision(NamedTuple):
    """What one look came to; ``gain`` is the share of the present policy's misses that the best would have saved."""

    time: float
    present: str
    best: str
    gain: float
    moved: bool
    reason: str
    forecasts: tuple[Forecast, ...]


class Tuner:
    """Chooses a cache's policy while it runs.

    Parameters
    ----------
    cache : Cache
    candidates : sequence of str or Policy
    interval : float or None, default 30.0
        Seconds between looks of a thread of its own, which ends with the cache. None: only ``look`` looks.
    margin : float, default 0.02
        Share of the misses that a move must save.
    wins : int, default 3
        Looks in a row that must say so.
    sample, window
        As for ``Shadow``.

    Attributes
    ----------
    decisions : deque of Decision
        The last hundred.
    """

    def __init__(
        self,
        cache: Cache[Any, Any],
        candidates: Sequence[str | Policy] = ("s3fifo", "sieve", "lru", "arc", "wtinylfu", "lirs"),
        *,
        interval: float | None = 30.0,
        margin: float = 0.02,
        wins: int = 3,
        sample: float | None = None,
        window: int = 100_000,
    ) -> None:
        if not 0 <= margin < 1:
            raise KvpredictError(f"margin is a share of the misses, in [0, 1), got {margin!r}")
        self._wins, self._margin = whole_number("wins", wins), float(margin)
        self.shadow = Shadow(cache, candidates, sample=sample, window=window)
        self.decisions: deque[Decision] = deque(maxlen=100)
        self._seen = 0
        self._leader, self._row = "", 0
        if interval is not None:
            # Its owner holds it, and it holds its owner: the thread ends when both are gone.
            run_every(self, duration("interval", interval), "look", "kvpredict-tuner")

    def look(self) -> Decision | None:
        """Compare the candidates on what was accessed lately, and move if it is time; None if too little was."""
        cache = self.shadow.cache
        rows, seen = cache.tapped()
        # A window whose half was not renewed would say the same again.
        if seen - self._seen < self.shadow.window // 4 and not (self._seen == 0 and len(rows) == self.shadow.window):
            return None
        self._seen = seen
        forecasts = tuple(self.shadow.evaluate())
        present = cache.policy
        mine = next((each for each in forecasts if each.policy == present.name), None)
        if mine is None:
            mine = self.shadow.curve(present, [1.0])[0]
        best = max(forecasts, key=lambda each: each.hit_ratio)
        missed = 1.0 - mine.hit_ratio
        gain = (best.hit_ratio - mine.hit_ratio) / missed if missed > 0 else 0.0
        if best.policy == present.name or gain < self._margin:
            self._leader, self._row = "", 0
            reason = (
                f"{present.name} stays: {best.policy} would save {gain:.1%} of its misses, below {self._margin:.1%}"
            )
        else:
            self._row = self._row + 1 if best.policy == self._leader else 1
            self._leader = best.policy
            reason = (
                f"{best.policy} would save {gain:.1%} of the misses of {present.name} (hit ratio "
                f"{best.hit_ratio:.4f}, not {mine.hit_ratio:.4f}, of {mine.accesses} accesses), "
                f"{self._row} of {self._wins} looks"
            )
        moved = self._row >= self._wins
        if moved:
            chosen = next(each for each in self.shadow.policies if each.name == best.policy)
            cache.swap_policy(chosen)
            self._leader, self._row = "", 0
            log.info("the cache moves to %s", reason)
        else:
            log.debug("the cache stays: %s", reason)
        decision = Decision(time.time(), present.name, best.policy, gain, moved, reason, forecasts)
        self.decisions.append(decision)
        return decision
