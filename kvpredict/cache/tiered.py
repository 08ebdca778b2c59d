"""TieredCache: memory over disk over Redis, or any of these; what memory lacks is looked for below before it is loaded.

Policies decide what moves. What a lower tier has is offered to memory, whose policy takes it or not (promotion). What
memory's policy evicts is offered to the next tier that fills by eviction, whose policy does likewise (demotion). Tiers
that fill by loading get values as they are loaded, for other processes.

A value on its way down may have been overtaken by a deletion. So each carries the count of deletions, of its key's
stripe, from when it was put in, and is only written below while that count stands, under the lock that deletions take
there. Memory is never called under that lock.
"""

import threading
import time
from array import array
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

from kvpredict.cache.cache import Cache
from kvpredict.cache.codec import Codec
from kvpredict.cache.errors import CodecError
from kvpredict.cache.expiry import duration
from kvpredict.cache.forks import starts_over_in_child
from kvpredict.cache.loading import VACANT, plain_value
from kvpredict.cache.loads import Loaded
from kvpredict.cache.mapping import KeyedMethods
from kvpredict.cache.removal import Cause
from kvpredict.cache.stats import Stats
from kvpredict.cache.tiers import Guarded, Tier
from kvpredict.core.arguments import whole_number
from kvpredict.core.errors import KvpredictError

__all__ = ["Local", "TierStats", "TieredCache"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

LEAST_STRIPES, MOST_STRIPES = 2**10, 2**20


class TierStats(NamedTuple):
    """What one tier has counted; ``error`` is the last one, for people to read."""

    name: str
    up: bool
    hits: int
    misses: int
    errors: int
    error: str


class _Box(NamedTuple):
    """A value in memory, with what is needed to write it below."""

    value: Any
    stamp: int  # deletions in its stripe before it was put in
    ends: float | None  # wall-clock time of its end
    version: int | None
    tags: tuple[str, ...]


class _Missing(BaseException):
    """No tier has the key: no outcome for those who wait with a loader, who then try for themselves."""


class TieredCache(KeyedMethods[K, V]):
    """A cache whose lower tiers are outside the process or on disk.

    Parameters
    ----------
    capacity, policy
        Of memory, as for ``Cache``.
    tiers : sequence of Tier or Guarded
        From the nearest to the farthest. A bare tier is put behind a breaker with its defaults.
    codec : Codec, optional
        How values are written below. Default: msgpack, compressed.
    weigher, on_removal, **options
        As for ``Cache``; ``on_removal`` is told of what leaves memory.

    After ``close`` it can be looked at, and refuses all else.

    Keys must be plain: text, bytes, numbers, and tuples of these. What the codec cannot encode stays in memory alone
    and is counted in ``unencodable``. No failure of a tier is raised; ``tier_stats`` tells of them.

    >>> from tempfile import TemporaryDirectory
    >>> from kvpredict.cache import DiskTier
    >>> with TemporaryDirectory() as folder:
    ...     disk, codec = DiskTier(f"{folder}/tier.db", 10**6), Codec("json", compress=None)
    ...     cache = TieredCache(1, "lru", tiers=[disk], codec=codec)
    ...     cache.put("a", 1), cache.put("b", 2), "a" in cache.memory, cache.get("a"), cache.tier_stats()[0].hits
    ...     cache.close()
    (True, True, False, 1, 1)
    """

    def __init__(
        self,
        capacity: int,
        policy: Any = "s3fifo",
        *,
        tiers: Sequence[Tier | Guarded],
        codec: Codec | None = None,
        weigher: Callable[[V], int] | None = None,
        on_removal: Callable[[K, V, Cause], Any] | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(tiers, Sequence):
            raise KvpredictError(f"tiers must be a sequence, such as [DiskTier(…)], got {type(tiers).__name__}")
        self.tiers = [tier if isinstance(tier, Guarded) else Guarded(tier) for tier in tiers]
        for tier in self.tiers:
            if tier.fill not in ("load", "evict"):
                raise KvpredictError(f'fill of {tier.name} is "load" or "evict", got {tier.fill!r}')
        self._codec = Codec() if codec is None else codec
        self._on_removal = on_removal
        self._loader = options.pop("loader", None)
        # Several stripes for each entry, so that a write to one key seldom keeps another from moving down.
        stripes = min(max(LEAST_STRIPES, 8 * whole_number("capacity", capacity)), MOST_STRIPES)
        self._stamps = array("q", bytes(8 * stripes))
        self._forked()
        starts_over_in_child(self)
        self.unencodable = 0
        self._closed = False
        weigh = None if weigher is None else lambda box: weigher(box.value)
        expiry = options.get("expiry")
        if expiry is not None and expiry.compute is not None:
            raise KvpredictError("Expiry(compute=…) is not for a tiered cache: let the loader return Loaded(…, ttl=…)")
        self._ttl = options.get("ttl") if expiry is None else expiry.ttl
        self.memory: Cache[K, _Box] = Cache(capacity, policy, weigher=weigh, on_removal=self._removed, **options)

    def get(self, key: K, default: Any = None) -> Any:
        """Return the value of ``key`` from the nearest tier that has it, or ``default``."""
        self._check_open()
        box: Any = self.memory.get(key, VACANT)
        if box is not VACANT:
            return box.value
        try:
            return self.memory.get_or_load(key, self._from_below).value
        except _Missing:
            return default

    def get_or_load(self, key: K, loader: Callable[[K], V | Loaded] | None = None, **terms: Any) -> V:
        """As ``Cache.get_or_load``, looking into every tier before it loads."""
        self._check_open()
        return cast("V", self.memory.get_or_load(key, self._reader(loader), **terms).value)

    async def aget_or_load(self, key: K, loader: Any = None, **terms: Any) -> V:
        """As ``Cache.aget_or_load``; the tiers are asked in a thread, so that they do not hold up the event loop."""
        import asyncio

        self._check_open()
        loader = self._able(loader)

        async def load(key: K) -> Loaded:
            stamp = self._stamp(key)
            found = await asyncio.to_thread(self._look_below, key, stamp)
            if found is not None:
                return found
            value = loader(key)
            if hasattr(value, "__await__"):
                value = await value
            return await asyncio.to_thread(self._arrived, key, value, stamp)

        return cast("V", (await self.memory.aget_or_load(key, load, **terms)).value)

    def put(
        self,
        key: K,
        value: V,
        *,
        ttl: float | None = None,
        tags: tuple[str, ...] = (),
        version: int | None = None,
        **terms: Any,
    ) -> bool:
        """Set the value of ``key`` in all tiers; tell whether memory took it in.

        A later version in memory stays, as in ``Cache.put``; that of a tier below is not looked at.
        """
        self._check_open()
        held = self.memory.peek(key)
        if version is not None and held is not None and held.version is not None and held.version > version:
            return False
        with self._lock_of(key):
            stamp = self._supersede(key)
            box = self._box(key, value, stamp, ttl, version, tags)
            self._fill(key, box, "load")
        taken = self.memory.put(key, box, ttl=ttl, tags=tags, version=version, **terms)
        if self._stamp(key) != stamp:  # overtaken: which of two writes memory saw last is not known
            self.memory.invalidate(key)
        elif not taken and key not in self.memory:
            with self._lock_of(key):
                self._demote(key, box)
        return taken

    def delete(self, key: K) -> bool:
        """Remove ``key`` from all tiers; tell whether memory had it."""
        self._check_open()
        return self._delete(key, shared=True)

    def invalidate(self, key: K) -> bool:
        """As ``delete``: no load of the key under way is cached."""
        return self.delete(key)

    def clear(self) -> None:
        """Empty all tiers."""
        self._check_open()
        self._clear(shared=True)

    @property
    def local(self) -> "Local":
        """What of it is this process's own, memory and tiers that are not shared, to be cleared by itself."""
        return Local(self)

    def _delete(self, key: K, shared: bool) -> bool:
        with self._lock_of(key):
            self._supersede(key, shared)
        return self.memory.delete(key)

    def _clear(self, shared: bool) -> None:
        for lock in self._locks:
            lock.acquire()
        try:
            for stripe in range(len(self._stamps)):
                self._stamps[stripe] += 1
            for tier in self.tiers:
                if shared or not tier.shared:
                    tier.clear()
        finally:
            for lock in self._locks:
                lock.release()
        self.memory.clear()

    __iter__ = None  # all that there is below cannot be listed

    def __contains__(self, key: object) -> bool:
        """Tell whether memory has ``key``."""
        return key in self.memory

    def __len__(self) -> int:
        """Return the entries in memory."""
        return len(self.memory)

    def stats(self) -> Stats:
        """Return the counts of memory; a value found below counts as a load."""
        return self.memory.stats()

    def tier_stats(self) -> list[TierStats]:
        """Return the counts of the tiers below, from the nearest."""
        return [
            TierStats(tier.name, tier.up, tier.hits, tier.misses, tier.errors, str(tier.error or ""))
            for tier in self.tiers
        ]

    def close(self) -> None:
        """Demote what is in memory, so that the next process finds it, and close the tiers; may be called again."""
        if self._closed:
            return
        self._closed = True
        for key, box in self.memory.items():
            with self._lock_of(key):
                self._demote(key, box)
        for tier in self.tiers:
            tier.close()

    def __enter__(self) -> "TieredCache[K, V]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- Inside ---

    def _check_open(self) -> None:
        if self._closed:
            raise KvpredictError("this tiered cache is closed, and so are its tiers: make another one")

    def _forked(self) -> None:
        self._locks = [threading.Lock() for _ in range(64)]

    def _lock_of(self, key: K) -> Any:
        return self._locks[hash(key) % len(self._locks)]

    def _supersede(self, key: K, shared: bool = True) -> int:
        """Have what the tiers hold of ``key``, and what is on its way there, count no more; under its lock."""
        self._stamps[hash(key) % len(self._stamps)] += 1
        name = self._codec.encode_key(key)
        for tier in self.tiers:
            if shared or not tier.shared:
                tier.delete(name)
        return self._stamp(key)

    def _stamp(self, key: K) -> int:
        return self._stamps[hash(key) % len(self._stamps)]

    def _able(self, loader: Any) -> Any:
        if loader is None and self._loader is None:
            raise KvpredictError("no loader: give one to the call, or to the cache as TieredCache(…, loader=…)")
        return loader or self._loader

    def _reader(self, loader: Any) -> Callable[[K], Loaded]:
        loader = self._able(loader)

        def read(key: K) -> Loaded:
            stamp = self._stamp(key)
            found = self._look_below(key, stamp)
            return self._arrived(key, plain_value(key, loader(key)), stamp) if found is None else found

        return read

    def _from_below(self, key: K) -> Loaded:
        found = self._look_below(key, self._stamp(key))
        if found is None:
            raise _Missing
        return found

    def _look_below(self, key: K, stamp: int) -> Loaded | None:
        if not self.tiers:
            return None
        name = self._codec.encode_key(key)
        for tier in self.tiers:
            data = tier.get(name)
            if data is None:
                continue
            try:
                value, ends, version, tags = self._codec.decode(data)
            except CodecError:
                tier.delete(name)
                tier.errors += 1
                continue
            rest = None if ends is None else ends - time.time()
            if rest is None or rest > 0:
                box = _Box(value, stamp, ends, version, tags)
                return Loaded(box, ttl=rest, tags=tags, version=version)
        return None

    def _arrived(self, key: K, loaded: Any, stamp: int) -> Loaded:
        """Return what memory keeps of a loaded value, having offered it to the tiers that fill by loading."""
        if type(loaded) is not Loaded:
            loaded = Loaded(loaded)
        box = self._box(key, loaded.value, stamp, loaded.ttl, loaded.version, loaded.tags)
        with self._lock_of(key):
            if self._stamp(key) == stamp:
                self._fill(key, box, "load")
        return loaded._replace(value=box)

    def _box(
        self, key: K, value: Any, stamp: int, ttl: float | None, version: int | None, tags: tuple[str, ...]
    ) -> _Box:
        ttl = self._ttl if ttl is None else duration("ttl", ttl, key=key)
        return _Box(value, stamp, None if ttl is None else time.time() + ttl, version, tags)

    def _fill(self, key: K, box: _Box, fill: str, last: bool = False) -> None:
        """Offer a value to the tiers that fill this way; to the first alone where ``last``."""
        takers = [tier for tier in self.tiers if tier.fill == fill]
        rest = None if box.ends is None else box.ends - time.time()
        if not takers or (rest is not None and rest <= 0):
            return
        name = self._codec.encode_key(key)
        data = None
        for tier in takers:
            if not tier.holds(name):
                if data is None:
                    try:
                        data = self._codec.encode((box.value, box.ends, box.version, tuple(box.tags)))
                    except CodecError:
                        self.unencodable += 1
                        return
                if tier.put(name, data, rest) and last:
                    return
            elif last:
                return

    def _demote(self, key: K, box: _Box) -> None:
        if self._stamp(key) == box.stamp:
            self._fill(key, box, "evict", last=True)

    def _removed(self, key: K, box: _Box, cause: Cause) -> None:
        if cause is Cause.EVICTED:
            with self._lock_of(key):
                if key not in self.memory:
                    self._demote(key, box)
        if self._on_removal is not None:
            self._on_removal(key, box.value, cause)


class Local:
    """The tiers of a ``TieredCache`` that no other process uses, as ``RedisInvalidation`` needs them."""

    def __init__(self, cache: TieredCache[Any, Any]) -> None:
        self._cache = cache

    def invalidate(self, key: Any, *, before: int | None = None) -> bool:
        """Remove ``key``; of which version it is below is not looked at."""
        return self._cache._delete(key, shared=False)

    def invalidate_tags(self, *tags: str) -> int:
        """Remove everything: tiers below memory cannot be searched by tag."""
        count = len(self._cache)
        self.clear()
        return count

    def clear(self) -> None:
        """Remove everything."""
        self._cache._clear(shared=False)
