"""Training: a policy that learns while it serves learns on a thread of its own, one for all caches of the process.

What there is to learn from is copied under the cache's lock in short steps, learned from without it, and adopted under
it. So no caller waits for training, and every decision is made by one model or the next, never by half of one.
"""

import logging
import weakref
from typing import Any, Protocol

from kvpredict.cache.background import Background
from kvpredict.cache.polite import PoliteLock
from kvpredict.core.policy import BEGUN, WANTED, Trainer

__all__ = ["Trained", "train_soon"]

log = logging.getLogger("kvpredict")
_thread = Background(1, name="kvpredict-training")


class Trained(Protocol):
    """What trains: its trainer changes when the policy does."""

    _lock: PoliteLock

    @property
    def _trainer(self) -> Trainer | None: ...


def train_soon(cache: Trained, due: Any) -> None:
    """Train the cache's policy on the training thread; the cache may be gone by then."""
    due[0] = BEGUN
    if not _thread.submit(_train, weakref.ref(cache)):
        due[0] = WANTED  # the thread is a thousand caches behind: the next put asks again


def _train(reference: "weakref.ref[Any]") -> None:
    cache = reference()
    if cache is None or (trainer := cache._trainer) is None:
        return
    try:
        step, more = 0, True
        while more:
            with cache._lock:
                if cache._trainer is not trainer:
                    return
                more = trainer.gather(step)
            step += 1
        trainer.fit()
        with cache._lock:
            if cache._trainer is trainer:
                trainer.adopt()
    except Exception:
        log.exception("training failed; the cache goes on with the model it has and trains no more")
