"""Shadows: policies that run on every request over metadata alone, to tell what each of them would hold.

A shadow is an ordinary policy with slots of its own. Its objects are named by *entries*, the numbers under which the
policy that carries it remembers keys, so that all shadows share one look-up: column ``k`` of a table of entries is the
slot in which shadow ``k`` holds the object. Nothing in a policy knows whether it serves or shadows.

Shadows stand in a tree of pairs, ``((0, 1), (2, 3))``, because their states are of different types: compiled code walks
it by recursion at compile time.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kvpredict.core.jit import lean_kernel, lean_subroutine
from kvpredict.core.policy import Event, Kernels, Policy
from kvpredict.core.rows import make_rows

__all__ = ["Requests", "Shadow", "ShadowKernels", "leaves", "make_requests", "make_shadows", "shadow_kernels"]

CAPACITY, USED, FREE = 0, 1, 2  # indices into Shadow.counts


class Shadow(NamedTuple):
    """One policy and its slots."""

    state: Any
    slot: np.ndarray  # int64 [slots, 2]: entry whose object is in it, size
    free: np.ndarray  # int32 [slots], stack of free slots
    counts: np.ndarray  # int64 [3]: capacity, units used, free slots


class Requests(NamedTuple):
    """Requests that the shadows have yet to see."""

    entry: np.ndarray  # int32 [n]
    key: np.ndarray  # int64 [n, 2]: key, size
    time: np.ndarray  # float64 [n, 2]: time, hint


class ShadowKernels(NamedTuple):
    """What can be done with a tree of shadows.

    ``lead(shadows, table, gone, missed, requests, start, end, leader)``: run requests ``start`` to ``end`` through
    shadow number ``leader``. For each that shadow ``k`` misses, ``missed[k]`` grows by what the miss counts for.
    ``gone[1 : 1 + gone[0]]`` are the entries that it evicted, in order; some may have come back since.

    ``follow(shadows, table, gone, missed, requests, end, leader, awake)``: run the first ``end`` requests through the
    others among the first ``awake``; the rest sleep. ``gone`` is overwritten.

    ``drop(shadows, table, entry)``: take an object out of all of them.

    ``expect(shadows, key)``: a request for ``key`` comes soon, which they may miss.
    """

    lead: Any
    follow: Any
    drop: Any
    expect: Any


def make_requests(n: int) -> Requests:
    """Return room for ``n`` requests."""
    return Requests(np.zeros(n, np.int32), np.zeros((n, 2), np.int64), np.zeros((n, 2), np.float64))


def make_shadows(policies: Sequence[Policy], capacity: int, slots: int, seed: int) -> Any:
    """Return empty caches of ``capacity`` units, as a tree of pairs."""
    if len(policies) > 1:
        half = len(policies) // 2
        left = make_shadows(policies[:half], capacity, slots, seed)
        return left, make_shadows(policies[half:], capacity, slots, seed + half)
    free = np.arange(slots, dtype=np.int32)[::-1].copy()
    state = policies[0].make_state(capacity, slots, seed)
    return Shadow(state, make_rows((slots, 2)), free, np.array([capacity, 0, slots], np.int64))


def leaves(shadows: Any) -> list[Shadow]:
    """Return the shadows of a tree, in order."""
    return [shadows] if isinstance(shadows, Shadow) else [leaf for half in shadows for leaf in leaves(half)]


def shadow_kernels(kernels: Sequence[Kernels], column: int, weigh: Any, k: int = 0) -> ShadowKernels:
    """Return the kernels for a tree of shadows numbered from ``k``; the first has column ``column`` of the table.

    ``weigh(size, hint)`` is the kernel that says what a miss counts for.
    """
    if len(kernels) > 1:
        half = len(kernels) // 2
        left = shadow_kernels(kernels[:half], column, weigh, k)
        return _pair(left, shadow_kernels(kernels[half:], column + half, weigh, k + half))
    return _single(kernels[0], column, weigh, k)


def _pair(left: ShadowKernels, right: ShadowKernels) -> ShadowKernels:
    lead_left, follow_left, drop_left, expect_left = left
    lead_right, follow_right, drop_right, expect_right = right

    @lean_kernel
    def lead(shadows, table, gone, missed, requests, start, end, leader):
        lead_left(shadows[0], table, gone, missed, requests, start, end, leader)
        lead_right(shadows[1], table, gone, missed, requests, start, end, leader)

    @lean_kernel
    def follow(shadows, table, gone, missed, requests, end, leader, awake):
        follow_left(shadows[0], table, gone, missed, requests, end, leader, awake)
        follow_right(shadows[1], table, gone, missed, requests, end, leader, awake)

    @lean_kernel
    def drop(shadows, table, entry):
        drop_left(shadows[0], table, entry)
        drop_right(shadows[1], table, entry)

    @lean_kernel
    def expect(shadows, key):
        expect_left(shadows[0], key)
        expect_right(shadows[1], key)

    return ShadowKernels(lead, follow, drop, expect)


def _single(kernels: Kernels, column: int, weigh: Any, k: int) -> ShadowKernels:
    hit, admit, evict, insert, remove, expect_request = kernels

    @lean_kernel
    def release(shadow, slot):
        count = shadow.counts
        count[USED] -= shadow.slot[slot, 1]
        shadow.free[count[FREE]] = slot
        count[FREE] += 1

    @lean_subroutine
    def go_on(shadow, table, gone, missed, requests, start, end):
        held = shadow.counts
        gone[0] = 0
        for i in range(start, end):
            entry = requests.entry[i]
            e = Event(requests.time[i, 0], requests.key[i, 0], requests.key[i, 1], requests.time[i, 1], ())
            if table[entry, column] >= 0:
                hit(shadow.state, table[entry, column], e)
                continue
            missed[k] += weigh(e.size, e.hint)
            if e.size > held[CAPACITY] or not admit(shadow.state, e):
                continue
            while held[USED] + e.size > held[CAPACITY] or held[FREE] == 0:
                victim = evict(shadow.state, e)
                left = shadow.slot[victim, 0]
                table[left, column] = -1
                release(shadow, victim)
                gone[0] += 1
                gone[gone[0]] = left
            held[FREE] -= 1
            slot = shadow.free[held[FREE]]
            shadow.slot[slot, 0] = entry
            shadow.slot[slot, 1] = e.size
            table[entry, column] = slot
            held[USED] += e.size
            insert(shadow.state, slot, e)

    @lean_kernel
    def lead(shadow, table, gone, missed, requests, start, end, leader):
        if k == leader:
            go_on(shadow, table, gone, missed, requests, start, end)

    @lean_kernel
    def follow(shadow, table, gone, missed, requests, end, leader, awake):
        if k != leader and k < awake:
            go_on(shadow, table, gone, missed, requests, 0, end)

    @lean_subroutine
    def drop(shadow, table, entry):
        slot = table[entry, column]
        if slot >= 0:
            remove(shadow.state, slot)
            table[entry, column] = -1
            release(shadow, slot)

    @lean_kernel
    def expect(shadow, key):
        expect_request(shadow.state, np.int32(-1), key, False)

    return ShadowKernels(lead, follow, drop, expect)
