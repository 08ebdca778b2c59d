"""Ranking: a policy at work on the slots of one cache.

The engine decides; this adds what a live cache needs around it. A *ticket* names one stay of one object in a slot
(slot and generation in one float), so that a hit recorded before the object left cannot be credited to the slot's
next tenant. A batch of recorded hits is applied in the same call that places the object that ends it. And a ranking can
be carried over to another policy, or to more slots: objects are inserted in the order in which the old policy would
have evicted them.
"""

import copy
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numba
import numpy as np
from numba import types

from kvpredict.cache.pinned import entry, open_pinned, pin
from kvpredict.cache.tap import note, untapped
from kvpredict.core.engine import CAPACITY, FREE, USED, Engine, Host, bind, extra_reader, make_host
from kvpredict.core.errors import KvpredictError
from kvpredict.core.jit import interpreted, kernel
from kvpredict.core.policy import Event, Kernels, Policy

__all__ = ["DRAIN", "HITS", "MISS", "MISSES", "NOTES", "PLACE", "SLOT_BITS", "SLOT_MASK", "TAKE", "Ranking"]

DRAIN, PLACE, TAKE = range(3)
HITS, MISSES = 0, 1  # indices into Ranking.tally

SLOT_BITS = 30
SLOT_MASK = (1 << SLOT_BITS) - 1
# A ticket is an integer below 2**53, held as a float: lists of floats become arrays fastest, and take least memory.
GENERATION_MASK = (1 << 22) - 1
MISS = -1.0  # noted in place of a ticket, to be counted
NOTES = 1024  # the most tickets handed over in one call


class Ranking:
    """A policy's state and its slots.

    Parameters
    ----------
    policy : Policy
    capacity : int
        Units.
    slots : int
        The most objects at once.
    seed : int
    aside : bool, default False
        Whether the owner trains the policy (``trainer``), which else trains itself when it places an object.
    now : float, default 0.0
        The time up to which hits are known, at first.
    """

    def __init__(
        self, policy: Policy, capacity: int, slots: int, seed: int, aside: bool = False, now: float = 0.0
    ) -> None:
        self.aside = aside
        host = make_host(capacity, slots, len(policy.extra))
        state = policy.state(capacity, seed, slots)
        self.tally = np.zeros(2, np.int64)  # hits and misses
        self.clock = np.full(1, now)  # float64, the time up to which the policy knows of hits
        self._assemble(policy, state, host, np.zeros(slots, np.int32), untapped())

    def _assemble(self, policy: Policy, state: Any, host: Host, generation: np.ndarray, tap: np.ndarray) -> None:
        self.policy, self.state, self.host = policy, state, host
        self.generation = generation  # int32 [slots], counts the tenants of each slot
        self.tap = tap  # see ``cache.tap``
        self.notes = np.zeros(NOTES, np.float64)  # tickets on their way to ``serve``; handing over an array costs more
        self.columns = policy.extra
        self.row = np.zeros((1, len(policy.extra)), np.float64)  # extra columns of the object to be placed
        self._pinned = pin((state, host, generation, self.row, self.tally, self.clock, tap, self.notes))
        self.handle = self._pinned.handle
        kind = None if interpreted() else numba.typeof(self._pinned.value)
        self.serve = _serve(bind(policy), kind)
        # Read one item at a time on every put; a memoryview does that several times faster than an array.
        self.retrain()
        columns = (host.counts, host.victims, host.size, host.hint, self.notes)
        views: Any = [memoryview(column) for column in columns]  # type: ignore
        self.counts, self.victims, self.sizes, self.hints, self.slip = views

    def retrain(self) -> None:
        """Begin anew with training, after the state was made, or came from elsewhere, or training was cut off."""
        self.trainer = self.policy.trainer(self.state, self.aside)
        self.due: Any = memoryview(self.trainer.due if self.trainer else np.zeros(1, np.int64))  # type: ignore

    @property
    def slots(self) -> int:
        """The most objects at once."""
        return int(self.host.live.size)

    @property
    def capacity(self) -> int:
        """Units that fit."""
        return int(self.counts[CAPACITY])

    @property
    def told(self) -> float:
        """The time up to which the policy knows of hits."""
        return float(self.clock[0])

    @property
    def used(self) -> int:
        """Units in use."""
        return int(self.counts[USED])

    def tapped(self, tap: np.ndarray) -> None:
        """Write the accesses that the policy sees into ``tap`` from now on."""
        self._assemble(self.policy, self.state, self.host, self.generation, tap)

    def room_without_slot(self, size: int) -> bool:
        """Tell whether an object of ``size`` units fits and only a slot is missing for it."""
        return self.counts[FREE] == 0 and self.used + size <= self.capacity

    def empty(self, seed: int) -> "Ranking":
        """Return a ranking with nothing in it; tickets of this one stay invalid in it."""
        fresh = self._heir()
        policy, host = self.policy, make_host(self.capacity, self.slots, len(self.policy.extra))
        state = policy.state(self.capacity, seed, self.slots)
        fresh._assemble(policy, state, host, self.generation.copy(), self.tap)
        return fresh

    def carried_to(self, policy: Policy, slots: int, seed: int, time: float, capacity: int | None = None) -> "Ranking":
        """Return a ranking by ``policy`` of the same objects in the same slots, ``slots`` or more in all.

        ``capacity`` may change too, to no less than is in use.

        The old policy says in which order it would evict; the new one is given the objects in that order, so what
        the old one held dearest is the newest to the new one. This ranking stays as it is.
        """
        capacity = self.capacity if capacity is None else capacity
        host = _widened(self.host, slots, self._extra_of(policy, slots))
        host.counts[CAPACITY] = capacity
        generation = np.zeros(slots, np.int32)
        generation[: self.generation.size] = self.generation
        carried = self._heir()
        carried._assemble(policy, policy.state(capacity, seed, slots), host, generation, self.tap)
        _filler(policy.kernels(), len(policy.extra))(carried.state, host, self.eviction_order(time), time)
        if policy == self.policy:
            policy.inherit(carried.state, self.state)
        return carried

    def _heir(self) -> "Ranking":
        """Return a ranking without a policy that goes on with this one's counts and time."""
        heir = object.__new__(Ranking)
        heir.aside, heir.tally, heir.clock = self.aside, self.tally, self.clock
        return heir

    def eviction_order(self, time: float) -> np.ndarray:
        """Return the slots in use, int32 ``[n]``, first to go first."""
        live = np.flatnonzero(self.host.live).astype(np.int32)
        order = np.empty_like(live)
        state = copy.deepcopy(self.state)  # evicting is the only question a policy answers, and it changes the state
        _emptier(self.policy.kernels(), len(self.policy.extra))(state, order, time, self.row)
        if not np.array_equal(np.sort(order), live):
            raise KvpredictError(
                f"policy {self.policy.name!r} did not evict each of its slots once; nothing was changed"
            )
        return order

    def _extra_of(self, policy: Policy, slots: int) -> np.ndarray:
        """Return the extra columns that ``policy`` reads, as far as they are known; 0 where they are not."""
        columns = np.zeros((slots if policy.extra else 1, len(policy.extra)), np.float64)
        for j, name in enumerate(policy.extra):
            if name in self.policy.extra:
                columns[: self.slots, j] = self.host.extra[:, self.policy.extra.index(name)]
        return columns

    def set_extra(self, row: np.ndarray, extra: Mapping[str, float] | None) -> None:
        """Write the extra columns that the policy reads into ``row``; 0 for one that is not given."""
        row[:] = [(extra or {}).get(name, 0.0) for name in self.columns]

    def compile(self, policy: Policy) -> None:
        """Make the machine code that ``carried_to(policy)`` needs, so that it holds nobody up."""
        Ranking(self.policy, 1, 1, 0, self.aside).carried_to(policy, 1, 0, 0.0)

    def validate(self) -> None:
        """Assert that slots, counts and the policy's own structure agree. For tests."""
        live = np.flatnonzero(self.host.live)
        free = self.host.free[: self.counts[FREE]]
        assert sorted([*live.tolist(), *free.tolist()]) == list(range(self.slots))
        assert int(self.host.size[live].sum()) == self.used <= self.capacity
        self.policy.validate(self.state, live)


def _widened(host: Host, slots: int, extra: np.ndarray) -> Host:
    """Return a copy of ``host`` with ``slots`` slots, at least as many as it has."""
    wide = make_host(int(host.counts[CAPACITY]), slots)
    n = host.live.size
    for name in ("key", "size", "hint", "live"):
        getattr(wide, name)[:n] = getattr(host, name)
    free = np.flatnonzero(wide.live == 0)[::-1]
    if slots == n:
        free = host.free[: host.counts[FREE]]
    wide.free[: free.size] = free
    wide.counts[USED], wide.counts[FREE] = host.counts[USED], free.size
    return wide._replace(extra=extra)


@lru_cache(maxsize=256)
def _serve(engine: Engine, kind: types.Type | None) -> Callable[..., float]:
    """Return ``serve(handle, op, count, now, key, size, cost) -> float`` for one type of state.

    Counts the first ``count`` of ``notes``, taken since the last call, and applies the hits, spread evenly and the last
    one at ``now``. Then it does ``op``: ``PLACE`` admits an object at ``now`` and returns its ticket, or -1 if it
    was refused (``host.victims`` holds the slots evicted for it); ``TAKE`` frees slot ``key``; ``DRAIN`` does nothing
    more.

    One function for all three, because each would compile the policy again. It keeps the GIL, because a cache calls it
    under its lock, and a thread that lets go of the GIL for a microsecond may wait 5 ms to get it back.
    """
    opened = open_pinned(kind)
    engine_place, engine_drain, engine_take = engine.place, engine.drain, engine.take

    def serve(handle, op, n, now, key, size, cost):
        s, h, generation, row, tally, clock, tap, notes = opened(handle)
        start = clock[0]
        end = max(start, now)  # another thread may have read its clock later and come first
        clock[0] = end
        if n > 0:
            slots = np.empty(n, np.int32)
            times = np.empty(n, np.float64)
            kept = 0
            for i in range(n):
                ticket = np.int64(notes[i])
                if ticket < 0:
                    tally[MISSES] += 1
                    continue
                tally[HITS] += 1
                slot = ticket & SLOT_MASK
                if generation[slot] == ticket >> SLOT_BITS:
                    slots[kept] = slot
                    times[kept] = end if i == n - 1 else start + (end - start) * ((i + 1) / n)
                    kept += 1
                    note(tap, h.key[slot], h.size[slot])
            engine_drain(s, h, slots[:kept], times[:kept])
        if op == PLACE:
            note(tap, key, size)
            placed = engine_place(s, h, end, key, size, cost, row)
            if placed < 0:
                return -1.0
            tenant = np.int64((generation[placed] + 1) & GENERATION_MASK)
            generation[placed] = tenant
            return np.float64((tenant << SLOT_BITS) | placed)
        if op == TAKE:
            engine_take(s, h, np.int32(key))
        return 0.0

    if kind is None:
        return serve
    i8, f8 = types.int64, types.float64
    return entry(serve, f8(i8, i8, i8, f8, i8, i8, f8))


@lru_cache(maxsize=256)
def _emptier(kernels: Kernels, extras: int) -> Callable[..., None]:
    evict, read_extra = kernels.evict, extra_reader(extras)

    @kernel
    def empty_out(s, order, time, row):
        for i in range(order.size):
            order[i] = evict(s, Event(time, 0, 1, 1.0, read_extra(row, 0)))

    return empty_out


@lru_cache(maxsize=256)
def _filler(kernels: Kernels, extras: int) -> Callable[..., None]:
    admit, insert, read_extra = kernels.admit, kernels.insert, extra_reader(extras)

    @kernel
    def fill(s, h, order, time):
        for i in range(order.size):
            slot = order[i]
            e = Event(time, h.key[slot], h.size[slot], h.hint[slot], read_extra(h.extra, slot))
            admit(s, e)  # a policy prepares here for the insert; nothing in the cache is refused its place
            insert(s, slot, e)

    return fill
