"""WriteThrough: a cache whose writes go to the source of truth first.

The guarantee: once a write has returned, no reader of this cache gets what was there before it. The order of two writes
to one key that overlap in time is the source's to decide, and the cache cannot see it; so it then keeps neither value
and the next reader asks the source. No lock is held while the source is written to.
"""

import inspect
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any, Generic, TypeVar

from kvpredict.cache.arguments import plain_result, with_methods
from kvpredict.cache.cache import Cache
from kvpredict.core.errors import KvpredictError

__all__ = ["Overlaps", "WriteThrough"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Overlaps:
    """Which writes to one key overlap in time."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._under_way: dict[Hashable, list[int]] = {}  # key -> writes under way, and whether any have overlapped

    def begin(self, key: Hashable) -> None:
        """A write to ``key`` begins."""
        with self._lock:
            writes = self._under_way.setdefault(key, [0, 0])
            writes[0] += 1
            writes[1] |= writes[0] > 1

    def end(self, key: Hashable) -> bool:
        """A write to ``key`` has ended; tell whether any other overlapped with it, or with one that did."""
        with self._lock:
            writes = self._under_way[key]
            writes[0] -= 1
            if writes[0] == 0:
                del self._under_way[key]
            return bool(writes[1])


class WriteThrough(Generic[K, V]):
    """Writes to a source and its cache; read from ``cache`` as usual, by ``get_or_load``.

    Parameters
    ----------
    cache : Cache
    write : callable
        ``write(key, value)`` returns when the source holds the value for good. ``aput`` takes a coroutine function as
        well; a plain one runs in the event loop's thread there.
    erase : callable, optional
        ``erase(key)`` does the same for a deletion.
    bus : RedisInvalidation, optional
        Tells other processes of each write.

    When the source raises, whether it holds the value is not known: the cache forgets the key, and the error is raised.

    >>> source = {}
    >>> store = WriteThrough(Cache(10), source.__setitem__, source.__delitem__)
    >>> store.put("a", 1), source, store.cache["a"]
    (None, {'a': 1}, 1)
    """

    def __init__(
        self,
        cache: Cache[K, V],
        write: Callable[[K, V], Any],
        erase: Callable[[K], Any] | None = None,
        *,
        bus: Any = None,
    ) -> None:
        for name, given in (("write", write), ("erase", erase)):
            if not callable(given) and (name == "write" or given is not None):
                raise KvpredictError(f"{name} must be callable, got {type(given).__name__}")
        self.cache = with_methods("cache", cache, "a Cache", "put", "invalidate")
        self._write, self._erase, self._bus = write, erase, bus
        self._overlaps = Overlaps()

    def put(self, key: K, value: V, **terms: Any) -> None:
        """Write ``value`` to the source, then to the cache; ``terms`` are as for ``Cache.put``."""
        self._overlaps.begin(key)
        done = False
        try:
            plain_result(self._write(key, value), f"the write of key {key!r} is to be awaited: use aput, and await it")
            done = True
        finally:
            self._end(key, done, lambda: self.cache.put(key, value, **terms))

    async def aput(self, key: K, value: V, **terms: Any) -> None:
        """As ``put``, where ``write`` may be a coroutine function."""
        self._overlaps.begin(key)
        done = False
        try:
            writing = self._write(key, value)
            if inspect.isawaitable(writing):
                await writing
            done = True
        finally:
            self._end(key, done, lambda: self.cache.put(key, value, **terms))

    def delete(self, key: K) -> None:
        """Erase ``key`` in the source, then in the cache."""
        if self._erase is None:
            raise KvpredictError("this store has no erase: give one as WriteThrough(cache, write, erase)")
        self._overlaps.begin(key)
        try:
            plain_result(self._erase(key), f"the erasing of key {key!r} is to be awaited: use adelete, and await it")
        finally:
            self._end(key, False, None)

    async def adelete(self, key: K) -> None:
        """As ``delete``, where ``erase`` may be a coroutine function."""
        if self._erase is None:
            raise KvpredictError("this store has no erase: give one as WriteThrough(cache, write, erase)")
        self._overlaps.begin(key)
        try:
            erasing = self._erase(key)
            if inspect.isawaitable(erasing):
                await erasing
        finally:
            self._end(key, False, None)

    def _end(self, key: K, keep: bool, put: Callable[[], Any] | None) -> None:
        try:
            # Put in before this write counts as over: a later one then sees that it overlaps.
            if keep and put is not None:
                put()
            else:
                self.cache.invalidate(key)
        finally:
            if self._overlaps.end(key):
                self.cache.invalidate(key)
            if self._bus is not None:
                self._bus.publish(key)
