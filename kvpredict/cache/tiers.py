"""Tiers: stores of bytes below the memory of a cache, and the breaker that keeps a sick one from holding anybody up.

A tier is a cache, never the truth: it may lack anything, and what it holds may be dropped. What it must not do is hand
out what was deleted. While a tier cannot be reached a deletion cannot be carried out there, so it is owed: a key that
is owed a deletion is not read from the tier, and the debt is paid before the tier is used again. A debt that grows too
large is paid by emptying the tier. Debts are this process's: others may read what is owed until its ttl ends it.

The breaker is the usual one: after a few failures in a row the tier is left alone for a while, then one call tries it.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from kvpredict.cache.arguments import with_methods
from kvpredict.cache.errors import TierError
from kvpredict.cache.expiry import duration
from kvpredict.cache.forks import starts_over_in_child
from kvpredict.core.arguments import whole_number

__all__ = ["Guarded", "Tier"]

log = logging.getLogger("kvpredict")
MOST_OWED = 10_000

R = TypeVar("R")


class Tier(Protocol):
    """What a tier does; every method may raise ``TierError``, and returns within the tier's own timeout.

    ``fill`` says when the tier gets values: as they are loaded ("load"), which suits one that processes share, or as
    the tier above evicts them ("evict"). ``shared`` says whether other processes use the same one.
    """

    name: str
    fill: str
    shared: bool

    def get(self, key: bytes) -> bytes | None:
        """Return what is stored under ``key``, or None."""

    def put(self, key: bytes, data: bytes, ttl: float | None) -> bool:
        """Store ``data`` for at most ``ttl`` seconds; tell whether the tier took it in."""

    def holds(self, key: bytes) -> bool:
        """Tell whether ``key`` is surely there, as far as can be told without asking."""

    def delete(self, key: bytes) -> None:
        """Remove ``key`` if it is there."""

    def clear(self) -> None:
        """Remove everything."""

    def close(self) -> None:
        """Let go of files and connections."""


class Guarded:
    """A tier behind a breaker; no method raises.

    Parameters
    ----------
    tier : Tier
    failures : int, default 3
        Failures in a row after which the tier is left alone.
    pause : float, default 1.0
        Seconds for which it is; doubles with each trial that fails, up to 30.
    clock : callable, default time.monotonic
    """

    def __init__(
        self, tier: Tier, failures: int = 3, pause: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        with_methods("tier", tier, "a Tier", "get", "put", "holds", "delete", "clear", "close")
        self.tier, self.name, self.fill, self.shared = tier, tier.name, tier.fill, tier.shared
        self._most, self._first_pause = whole_number("failures", failures), duration("pause", pause)
        self._clock = clock
        self._lock = threading.Lock()
        self._row = 0  # failures in a row
        self._pause = self._first_pause
        self._closed_until = 0.0  # while in the future the tier is left alone
        self._trying = False
        self._owed: set[bytes] = set()
        self._owes_all = False
        self.hits = self.misses = self.errors = 0
        self.error: TierError | None = None
        starts_over_in_child(self)

    def _forked(self) -> None:
        self._lock = threading.Lock()
        self._trying = False

    @property
    def up(self) -> bool:
        """Whether the tier is in use."""
        return self._row < self._most

    def get(self, key: bytes) -> bytes | None:
        """Return what the tier holds; None where it holds nothing, or cannot be asked."""
        if self._owes_all or key in self._owed:
            self._pay()
            if self._owes_all or key in self._owed:
                return None
        data = self._call(None, self.tier.get, key)
        if data is None:
            self.misses += 1
        else:
            self.hits += 1
        return data

    def put(self, key: bytes, data: bytes, ttl: float | None) -> bool:
        """Offer a value to the tier."""
        if self._owes_all:
            self._pay()
            if self._owes_all:
                return False
        taken = self._call(None, self.tier.put, key, data, ttl)
        if taken is None:  # whether it came through is not known, nor whether what is there is older
            self._owe(key)
        else:
            with self._lock:
                self._owed.discard(key)
        return bool(taken)

    def holds(self, key: bytes) -> bool:
        """Tell whether the tier surely holds ``key``."""
        return key not in self._owed and not self._owes_all and self.tier.holds(key)

    def delete(self, key: bytes) -> None:
        """Remove ``key``, now or before the tier is read again."""
        if self._call(False, self._done, self.tier.delete, key) is False:
            self._owe(key)

    def clear(self) -> None:
        """Remove everything, now or before the tier is read again."""
        if self._call(False, self._done, self.tier.clear) is False:
            with self._lock:
                self._owes_all = True
        else:
            with self._lock:
                self._owed.clear()
                self._owes_all = False

    def close(self) -> None:
        """Carry out the deletions that are owed, if that can be done at all, and close the tier."""
        with suppress(TierError):
            try:
                for key in self._owed:
                    self.tier.delete(key)
                if self._owes_all:
                    self.tier.clear()
            except TierError:
                self.tier.clear()
        with suppress(TierError):
            self.tier.close()

    @staticmethod
    def _done(action: Callable[..., Any], *arguments: Any) -> bool:
        action(*arguments)
        return True

    def _owe(self, key: bytes) -> None:
        with self._lock:
            self._owed.add(key)
            if len(self._owed) > MOST_OWED:
                self._owes_all = True
                self._owed.clear()

    def _pay(self) -> None:
        """Carry out the deletions that are owed, if the tier can be reached."""
        if self._owes_all:
            self.clear()
        while not self._owes_all and self._owed:
            with self._lock:
                key = next(iter(self._owed), None)
            if key is None or self._call(False, self._done, self.tier.delete, key) is False:
                return
            with self._lock:
                self._owed.discard(key)

    def _call(self, instead: R, action: Callable[..., R], *arguments: Any) -> R:
        trial = False
        if self._row >= self._most:
            with self._lock:
                if self._trying or self._clock() < self._closed_until:
                    return instead
                self._trying = trial = True
        try:
            result = action(*arguments)
        except TierError as error:
            self._failed(error)
            return instead
        finally:
            if trial:
                self._trying = False
        if self._row:
            with self._lock:
                if self._row >= self._most:
                    log.warning("tier %s is back", self.name)
                self._row, self._pause = 0, self._first_pause
        return result

    def _failed(self, error: TierError) -> None:
        with self._lock:
            self.errors += 1
            self.error = error
            self._row += 1
            if self._row == self._most:
                log.warning("tier %s is left alone for %g s: %s", self.name, self._pause, error)
            if self._row >= self._most:
                self._closed_until = self._clock() + self._pause
                if self._row > self._most:
                    self._pause = min(2 * self._pause, 30.0)
