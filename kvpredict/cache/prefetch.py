"""Prefetcher: learns which key follows which, and loads the follower before it is asked for, where that pays.

For each recent key it counts what came next in the same session, a few candidates a key (the space-saving rule: a new
candidate takes over the lowest count). When a key is asked for, a follower that has come often enough is loaded in the
background. Whether this pays is measured, also while it is off: a prediction counts as used when its key is asked for
within so many accesses, else as wasted, and prefetching is on only while what the used ones save outweighs what the
wasted ones cost. It starts off.

Metwally, Agrawal, El Abbadi, "Efficient Computation of Frequent and Top-k Elements in Data Streams", ICDT 2005.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Any, Generic, NamedTuple, TypeVar

from kvpredict.cache.background import Background
from kvpredict.cache.cache import Cache
from kvpredict.core.arguments import whole_number
from kvpredict.core.errors import KvpredictError

__all__ = ["PrefetchStats", "Prefetcher"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

CANDIDATES = 4  # followers counted for each key
WINDOW = 500  # outcomes on which it is judged
LEAST = 100  # outcomes before the first judgement


class PrefetchStats(NamedTuple):
    """Counts; ``used`` and ``wasted`` are of predictions, carried out or not, ``hits`` of values that were prefetched.

    ``benefit`` is, over the last outcomes, used less ``price`` times wasted, per outcome.
    """

    active: bool
    predictions: int
    used: int
    wasted: int
    loads: int
    hits: int
    failures: int
    switches: int
    benefit: float


class Prefetcher(Generic[K, V]):
    """Reads a cache and loads ahead of its reader.

    Parameters
    ----------
    cache : Cache
    loader : callable
        ``loader(key)`` for reads and prefetches.
    confidence : float, default 0.5
        Share of the times after a key that its follower must have come.
    support : int, default 3
        Times that it must have come.
    patience : int, optional
        Accesses within which a prediction must be used. Default: the cache's capacity in entries, 10,000 at most.
    price : float, default 0.5
        What a wasted load costs, a load that a reader need not wait for being worth 1.
    keys : int, default 10_000
        Keys whose followers are remembered.
    workers : int, default 2
    """

    def __init__(
        self,
        cache: Cache[K, V],
        loader: Callable[[K], V],
        *,
        confidence: float = 0.5,
        support: int = 3,
        patience: int | None = None,
        price: float = 0.5,
        keys: int = 10_000,
        workers: int = 2,
    ) -> None:
        if not callable(loader):
            raise KvpredictError(f"loader must be callable, got {type(loader).__name__}")
        if not 0 < confidence <= 1 or not price >= 0:
            raise KvpredictError(f"confidence is in (0, 1] and price at least 0, got {confidence!r} and {price!r}")
        self.cache, self._loader = cache, loader
        self._confidence, self._price = float(confidence), float(price)
        self._support, self._keys = whole_number("support", support), whole_number("keys", keys)
        self._patience = min(cache.capacity, 10_000) if patience is None else whole_number("patience", patience)
        self._lock = threading.Lock()
        self._last: OrderedDict[Hashable, K] = OrderedDict()  # session -> its last key
        self._followers: OrderedDict[K, dict[K, int]] = OrderedDict()
        self._foretold: dict[K, int] = {}  # key -> number of the access that foretold it
        self._line: deque[tuple[int, K]] = deque()
        self._loaded: set[K] = set()  # prefetched and not asked for yet
        self._outcomes: deque[bool] = deque(maxlen=WINDOW)
        self._background = Background(workers, limit=64, name="kvpredict-prefetch")
        self._accesses = 0
        self.active = False
        self._predictions = self._used = self._wasted = self._loads = self._hits = self._failures = self._switches = 0

    def get_or_load(self, key: K, session: Hashable = None, **terms: Any) -> V:
        """As ``Cache.get_or_load``; ``session`` tells apart readers whose accesses do not follow each other's.

        Default: the thread.
        """
        wanted = self._follow(key, threading.get_ident() if session is None else session)
        value = self.cache.get_or_load(key, self._loader, **terms)
        for follower in wanted:
            if not self._background.submit(self._fetch, follower):
                break
        return value

    def stats(self) -> PrefetchStats:
        """Return the counts so far."""
        with self._lock:
            return PrefetchStats(
                *(self.active, self._predictions, self._used, self._wasted, self._loads, self._hits, self._failures),
                *(self._switches, self._benefit()),
            )

    def _follow(self, key: K, session: Hashable) -> list[K]:
        """Learn from an access, judge, and return what to load."""
        there = key in self.cache
        with self._lock:
            self._accesses += 1
            if key in self._loaded:
                self._loaded.discard(key)
                self._hits += there
            if self._foretold.pop(key, None) is not None:
                # One that was loaded and is gone again came too early to be of use.
                self._settle(there or not self.active)
            while self._line and self._line[0][0] < self._accesses - self._patience:
                number, late = self._line.popleft()
                if self._foretold.get(late) == number:
                    del self._foretold[late]
                    self._loaded.discard(late)
                    self._settle(False)
            before = self._last.pop(session, None)
            self._last[session] = key
            if len(self._last) > self._keys:
                self._last.popitem(last=False)
            if before is not None and before != key:
                self._count(before, key)
            return self._predict(key)

    def _count(self, before: K, key: K) -> None:
        followers = self._followers.pop(before, None)
        if followers is None:
            followers = {}
            if len(self._followers) >= self._keys:
                self._followers.popitem(last=False)
        self._followers[before] = followers
        if key not in followers and len(followers) >= CANDIDATES:
            rarest = min(followers, key=followers.__getitem__)
            followers[key] = followers.pop(rarest)
        followers[key] = followers.get(key, 0) + 1

    def _predict(self, key: K) -> list[K]:
        followers = self._followers.get(key)
        if not followers:
            return []
        least = max(self._support, self._confidence * sum(followers.values()))
        wanted = [
            follower
            for follower, count in followers.items()
            if count >= least and follower not in self._foretold and follower not in self.cache
        ]
        for follower in wanted:
            self._predictions += 1
            self._foretold[follower] = self._accesses
            self._line.append((self._accesses, follower))
        return wanted if self.active else []

    def _settle(self, used: bool) -> None:
        self._used += used
        self._wasted += not used
        self._outcomes.append(used)
        if len(self._outcomes) >= LEAST:
            benefit = self._benefit()
            if self.active != (benefit > 0) and abs(benefit) > 0.05:  # hysteresis
                self.active = benefit > 0
                self._switches += 1
                self._outcomes.clear()  # the next judgement rests on what came after this one

    def _benefit(self) -> float:
        used = sum(self._outcomes)
        return (used - self._price * (len(self._outcomes) - used)) / max(1, len(self._outcomes))

    def _fetch(self, key: K) -> None:
        if key in self.cache:
            return
        with self._lock:
            self._loads += 1
            self._loaded.add(key)
        try:
            self.cache.refresh(key, self._loader)
        except Exception:  # whoever asks for it will get the error
            with self._lock:
                self._failures += 1
                self._loaded.discard(key)
