"""Loads in flight: one call of the loader for all who miss the same key at the same time.

The first to miss leads and calls the loader, holding no lock; the others wait for its outcome. A write to the key
meanwhile detaches the load: its waiters still get their value, but it is older than the write and must not be cached.
A loader that comes to wait for itself, through the loads it asks for, would wait for ever: that is an error instead.
"""

from collections.abc import Hashable
from threading import Event, get_ident
from typing import Any

from kvpredict.core.errors import KvpredictError

__all__ = ["Flight", "Flights"]


class Flight:
    """One load: who leads it, and how it ended."""

    __slots__ = ("done", "error", "leader", "value")

    def __init__(self, leader: int) -> None:
        self.leader = leader
        self.done: Event | None = None  # made by the first to wait
        self.value: Any = None
        self.error: BaseException | None = None


class Flights:
    """The loads in flight of one cache; every method is called under the cache's lock, ``wait`` is not."""

    __slots__ = ("_waiting", "by_key")

    def __init__(self) -> None:
        self.by_key: dict[Hashable, Flight] = {}
        self._waiting: dict[int, Flight] = {}  # thread -> what it waits for

    def join(self, key: Hashable) -> tuple[Flight, bool]:
        """Return the flight for ``key`` and whether the caller leads it; ends in ``lead``'s ``land``, or ``wait``."""
        me = get_ident()
        mine = Flight(me)
        flight = self.by_key.setdefault(key, mine)
        if flight is mine:
            return flight, True
        self._refuse_to_wait_for_oneself(key, flight, me)
        if flight.done is None:
            flight.done = Event()
        self._waiting[me] = flight
        return flight, False

    def wait(self, flight: Flight) -> None:
        """Wait until ``flight`` has landed."""
        try:
            flight.done.wait()  # type: ignore[union-attr]
        finally:
            self._waiting.pop(get_ident(), None)

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
            flight.done.set()

    def _refuse_to_wait_for_oneself(self, key: Hashable, flight: Flight, me: int) -> None:
        leader = flight.leader
        while leader != me:
            awaited = self._waiting.get(leader)
            if awaited is None or awaited.done.is_set():  # type: ignore[union-attr]
                return
            leader = awaited.leader
        raise KvpredictError(
            f"the load of key {key!r} waits for itself: its loader asks, directly or through other loads, for the "
            "same key; load that part without the cache"
        )
