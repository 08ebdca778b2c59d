"""The engine: binds a policy's kernels into the loops that hosts run.

``bind(policy)`` returns four compiled functions over the same state. ``place`` admits one object and evicts for it;
``drain`` applies recorded hits in a batch; ``take`` frees a slot; ``replay`` runs a whole trace. The simulator and
the in-process cache both go through ``place``, so they decide alike, and a slot is numbered alike in both.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba.np.unsafe.ndarray import to_fixed_tuple

from kvpredict.core.jit import interpreted, kernel, lean_kernel
from kvpredict.core.policy import Event, Kernels, Policy, expect_nothing
from kvpredict.core.prefetch import prefetch

__all__ = ["Engine", "Host", "bind", "extra_reader", "make_host"]

CAPACITY, USED, FREE, VICTIMS = 0, 1, 2, 3  # indices into Host.counts
REFUSED, HIT, ADMITTED = 0, 1, 2  # what replay says of each request
AHEAD = 8  # requests by which a policy knows, soon before, of one; the first time twice as many


class Host(NamedTuple):
    """What a host keeps for each slot, ``n`` slots."""

    key: np.ndarray  # int64 [n]
    size: np.ndarray  # int64 [n]
    hint: np.ndarray  # float64 [n]
    extra: np.ndarray  # float64 [n, k], k extra columns
    live: np.ndarray  # uint8 [n], 1 while the slot is in use
    ref: np.ndarray  # int32 [n], the simulator's dense id
    free: np.ndarray  # int32 [n], stack of free slots
    victims: np.ndarray  # int32 [n], slots freed by the last place
    counts: np.ndarray  # int64 [4]: capacity, units used, free slots, victims of the last place


class Engine(NamedTuple):
    """Compiled loops for one tuple of kernels; all but ``replay`` are made to be parts of a host's own compiled loop.

    ``place(s, h, time, key, size, hint, extra) -> slot``: admit an object; -1 if refused or too large.
    ``h.victims[:h.counts[3]]`` are the slots evicted for it (the new object may reuse one of them).
    ``drain(s, h, slots, times)``: apply recorded hits, int32 and float64 ``[m]``, in order; a slot freed since is
    passed over.
    ``take(s, h, slot)``: the owner deletes the entry in ``slot``.
    ``replay(s, h, ids, keys, sizes, times, hints, extra, slot_of, out)``: run a trace; see ``simulate``.
    ``out[i]``: 1 for a hit; 2 for a miss that was admitted, 0 for one that was not.
    """

    place: Callable[..., int]
    drain: Callable[..., None]
    take: Callable[..., None]
    replay: Callable[..., None]


def make_host(capacity: int, slots: int, extras: int = 0) -> Host:
    """Return the slots of an empty cache of ``capacity`` units."""
    return Host(
        key=np.zeros(slots, np.int64),
        size=np.zeros(slots, np.int64),
        hint=np.zeros(slots, np.float64),
        extra=np.zeros((slots if extras else 1, extras), np.float64),
        live=np.zeros(slots, np.uint8),
        ref=np.zeros(slots, np.int32),
        free=np.arange(slots, dtype=np.int32)[::-1].copy(),
        victims=np.zeros(slots, np.int32),
        counts=np.array([capacity, 0, slots, 0], np.int64),
    )


def bind(policy: Policy) -> Engine:
    """Return the loops for ``policy``; policies with the same kernels share their machine code."""
    return _bind(policy.kernels(), len(policy.extra))


@lru_cache(maxsize=256)
def _bind(kernels: Kernels, extras: int) -> Engine:
    on_hit, admit, evict, insert, remove, expect = kernels
    looks_ahead = expect is not expect_nothing
    read_extra = extra_reader(extras)

    @lean_kernel
    def release(h, slot):
        h.live[slot] = 0
        h.counts[USED] -= h.size[slot]
        h.free[h.counts[FREE]] = slot
        h.counts[FREE] += 1

    @lean_kernel
    def place_event(s, h, e):
        count = h.counts
        count[VICTIMS] = 0
        if e.size > count[CAPACITY] or not admit(s, e):
            return np.int32(-1)
        while count[USED] + e.size > count[CAPACITY] or count[FREE] == 0:
            victim = evict(s, e)
            release(h, victim)
            h.victims[count[VICTIMS]] = victim
            count[VICTIMS] += 1
        count[FREE] -= 1
        slot = h.free[count[FREE]]
        h.key[slot] = e.key
        h.size[slot] = e.size
        h.hint[slot] = e.hint
        h.live[slot] = 1
        count[USED] += e.size
        insert(s, slot, e)
        return slot

    @lean_kernel
    def place(s, h, time, key, size, hint, extra):
        # As in replay, an object of size 0 takes one unit.
        slot = place_event(s, h, Event(time, key, max(size, np.int64(1)), hint, read_extra(extra, 0)))
        if extras > 0 and slot >= 0:
            h.extra[slot] = extra[0]
        return slot

    @lean_kernel
    def drain(s, h, slots, times):
        for i in range(slots.size):
            slot = slots[i]
            if looks_ahead and i + 2 * AHEAD < slots.size:
                expect(s, slots[i + 2 * AHEAD], h.key[slots[i + 2 * AHEAD]], False)
                expect(s, slots[i + AHEAD], h.key[slots[i + AHEAD]], True)
            if h.live[slot]:
                e = Event(times[i], h.key[slot], h.size[slot], h.hint[slot], read_extra(h.extra, slot))
                on_hit(s, slot, e)

    @lean_kernel
    def take(s, h, slot):
        remove(s, slot)
        release(h, slot)

    @kernel
    def replay(s, h, ids, keys, sizes, times, hints, extra, slot_of, out):
        # The same decisions as place_event, with the counts in registers and only what replay needs kept for a slot.
        has_times = times.size > 0
        has_sizes = sizes.size > 0
        has_hints = hints.size > 0
        capacity = h.counts[CAPACITY]
        used = h.counts[USED]
        free_count = h.counts[FREE]
        for i in range(ids.size):
            if looks_ahead and i + 3 * AHEAD < ids.size:
                prefetch(slot_of, ids[i + 3 * AHEAD])
                expect(s, slot_of[ids[i + 2 * AHEAD]], keys[i + 2 * AHEAD], False)
                expect(s, slot_of[ids[i + AHEAD]], keys[i + AHEAD], True)
            ref = ids[i]
            slot = slot_of[ref]
            e = Event(
                times[i] if has_times else np.float64(i),
                keys[i],
                max(sizes[i], np.int64(1)) if has_sizes else np.int64(1),  # type: ignore[arg-type]
                hints[i] if has_hints else 1.0,
                read_extra(extra, i),
            )
            if slot >= 0:
                out[i] = HIT
                on_hit(s, slot, e)
                continue
            out[i] = REFUSED
            if e.size > capacity or not admit(s, e):
                continue
            while used + e.size > capacity or free_count == 0:
                victim = evict(s, e)
                slot_of[h.ref[victim]] = -1
                used -= h.size[victim] if has_sizes else np.int64(1)
                h.free[free_count] = victim
                free_count += 1
            free_count -= 1
            slot = h.free[free_count]
            h.ref[slot] = ref
            if has_sizes:
                h.size[slot] = e.size
            slot_of[ref] = slot
            used += e.size
            insert(s, slot, e)
            out[i] = ADMITTED

    return Engine(place, drain, take, replay)


def extra_reader(extras: int) -> Callable[..., Any]:
    """Return a kernel that reads row ``i`` of a float64 matrix as a tuple; rows of no columns cost nothing."""

    @lean_kernel
    def none(matrix, i):
        return ()

    @lean_kernel
    def row(matrix, i):
        return to_fixed_tuple(matrix[i], extras)  # type: ignore[call-arg]

    def plain_row(matrix, i):
        return tuple(matrix[i].tolist())

    return none if not extras else plain_row if interpreted() else row
