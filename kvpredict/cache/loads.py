"""Loads in flight: one call of the loader for all who miss the same key at the same time, threads and coroutines.

The first to miss leads and calls the loader, holding no lock; the others wait for its outcome. A write to the key
meanwhile detaches the load: its waiters still get their value, but it is older than the write and must not be cached.
A loader that comes to wait for itself, through the loads it asks for and the tasks it awaits, would wait for ever:
that is an error instead. So is a thread that waits for a coroutine of its own event loop. Which tasks a task awaits is
seen where it awaits them directly or by ``gather``; beyond that, as through a thread or a ``TaskGroup``, nothing is
seen, and a timeout bounds the wait. A load that its event loop was closed on never ends, so it is begun anew.
"""

import asyncio
import time
from collections.abc import Container, Hashable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from threading import get_ident
from typing import Any, Literal, NamedTuple

from kvpredict.cache.expiry import duration
from kvpredict.core.errors import KvpredictError

__all__ = ["Flight", "Flights", "Loaded", "Loads", "is_lost"]

LOOK = 1.0  # seconds between looks of those who wait at whether the load can still end


@dataclass(frozen=True)
class Loads:
    """How a cache loads what it misses.

    Parameters
    ----------
    limit : int, optional
        The most loads at once. Loads from within a loader count as part of it. Default: any number.
    when_full : "wait" or "fail", default "wait"
        What a load beyond the limit does: wait for its turn, or raise ``TooManyLoads``.
    timeout : float, optional
        Seconds that a caller waits for another's load, or for its turn; then a stale value is handed out if there is
        one, else ``LoadTimeout`` raised. The loader itself is never cut short. Default: any time.
    negative_ttl : float, optional
        Seconds for which a loader's failure is kept: until then callers get the same error and the loader is not
        called. Default: failures are not kept.
    negative : tuple of exception classes, default (LookupError,)
        Which failures are kept: those that say that there is no such thing.
    known : container, optional
        The keys that exist, such as a ``BloomFilter``: a load of any other key raises ``UnknownKey`` at once. A key
        that is put in is added to it if it has a method ``add``.
    workers : int, default 2
        Threads that refresh in the background; they start when first needed.
    """

    limit: int | None = None
    when_full: Literal["wait", "fail"] = "wait"
    timeout: float | None = None
    negative_ttl: float | None = None
    negative: tuple[type[Exception], ...] = (LookupError,)
    known: Container[Any] | None = None
    workers: int = 2

    def __post_init__(self) -> None:
        for name in ("limit", "workers"):
            number = getattr(self, name)
            if (number is not None or name == "workers") and (
                not isinstance(number, int) or isinstance(number, bool) or number < 1
            ):
                raise KvpredictError(f"{name} must be a whole number, at least 1, got {number!r}")
        for name in ("timeout", "negative_ttl"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, duration(name, getattr(self, name)))
        if self.when_full not in ("wait", "fail"):
            raise KvpredictError(f'when_full is "wait" or "fail", got {self.when_full!r}')
        kinds = self.negative if isinstance(self.negative, tuple) else (self.negative,)
        if not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds):
            raise KvpredictError(f"negative must be a tuple of exception classes, got {self.negative!r}")
        if self.known is not None and not hasattr(self.known, "__contains__"):
            raise KvpredictError(f"known must be a container of keys, got {type(self.known).__name__}")


class Loaded(NamedTuple):
    """What a loader may return in place of a bare value, to say how it is to be kept; see ``Cache.put``."""

    value: Any
    size: int | None = None
    cost: float = 1.0
    ttl: float | None = None
    tags: tuple[str, ...] = ()
    version: int | None = None


class Flight:
    """One load: who leads it, and how it ended."""

    __slots__ = ("done", "error", "leader", "thread", "value")

    def __init__(self, leader: Hashable) -> None:
        self.leader = leader  # a thread's number, or the task of a coroutine
        self.thread = get_ident()
        self.done: Future[None] | None = None  # made by the first to wait
        self.value: Any = None
        self.error: BaseException | None = None

    @property
    def ended(self) -> bool:
        """Whether who waits for it need not wait any longer."""
        return (self.done is not None and self.done.done()) or self.lost

    @property
    def lost(self) -> bool:
        """Whether it will never end."""
        return is_lost(self.leader)


def is_lost(agent: Any) -> bool:
    """Tell whether ``agent``, a thread or a task, is a task that will never run again."""
    return isinstance(agent, asyncio.Task) and agent.get_loop().is_closed()


class Lost(BaseException):
    """No outcome: the event loop of a load was closed on it."""


class Flights:
    """The loads in flight of one cache; every method is called under the cache's lock, ``wait`` and ``await_`` not."""

    __slots__ = ("_waiting", "by_key")

    def __init__(self) -> None:
        self.by_key: dict[Hashable, Flight] = {}
        self._waiting: dict[Hashable, Flight] = {}  # thread or task -> what it waits for

    def join(self, key: Hashable, me: Hashable) -> tuple[Flight, bool]:
        """Return the flight for ``key`` and whether the caller leads it; ends in ``land``, ``wait`` or ``await_``."""
        mine = Flight(me)
        flight = self.by_key.setdefault(key, mine)
        if flight is not mine and flight.lost:
            flight.error = Lost()
            self.land(key, flight)
            flight = self.by_key[key] = mine
        if flight is mine:
            return flight, True
        self._refuse_to_wait_for_oneself(key, flight, me)
        if flight.done is None:
            flight.done = Future()
        self._waiting[me] = flight
        return flight, False

    def wait(self, key: Hashable, flight: Flight, timeout: float | None) -> None:
        """Wait until ``flight`` has landed or is lost; TimeoutError when it takes longer."""
        me = get_ident()
        done: Any = flight.done
        try:
            for seconds in _looks(timeout):
                with suppress(TimeoutError):
                    done.result(seconds)
                if done.done() or self._hopeless(key, flight, me):
                    return
            raise TimeoutError
        finally:
            self._waiting.pop(me, None)

    async def await_(self, key: Hashable, flight: Flight, timeout: float | None, me: Hashable) -> None:
        """As ``wait``, for a coroutine."""
        done: Any = flight.done
        landed = asyncio.wrap_future(done)
        try:
            for seconds in _looks(timeout):
                # Not wait_for: who gives up waiting must not end the wait of the others.
                await asyncio.wait((landed,), timeout=seconds)
                if done.done() or self._hopeless(key, flight, me):
                    return
            raise TimeoutError
        finally:
            self._waiting.pop(me, None)

    def detach(self, key: Hashable) -> None:
        """Let go of the load of ``key``: what it returns is out of date."""
        self.by_key.pop(key, None)

    def detach_all(self) -> None:
        """Let go of every load."""
        self.by_key.clear()

    def attached(self, key: Hashable, flight: Flight) -> bool:
        """Tell whether nothing was written to ``key`` since ``flight`` took off."""
        return self.by_key.get(key) is flight

    def land(self, key: Hashable, flight: Flight) -> None:
        """End ``flight``, whose value or error is set, and wake those who wait."""
        if self.by_key.get(key) is flight:
            del self.by_key[key]
        if flight.done is not None:
            with suppress(InvalidStateError):  # an event loop that is shutting down may have cancelled it
                flight.done.set_result(None)

    def _hopeless(self, key: Hashable, flight: Flight, me: Hashable) -> bool:
        """Tell whether ``flight`` is lost; raise where it waits for the caller."""
        if flight.lost:
            flight.error = Lost()
            return True
        self._refuse_to_wait_for_oneself(key, flight, me)
        return False

    def _refuse_to_wait_for_oneself(self, key: Hashable, flight: Flight, me: Hashable) -> None:
        """Raise where ``flight`` cannot land before ``me``, who is about to wait for it, goes on."""
        thread = get_ident()
        blocks = me == thread  # the caller holds up its thread, and with it an event loop running there
        links, followed = [flight], {flight}
        while links:
            link = links.pop()
            if link.ended:
                continue
            needed = set(_awaited(link.leader))
            if me in needed:
                raise KvpredictError(
                    f"the load of key {key!r} waits for itself: its loader asks, directly or through other loads or "
                    "tasks, for the same key; load that part without the cache"
                )
            if link.thread == thread and (blocks or link.leader == link.thread):
                raise KvpredictError(
                    f"the load of key {key!r} waits for a coroutine of the event loop that it holds up: use "
                    "aget_or_load in coroutines"
                )
            further = {self._waiting[agent] for agent in needed if agent in self._waiting} - followed
            followed |= further
            links += further


def _awaited(agent: Any) -> Iterator[Hashable]:
    """Yield ``agent``, a thread or a task, and the tasks that it cannot go on without, as far as that can be seen."""
    futures, seen = [agent], {agent}
    while futures:
        future = futures.pop()
        yield future
        # What a task awaits now, and what a gathering is of; asyncio has no public names for these.
        for further in (getattr(future, "_fut_waiter", None), *(getattr(future, "_children", None) or ())):
            if further is not None and further not in seen and not further.done():
                seen.add(further)
                futures.append(further)


def _looks(timeout: float | None) -> Iterator[float]:
    """Yield how long to wait until each next look, until ``timeout`` seconds are over."""
    end = None if timeout is None else time.monotonic() + timeout
    seconds = LOOK if timeout is None else min(timeout, LOOK)
    while True:
        yield seconds
        if end is not None:
            seconds = min(end - time.monotonic(), LOOK)
            if seconds <= 0:
                return
