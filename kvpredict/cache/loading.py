"""Loading: what a cache does about a key that it lacks, for threads and coroutines alike.

One loads and the others wait (``loads``); a permit bounds how many load at once (``gate``); failures that say "there
is no such thing" may be kept for a while; a value that is over may stand in for a source that fails; and one that is
nearly over is fetched anew in the background. No lock is held while a loader runs.
"""

import asyncio
import copy
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping
from threading import get_ident
from typing import Any, Generic, NamedTuple, TypeVar, cast

from kvpredict.cache.arguments import is_coroutine_function, plain_result
from kvpredict.cache.background import Background
from kvpredict.cache.entry import Entry, make_entry
from kvpredict.cache.errors import LoadTimeout, TooManyLoads, UnknownKey
from kvpredict.cache.expiry import Expiry, Held, duration
from kvpredict.cache.gate import Gate
from kvpredict.cache.loads import Flight, Flights, Loaded, Loads
from kvpredict.cache.ranking import MISS
from kvpredict.core.errors import KvpredictError

__all__ = ["VACANT", "Failure", "Loading", "bare_value", "plain_value"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

VACANT: Any = object()  # no value
NONE = make_entry(MISS, None)  # no entry
NOTHING = make_entry(MISS, VACANT)

log = logging.getLogger("kvpredict")


class Terms(NamedTuple):
    """How a loaded value is to be kept; as for ``put``."""

    size: int | None
    cost: float
    extra: Mapping[str, float] | None
    ttl: float | None
    tags: tuple[str, ...]
    version: int | None


PLAIN = Terms(None, 1.0, None, None, (), None)


class Failure:
    """Held in place of a value: the error with which a loader said that there is none."""

    __slots__ = ("_error",)

    def __init__(self, error: Exception) -> None:
        self._error = _bare(error)

    def again(self) -> Exception:
        """Return the error, to be raised anew; one that can be copied brings no traceback of earlier callers."""
        return _bare(self._error)


def _bare(error: Exception) -> Exception:
    try:
        twin = copy.copy(error)
    except Exception:  # its constructor wants other arguments than it keeps
        twin = error
    return twin.with_traceback(None) if type(twin) is type(error) else error.with_traceback(None)


class Loading(Generic[K, V]):
    """The loading half of ``Cache``."""

    __slots__ = (
        "_background",
        "_flights",
        "_gate",
        "_known",
        "_load_failures",
        "_load_refusals",
        "_load_seconds",
        "_loader",
        "_loads",
        "_loads_config",
        "_refreshes",
        "_stale_served",
        "_tasks",
    )

    _lock: Any  # these are the cache's
    _clock: Callable[[], float]
    _entries: dict[K, Entry]
    _busy: bool
    _watchful: bool
    _expiry: Expiry
    policy: Any
    get: Any
    _exclusively: Any
    _prepare: Any
    _hold: Any
    _put: Any
    _aftermath: Any

    def _open_loading(self, loads: Loads, loader: Callable[[K], Any] | None) -> None:
        self._loads_config, self._loader = loads, loader
        self._known = loads.known
        self._gate = None if loads.limit is None else Gate(loads.limit, loads.when_full == "wait")
        self._background = Background(loads.workers, name="kvpredict-refresh")
        self._tasks: set[asyncio.Task[Any]] = set()  # an event loop keeps no reference to its tasks
        self._flights = Flights()
        self._loads = self._load_failures = self._refreshes = self._stale_served = self._load_refusals = 0
        self._load_seconds = 0.0

    def get_or_load(
        self,
        key: K,
        loader: Callable[[K], V | Loaded] | None = None,
        *,
        size: int | None = None,
        cost: float = 1.0,
        extra: Mapping[str, float] | None = None,
        ttl: float | None = None,
        tags: tuple[str, ...] = (),
        version: int | None = None,
        timeout: float | None = None,
    ) -> V:
        """Return the value of ``key``; where it is missing, from ``loader(key)``, which is then cached.

        Of concurrent callers who miss the same key, threads or coroutines, one calls its loader and the others wait
        for the outcome. When the loader raises, all of them get its exception and nothing is cached, unless ``Loads``
        and ``Expiry`` say otherwise. When the key is written, deleted or invalidated during the load, what the loader
        returns is handed out and not cached.

        Parameters
        ----------
        key
        loader : callable, optional
            ``loader(key)`` returns the value, or a ``Loaded`` that says more. Default: the cache's own.
        size, cost, extra, ttl, tags, version
            As for ``put``.
        timeout : float, optional
            Seconds to wait for another caller's load, or for a turn to load. Default: that of ``Loads``.

        Raises
        ------
        LoadTimeout
            When that takes longer and there is no stale value.
        TooManyLoads
            Beyond ``Loads(limit=…, when_full="fail")``.
        UnknownKey
            For a key that ``Loads(known=…)`` does not hold.
        KvpredictError
            When a loader asks for the very key that it is loading, or a coroutine waits here for another one.
        """
        value: Any = self.get(key, VACANT)
        if value is not VACANT:
            if self._watchful:
                self._renew(key, loader or self._loader, Terms(size, cost, extra, ttl, tags, version))
            return cast("V", value)
        loader = self._able(loader)
        value = self._instead(key)
        timeout = self._loads_config.timeout if timeout is None else duration("timeout", timeout, least=0.0)
        while value is VACANT:
            flight, leads, value = self._join(key, get_ident())
            if value is not VACANT:
                break
            if flight is None:
                value = plain_value(key, loader(key))
                return cast("V", value.value if type(value) is Loaded else value)
            if leads:
                return self._lead(flight, key, loader, Terms(size, cost, extra, ttl, tags, version), timeout)
            try:
                self._flights.wait(key, flight, timeout)
            except TimeoutError:
                return self._timed_out(key, timeout)
            value = flight.value if flight.error is None else VACANT
            if isinstance(flight.error, Exception):
                raise flight.error
            # Else the leading thread was interrupted, which is no outcome: try again.
        return cast("V", value)

    async def aget_or_load(
        self,
        key: K,
        loader: "Callable[[K], Awaitable[V | Loaded] | V | Loaded] | None" = None,
        *,
        size: int | None = None,
        cost: float = 1.0,
        extra: Mapping[str, float] | None = None,
        ttl: float | None = None,
        tags: tuple[str, ...] = (),
        version: int | None = None,
        timeout: float | None = None,
    ) -> V:
        """As ``get_or_load``, for coroutines: waits without holding up the event loop.

        ``loader`` may be a coroutine function or a plain one, which then runs in the event loop's thread. Threads and
        coroutines that miss the same key share one load. A coroutine that is cancelled while it loads hands the load
        on to one of those who wait for it.
        """
        value: Any = self.get(key, VACANT)
        if value is not VACANT:
            if self._watchful:
                self._renew(key, loader or self._loader, Terms(size, cost, extra, ttl, tags, version))
            return cast("V", value)
        loader = self._able(loader)
        value = self._instead(key)
        timeout = self._loads_config.timeout if timeout is None else duration("timeout", timeout, least=0.0)
        me = asyncio.current_task()
        while value is VACANT:
            flight, leads, value = self._join(key, me)
            if value is not VACANT:
                break
            if flight is None:
                value = await _called(loader, key)
                return cast("V", value.value if type(value) is Loaded else value)
            if leads:
                return await self._alead(flight, key, loader, Terms(size, cost, extra, ttl, tags, version), timeout)
            try:
                await self._flights.await_(key, flight, timeout, me)
            except TimeoutError:
                return self._timed_out(key, timeout)
            value = flight.value if flight.error is None else VACANT
            if isinstance(flight.error, Exception):
                raise flight.error
        return cast("V", value)

    def refresh(self, key: K, loader: Callable[[K], V | Loaded] | None = None, **terms: Any) -> V:
        """Load ``key`` although it may be cached, and return the new value.

        ``terms`` are as for ``get_or_load``. A load under way is waited for instead. When the loader raises, its
        exception is raised here and the old value stays until its time is over.
        """
        loader = self._able(loader)
        kept = PLAIN._replace(**terms)
        timeout = self._loads_config.timeout
        while True:
            flight, leads, _ = self._join(key, get_ident(), anew=True)
            if flight is None:
                value: Any = plain_value(key, loader(key))
                return cast("V", value.value if type(value) is Loaded else value)
            if leads:
                return self._lead(flight, key, loader, kept, timeout, lenient=False)
            try:
                self._flights.wait(key, flight, timeout)
            except TimeoutError:
                raise _late(key, timeout) from None
            if flight.error is None:
                return cast("V", flight.value)
            if isinstance(flight.error, Exception):
                raise flight.error

    # --- Inside ---

    def _able(self, loader: Any) -> Any:
        if loader is None:
            loader = self._loader
            if loader is None:
                raise KvpredictError("no loader: give one to the call, or to the cache as Cache(loader=…)")
        return loader

    def _instead(self, key: K) -> Any:
        """Return a stale value while its source is left alone, else VACANT; raise what is known to be wrong."""
        if self._known is not None and key not in self._known:
            raise UnknownKey(f"key {key!r} is not among the known keys, so it was not loaded; add it to Loads(known=…)")
        if self._watchful:
            held = self._entries.get(key, NONE).value
            if type(held) is Held:
                now = self._clock()
                if type(held.value) is Failure:
                    if held.fresh(now):
                        raise held.value.again()
                elif not held.gone(now) and now < held.retry_at:
                    self._stale_served += 1
                    return held.value
        return VACANT

    def _join(self, key: K, me: Hashable, anew: bool = False) -> tuple[Flight | None, bool, Any]:
        """Return the flight, None within another call of this cache, who leads it, and the value if it is there now."""
        with self._lock:
            if self._busy:
                return None, False, VACANT  # nobody may wait while holding the lock: the call loads for itself
            # Another load may have landed since this caller's look.
            value = VACANT if anew else self._now(key)
            if value is not VACANT:
                return None, False, value
            flight, leads = self._exclusively(self._flights.join, key, me)
            return flight, leads, VACANT

    def _now(self, key: K) -> Any:
        """Return the value of ``key`` if it is there and fresh, without counting it as a use."""
        return self._bare(self._entries.get(key, NOTHING).value)

    def _bare(self, value: Any) -> Any:
        """Return the value of an entry as callers know it now."""
        return bare_value(value, self._clock()) if type(value) is Held else value

    def _stale(self, key: K) -> Any:
        """Return the value of ``key`` if it is still of use, fresh or not."""
        held = self._entries.get(key, NOTHING).value
        if type(held) is not Held:
            return held
        return VACANT if type(held.value) is Failure or held.gone(self._clock()) else held.value

    def _timed_out(self, key: K, timeout: float | None) -> V:
        value = self._stale(key)
        if value is VACANT:
            raise _late(key, timeout) from None
        self._stale_served += 1
        return cast("V", value)

    def _lead(
        self, flight: Flight, key: K, loader: Any, terms: Terms, timeout: float | None, *, lenient: bool = True
    ) -> V:
        """Load ``key`` for all who wait for it, and put the value in unless it is out of date by then."""
        landing: tuple[Any, ...] = ()
        started = time.monotonic()
        try:
            if self._gate is None:
                value = loader(key)
            else:
                with self._gate.passed(timeout):
                    started = time.monotonic()
                    value = loader(key)
            value, landing = self._loaded(key, value, terms, time.monotonic() - started)
            flight.value = value
        except BaseException as error:
            value, landing = self._failed(flight, key, error, lenient)
            if value is VACANT:
                raise
        finally:
            self._land(flight, key, landing, time.monotonic() - started)
        return cast("V", value)

    async def _alead(
        self, flight: Flight, key: K, loader: Any, terms: Terms, timeout: float | None, *, lenient: bool = True
    ) -> V:
        landing: tuple[Any, ...] = ()
        started = time.monotonic()
        try:
            if self._gate is None:
                value = await _called(loader, key)
            else:
                async with self._gate.apassed(timeout):
                    started = time.monotonic()
                    value = await _called(loader, key)
            value, landing = self._loaded(key, value, terms, time.monotonic() - started)
            flight.value = value
        except BaseException as error:
            value, landing = self._failed(flight, key, error, lenient)
            if value is VACANT:
                raise
        finally:
            self._land(flight, key, landing, time.monotonic() - started)
        return cast("V", value)

    def _loaded(self, key: K, value: Any, terms: Terms, took: float) -> tuple[Any, tuple[Any, ...]]:
        """Return the bare value, and what ``_put`` takes."""
        if type(value) is Loaded:
            value, size, cost, ttl, tags, version = value
            terms = Terms(size, cost, terms.extra, ttl, tags, version)
        else:
            value = plain_value(key, value)
        arguments = self._prepare(key, value, terms.size, terms.cost, terms.extra)
        return value, (self._hold(key, value, arguments[4], terms.ttl, terms.tags, terms.version, took), arguments)

    def _failed(self, flight: Flight, key: K, error: BaseException, lenient: bool) -> tuple[Any, tuple[Any, ...]]:
        """Settle what a failed load comes to: a stale value, or its error, which may be kept."""
        flight.error = error
        if not isinstance(error, Exception):
            return VACANT, ()
        config = self._loads_config
        if config.negative_ttl is not None and isinstance(error, config.negative):
            # It is gone from the source, so an older value must not stand in for it.
            arguments = self._prepare(key, None, 1, 1.0, dict.fromkeys(self.policy.extra, 0.0))
            held = self._hold(key, Failure(error), arguments[4], config.negative_ttl, (), None, 0.0)
            return VACANT, (held, arguments)
        entry = self._entries.get(key) if self._watchful else None
        if entry is not None and type(entry.value) is Held:
            entry.value.retry_at = self._clock() + self._expiry.retry
        value = self._stale(key) if lenient else VACANT
        if value is not VACANT:
            flight.error, flight.value = None, value
            self._stale_served += 1
            log.warning("the load of key %r failed, a stale value stands in for it: %r", key, error)
        return value, ()

    def _land(self, flight: Flight, key: K, landing: tuple[Any, ...], took: float) -> None:
        with self._lock:
            if isinstance(flight.error, TooManyLoads | LoadTimeout):
                self._load_refusals += 1
            else:
                self._loads += 1
                self._load_seconds += took
                self._load_failures += isinstance(flight.error, Exception)
            put = self._exclusively(self._landed, flight, key, landing)
        self._aftermath(key, landing[1][1] if put and type(landing[0]) is not Failure else None)

    def _landed(self, flight: Flight, key: K, landing: tuple[Any, ...]) -> bool:
        put = False
        try:
            if landing and self._flights.attached(key, flight):
                self._put(key, landing[0], *landing[1])
                put = True
        finally:
            self._flights.land(key, flight)
        return put

    def _renew(self, key: K, loader: Any, terms: Terms) -> None:
        """Have ``key`` loaded in the background if its time to refresh has come."""
        held = self._entries.get(key, NONE).value
        if type(held) is not Held or loader is None or self._clock() < held.refresh_at:
            return
        loop: asyncio.AbstractEventLoop | None = None
        if is_coroutine_function(loader):
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                return  # a thread without one: the next coroutine to ask for the key refreshes it
        with self._lock:
            now = self._clock()
            if now < max(held.refresh_at, held.retry_at) or key in self._flights.by_key:
                return
            held.retry_at = now + self._expiry.retry
        if loop is not None:
            task = loop.create_task(self._refresh_task(key, loader, terms))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._background.submit(self._refresh_job, key, loader, terms)

    def _refresh_job(self, key: K, loader: Any, terms: Terms) -> None:
        flight, leads, _ = self._join(key, get_ident(), anew=True)
        if flight is None or not leads:
            self._flights._waiting.pop(get_ident(), None)
            return
        try:
            self._lead(flight, key, loader, terms, self._loads_config.timeout, lenient=False)
            self._refreshes += 1
        except Exception as error:
            log.warning("the refresh of key %r failed; its value stays until its time is over: %r", key, error)

    async def _refresh_task(self, key: K, loader: Any, terms: Terms) -> None:
        me = asyncio.current_task()
        flight, leads, _ = self._join(key, me, anew=True)
        if flight is None or not leads:
            self._flights._waiting.pop(me, None)
            return
        try:
            await self._alead(flight, key, loader, terms, self._loads_config.timeout, lenient=False)
            self._refreshes += 1
        except Exception as error:
            log.warning("the refresh of key %r failed; its value stays until its time is over: %r", key, error)


async def _called(loader: Any, key: Any) -> Any:
    value = loader(key)
    return await value if inspect.isawaitable(value) else value


def bare_value(value: Any, now: float) -> Any:
    """Return the value of an entry as callers know it; VACANT if it is over, or stands for a failure."""
    if type(value) is not Held:
        return value
    return VACANT if type(value.value) is Failure or not value.fresh(now) else value.value


def plain_value(key: Any, value: Any) -> Any:
    """Return what a loader returned to a thread, unless it is to be awaited."""
    return plain_result(value, f"the loader of key {key!r} is a coroutine function: use aget_or_load, and await it")


def _late(key: Any, timeout: float | None) -> LoadTimeout:
    return LoadTimeout(f"the load of key {key!r} by another caller took longer than {timeout:g} s")
