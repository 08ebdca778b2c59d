"""Removals: why an entry left, and the queue that tells a listener once no lock is held.

Whoever takes an entry out notes it here under the cache's lock; after letting go of the lock the same thread, or any
other that uses the cache meanwhile, hands the notes to the listener. So a listener may use the cache, may be slow and
may fail, and a removal is told once, soon after it happened and not during it.
"""

import logging
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from threading import get_ident
from typing import Any

__all__ = ["Cause", "Removals"]

log = logging.getLogger("kvpredict")


class Cause(StrEnum):
    """Why an entry left the cache."""

    EVICTED = "evicted"  # to make room
    EXPIRED = "expired"  # its time was over
    REPLACED = "replaced"  # by another value of its key, which may have been refused
    DELETED = "deleted"  # by a call of delete, clear or invalidate


class Removals:
    """What left the cache and has not been told to the listener yet."""

    __slots__ = ("_listener", "_telling", "waiting")

    def __init__(self, listener: Callable[[Any, Any, Cause], Any]) -> None:
        self._listener = listener
        self.waiting: deque[tuple[Any, Any, Cause]] = deque()
        self._telling: set[int] = set()

    def tell(self) -> None:
        """Call the listener for all that waits; what it removes itself is told by the same loop."""
        me = get_ident()
        if me in self._telling:
            return
        self._telling.add(me)
        try:
            while self.waiting:
                try:
                    removal = self.waiting.popleft()
                except IndexError:  # another thread took the last one
                    return
                try:
                    self._listener(*removal)
                except Exception:  # the removal has happened; who called the cache is not to blame
                    log.exception("on_removal failed for key %r", removal[0])
        finally:
            self._telling.discard(me)
