"""WriteBehind: writes are acknowledged at once and handed to the source of truth in batches, a little later.

The guarantees. Readers of this object see every write as soon as it is acknowledged. A write that is acknowledged stays
in memory until the source has taken it: what the source refuses is tried again, and the bounded line of writes makes
``put`` wait, or fail, rather than forget. ``close`` and ``flush`` raise when something is left. With a ``journal`` an
acknowledged write is in a SQLite file as well, and the next process to open that journal hands it on, so that it
survives the process being killed (with ``durable=True`` the machine losing power). A write may then reach the source
twice, and writes to one key that follow quickly reach it as the last one alone: the source must take the last value
for the truth.
"""

import atexit
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast

from kvpredict.cache.arguments import plain_function, plain_result, with_methods
from kvpredict.cache.cache import Cache
from kvpredict.cache.errors import WriteBehindError
from kvpredict.cache.expiry import duration
from kvpredict.cache.forks import starts_over_in_child
from kvpredict.cache.through import Overlaps
from kvpredict.core.arguments import whole_number
from kvpredict.core.errors import KvpredictError

__all__ = ["ERASED", "WriteBehind"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
D = TypeVar("D")

log = logging.getLogger("kvpredict")


class _Erased:
    """The value of a key that is to be erased."""

    def __repr__(self) -> str:
        return "ERASED"


ERASED: Any = _Erased()


class WriteBehind(Generic[K, V]):
    """A store of writes on their way, over a cache.

    Parameters
    ----------
    cache : Cache
    write_many : callable
        ``write_many([(key, value), …])`` returns when the source holds all of them. A value is ``ERASED`` for a key
        that was deleted. It must bear to be called twice with the same writes, and be a plain function, not a
        coroutine function.
    interval : float, default 0.5
        Seconds that a write waits for others to go with.
    batch : int, default 256
        The most writes in one call.
    limit : int, default 10_000
        The most keys that wait.
    when_full : "wait" or "fail", default "wait"
        What ``put`` does beyond that.
    patience : float, default 10.0
        Seconds that ``put`` waits for room before it fails.
    retry : float, default 0.1
        Seconds until a failed call is tried again; doubles up to 30.
    journal : path, optional
        A SQLite file for writes on their way. One process at a time may have it open.
    durable : bool, default False
        Whether the journal is forced to the disk with each write.
    codec : Codec, optional
        How the journal keeps keys and values.

    Attributes
    ----------
    error : Exception or None
        What the source raised last, until it takes a batch again.
    written, failures : int
        Writes handed to the source, and calls that failed.

    When a batch fails its writes are tried one by one, so that one that the source never takes holds up no other.

    >>> source = {}
    >>> with WriteBehind(Cache(10), source.update) as store:
    ...     store.put("a", 1)
    ...     store.get("a")
    1
    >>> source
    {'a': 1}
    """

    def __init__(
        self,
        cache: Cache[K, V],
        write_many: Callable[[Sequence[tuple[K, V]]], Any],
        *,
        interval: float = 0.5,
        batch: int = 256,
        limit: int = 10_000,
        when_full: Literal["wait", "fail"] = "wait",
        patience: float = 10.0,
        retry: float = 0.1,
        journal: str | Path | None = None,
        durable: bool = False,
        codec: Any = None,
    ) -> None:
        if when_full not in ("wait", "fail"):
            raise KvpredictError(f'when_full is "wait" or "fail", got {when_full!r}')
        self.cache = with_methods("cache", cache, "a Cache", "put", "get", "get_or_load", "invalidate")
        self._write_many = plain_function("write_many", write_many)
        self._interval, self._patience = duration("interval", interval), duration("patience", patience)
        self._retry = duration("retry", retry)
        self._batch, self._limit = whole_number("batch", batch), whole_number("limit", limit)
        self._when_full = when_full
        self.error: Exception | None = None
        self.written = self.failures = 0
        self._lock = threading.Condition()
        self._waiting: dict[K, Any] = {}  # acknowledged, first come first
        self._going: dict[K, Any] = {}  # in the batch that is being written
        self._overlaps = Overlaps()
        self._hurry = self._closed = False
        self._journal: Any = None
        if journal is not None:
            from kvpredict.cache.journal import Journal

            self._journal = Journal(journal, durable, codec)
            for key, value in self._journal.left():
                self._waiting[key] = value
                if value is not ERASED:
                    cache.put(key, value)
        self._thread = threading.Thread(target=self._work, name="kvpredict-write-behind", daemon=True)
        self._thread.start()
        atexit.register(self._at_exit)
        starts_over_in_child(self)

    def _forked(self) -> None:
        """Take nothing in a forked child: what waits is the parent's to hand on, and so is the journal."""
        self._lock = threading.Condition()
        self._waiting, self._going = {}, {}
        if self._journal is not None:
            self._journal.leave()
        self._closed, self._journal = True, None
        self._overlaps = Overlaps()
        atexit.unregister(self._at_exit)

    @property
    def pending(self) -> int:
        """Keys whose last write the source has not taken yet."""
        with self._lock:
            return len(self._waiting.keys() | self._going.keys())

    def put(self, key: K, value: V, **terms: Any) -> None:
        """Acknowledge a write; ``terms`` are as for ``Cache.put``.

        Raises
        ------
        WriteBehindError
            When there is no room, and none within ``patience`` seconds where it waits; or after ``close``. The write
            is then not acknowledged, and nothing has changed.
        """
        self._overlaps.begin(key)
        try:
            self._acknowledge(key, value)
            # Even one that the cache does not take ends the loads of older values under way.
            self.cache.put(key, value, **terms)
        finally:
            # Two writes may be acknowledged in one order and reach the cache in the other.
            if self._overlaps.end(key):
                self.cache.invalidate(key)

    def delete(self, key: K) -> None:
        """Acknowledge a deletion; raises as ``put`` does."""
        self._overlaps.begin(key)
        try:
            self._acknowledge(key, ERASED)
        finally:
            self._overlaps.end(key)
            self.cache.invalidate(key)

    def get(self, key: K, default: Any = None) -> Any:
        """Return the value of ``key`` in the cache, or on its way to the source."""
        value = self._on_its_way(key)
        if value is None:
            return self.cache.get(key, default)
        return default if value[0] is ERASED else value[0]

    def get_or_load(self, key: K, loader: Callable[[K], V] | None = None, **terms: Any) -> V:
        """As ``Cache.get_or_load``, never older than what is on its way to the source.

        KeyError for a key whose deletion is on its way.
        """
        value = self._on_its_way(key)
        if value is not None:
            if value[0] is ERASED:
                raise KeyError(key)
            return cast("V", value[0])
        return self.cache.get_or_load(key, loader, **terms)

    def flush(self, timeout: float | None = None) -> None:
        """Return when the source holds every write acknowledged before.

        Raises
        ------
        WriteBehindError
            When that takes longer than ``timeout`` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            self._hurry = True
            self._lock.notify_all()
            while self._waiting or self._going:
                rest = None if deadline is None else deadline - time.monotonic()
                if rest is not None and rest <= 0:
                    raise WriteBehindError(self._left())
                self._lock.wait(rest)

    def close(self, timeout: float = 30.0) -> None:
        """Take no more writes, hand on what waits, and end; raises as ``flush`` does, and may be called again."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        self.flush(timeout)
        self._thread.join(timeout)
        atexit.unregister(self._at_exit)
        if self._journal is not None:
            self._journal.close()

    def __enter__(self) -> "WriteBehind[K, V]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _on_its_way(self, key: K) -> tuple[Any] | None:
        with self._lock:
            for held in (self._waiting, self._going):
                if key in held:
                    return (held[key],)
        return None

    def _acknowledge(self, key: K, value: Any) -> None:
        hash(key)
        deadline = time.monotonic() + self._patience
        with self._lock:
            while key not in self._waiting and len(self._waiting) + len(self._going) >= self._limit:
                rest = deadline - time.monotonic()
                if self._closed or self._when_full == "fail" or rest <= 0:
                    break
                self._hurry = True
                self._lock.notify_all()
                self._lock.wait(rest)
            else:
                if not self._closed:
                    if self._journal is not None:
                        self._journal.note(key, value)
                    self._waiting[key] = value
                    self._lock.notify_all()
                    return
            if self._closed:
                raise WriteBehindError(
                    "the store is closed, or was made before this process was forked; the write was not taken"
                )
            raise WriteBehindError(f"no room for key {key!r}, which was not taken: {self._left()}")

    def _left(self) -> str:
        why = f"the source raised {self.error!r}" if self.error else "the source is slower than the writes"
        kept = f"they are kept in {self._journal.path}" if self._journal else "flush again before the process ends"
        return f"{len(self._waiting) + len(self._going)} writes wait ({why}); {kept}"

    def _work(self) -> None:
        pause = self._retry
        while True:
            with self._lock:
                while not self._waiting and not self._closed:
                    self._lock.wait()
                if not self._waiting:
                    return
                if not self._hurry and not self._closed and len(self._waiting) < self._batch:
                    self._lock.wait_for(lambda: self._hurry or self._closed, self._interval)
                keys = list(self._waiting)[: self._batch]
                self._going = {key: self._waiting.pop(key) for key in keys}
                mark = None if self._journal is None else self._journal.mark()
            refused = self._hand_on(list(self._going.items()))
            with self._lock:
                taken = [key for key in self._going if key not in refused]
                if self._journal is not None and taken:
                    self._strike(taken, mark)
                self.written += len(taken)
                # Refused writes go to the end of the line, unless there is a later one of the key.
                for key, value in refused.items():
                    self._waiting.setdefault(key, value)
                self._going = {}
                if not self._waiting:
                    self._hurry = False
                self._lock.notify_all()
                if refused:
                    self._lock.wait(pause)
                    pause = min(2 * pause, 30.0)
                else:
                    pause = self._retry

    def _strike(self, keys: list[K], mark: Any) -> None:
        try:
            self._journal.strike(keys, mark)
        except WriteBehindError as error:  # they will be written again by the next process, which does no harm
            log.warning("%s", error)

    def _hand_on(self, writes: list[tuple[K, Any]]) -> dict[K, Any]:
        """Write a batch; return the writes that the source refused."""
        try:
            self._write(writes)
            self.error = None
            return {}
        except Exception as error:
            self._failed(error, len(writes))
        refused = dict(writes)
        if len(writes) > 1:
            for write in writes:
                try:
                    self._write([write])
                    del refused[write[0]]
                except Exception as error:
                    self._failed(error, 1)
                    if len(refused) == len(writes):
                        break  # not even the first: it is the source that fails, not one write
        return refused

    def _write(self, writes: list[tuple[K, Any]]) -> None:
        plain_result(self._write_many(writes), "write_many returned an awaitable, which nobody awaits: use a plain one")

    def _failed(self, error: Exception, count: int) -> None:
        if self.error is None:
            log.warning("a source did not take %d writes, which will be tried again: %r", count, error)
        self.error = error
        self.failures += 1

    def _at_exit(self) -> None:
        with contextlib.suppress(WriteBehindError):
            self.close(5.0)
            return
        log.error("%s", self._left())
