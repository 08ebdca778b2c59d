"""Training: a policy that learns while it serves learns on a thread of its own, one for all caches of the process.

What there is to learn from is copied under the cache's lock in short steps, learned from without it, and adopted under
it. So no caller waits for training, and every decision is made by one model or the next, never by half of one.
"""

import logging
import os
import weakref
from concurrent.futures import ThreadPoolExecutor
from threading import RLock
from typing import Any, Protocol

from kvpredict.core.policy import Trainer

__all__ = ["BEGUN", "Trained", "train_soon"]

BEGUN = 2  # in Trainer.due
_LOGGER = logging.getLogger("kvpredict")
_pool: ThreadPoolExecutor | None = None


class Trained(Protocol):
    """What trains: its trainer changes when the policy does."""

    _lock: RLock

    @property
    def _trainer(self) -> Trainer | None: ...


def train_soon(cache: Trained) -> None:
    """Train the cache's policy on the training thread; the cache may be gone by then."""
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(1, "kvpredict-training")
    try:
        _pool.submit(_train, weakref.ref(cache))
    except RuntimeError:  # the interpreter is shutting down
        return


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
        _LOGGER.exception("training failed; the cache goes on with the model it has and trains no more")


def _forget_pool() -> None:
    global _pool
    _pool = None  # its thread does not exist in a forked child


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
