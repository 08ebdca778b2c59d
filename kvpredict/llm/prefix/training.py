"""Training: a prefix policy in a server learns on a thread of its own, so that no request waits for it.

The caller's thread copies the rows of the past, which takes a few milliseconds at most; the training thread, one for
all indices of the process, fits a model to the copy; and the caller's thread takes that model up between two requests.
So every rank is by one model or the next, never by half of one, and no locks are needed.
"""

import logging
import weakref

import numpy as np

from kvpredict.cache.background import Background
from kvpredict.llm.prefix.model import Model
from kvpredict.llm.prefix.policies.learned import Learned
from kvpredict.llm.prefix.turns import Turns

__all__ = ["Training"]

log = logging.getLogger("kvpredict.llm")
_thread = Background(1, name="kvpredict-prefix-training")


class Training:
    """When an index's policy trains, and what came of it.

    Parameters
    ----------
    policy : Learned
    background : bool
        Whether it trains on the training thread; else ``turn`` itself does.
    """

    def __init__(self, policy: Learned, background: bool) -> None:
        self.policy, self.background = policy, background
        self.failed = False
        self._due = np.inf
        self._seen = 0  # segments at the last training
        self._busy = False
        self._fresh: Model | None = None

    def turn(self, turns: Turns, now: float) -> Model | None:
        """Begin to train if it is time; return a model that is ready to be adopted, once."""
        if self._due == np.inf and self.policy.every:
            self._due = now + self.policy.every
        if now >= self._due and not self._busy and not self.failed:
            self._due = now + self.policy.every
            if self.policy.grown(turns, self._seen):
                before, self._seen = self._seen, int(turns.tally[0])
                if not self.background:
                    return self._fitted(turns, now)
                self._busy = True  # first: the training may be over before ``submit`` is
                if not _thread.submit(_train, weakref.ref(self), turns.rows(), now):
                    self._busy, self._seen = False, before
        fresh, self._fresh = self._fresh, None
        return fresh

    def _fitted(self, turns: Turns, now: float) -> Model | None:
        try:
            return self.policy.fitted(turns, now)
        except Exception:  # no request is to fail because of it
            self.failed = True
            log.exception("training failed; the prefix cache goes on with the model it has and trains no more")
            return None

    def join(self) -> None:
        """Wait until the training thread is idle. For tests and shutdown."""
        _thread.join()


def _train(reference: "weakref.ref[Training]", rows: Turns, now: float) -> None:
    training = reference()
    if training is None:
        return
    try:
        training._fresh = training._fitted(rows, now)
    finally:
        training._busy = False
