"""Tickets, pinned state and the exchange of policies, seen from below the cache."""

import gc
import sys
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from kvpredict.cache.pinned import entry, open_pinned, pin
from kvpredict.cache.ranking import DRAIN, HITS, MISS, MISSES, NOTES, PLACE, SLOT_MASK, TAKE, Ranking
from kvpredict.core.jit import interpreted
from kvpredict.policies import policy, policy_class, policy_names
from tests.contracts.factories import make
from tests.strategies import zipf_mix

POLICIES = [name for name in policy_names() if not policy_class(name).traits.oracle]


def place(ranking: Ranking, key: int, size: int = 1, notes: Sequence[float] = (), time: float = 0.0) -> float:
    ranking.notes[: len(notes)] = notes
    return ranking.serve(ranking.handle, PLACE, len(notes), time, key, size, 1.0)


def take(ranking: Ranking, ticket: float) -> None:
    ranking.serve(ranking.handle, TAKE, 0, 0.0, int(ticket) & SLOT_MASK, 0, 0.0)


def drain(ranking: Ranking, *notes: float) -> None:
    ranking.notes[: len(notes)] = notes
    ranking.serve(ranking.handle, DRAIN, len(notes), 1.0, 0, 0, 0.0)


def test_a_hit_on_what_left_is_not_credited_to_the_next_tenant() -> None:
    ranking = Ranking(policy("sieve"), 4, 4, 0)
    old = place(ranking, 1)
    take(ranking, old)
    drain(ranking, old)  # the slot is free
    new = place(ranking, 2)
    slot = int(new) & SLOT_MASK
    assert slot == int(old) & SLOT_MASK
    assert new != old
    drain(ranking, old)  # the slot is let again
    assert ranking.state.visited[slot] == 0
    drain(ranking, new)
    assert ranking.state.visited[slot] == 1
    ranking.validate()


def test_generations_come_round_without_overflow() -> None:
    ranking = Ranking(policy("lru"), 1, 1, 0)
    ranking.generation[0] = (1 << 22) - 2
    tickets = [place(ranking, key) for key in range(3)]
    assert [int(ticket) >> 30 for ticket in tickets] == [(1 << 22) - 1, 0, 1]
    assert all(ticket == int(ticket) and ticket < 2**53 for ticket in tickets)
    ranking.validate()


def test_hits_and_misses_are_counted_in_the_batch() -> None:
    ranking = Ranking(policy("lru"), 4, 4, 0)
    ticket = place(ranking, 1)
    drain(ranking, ticket, MISS, ticket, MISS, MISS)
    assert (ranking.tally[HITS], ranking.tally[MISSES]) == (2, 3)


def test_pinned_arrays_are_the_arrays_and_are_let_go() -> None:
    if interpreted():
        pytest.skip("nothing is pinned without compiled code")
    numbers = np.arange(5.0)
    nested = ((numbers, np.zeros((2, 3), np.int32)), 7, numbers)
    before = sys.getrefcount(numbers)
    pinned = pin(nested)
    from numba import float64, int64, typeof

    opened = open_pinned(typeof(nested))

    def total(handle: int) -> float:
        (first, grid), number, same = opened(handle)
        grid[1, 2] += 1
        first[0] += 1.0
        return first.sum() + number + same[0]

    compiled = entry(total, float64(int64))
    assert compiled(pinned.handle) == 1 + 1 + 2 + 3 + 4 + 7 + 1
    for _ in range(1000):
        compiled(pinned.handle)
    assert numbers[0] == 1001
    assert nested[0][1][1, 2] == 1001  # type: ignore[index]
    assert sys.getrefcount(numbers) == before
    del pinned, nested
    gc.collect()
    assert sys.getrefcount(numbers) == 2


def test_a_ranking_frees_its_arrays() -> None:
    import weakref

    ranking = Ranking(policy("s3fifo"), 100, 100, 0)
    for key in range(300):
        place(ranking, key)
    arrays = [weakref.ref(column) for column in ranking.host]
    del ranking
    gc.collect()
    assert [ref() for ref in arrays] == [None] * len(arrays)


@pytest.mark.parametrize("name", POLICIES)
def test_any_policy_can_be_exchanged_for_sieve_and_back(name: str) -> None:
    chosen = make(name)
    ranking = Ranking(chosen, 60, 30, 3)
    for i, key in enumerate(zipf_mix(1500, 120, 3).tolist()):
        live = ranking.host.live.copy()
        if key not in ranking.host.key[live == 1]:  # a cache places only what is missing
            place(ranking, key, 1 + key % 3, time=float(i))
    live = ranking.host.live.copy()
    order = ranking.eviction_order(1500.0)
    assert sorted(order.tolist()) == np.flatnonzero(live).tolist()
    again = ranking.eviction_order(1500.0)
    assert order.tolist() == again.tolist()  # asking changes nothing
    sieve = ranking.carried_to(policy("sieve"), 30, 0, 1500.0)
    sieve.validate()
    back = sieve.carried_to(chosen, 45, 3, 1501.0)
    back.validate()
    assert back.slots == 45
    for carried in (sieve, back):
        assert carried.used == ranking.used
        assert np.array_equal(carried.host.live[:30], live)
        for column in ("key", "size", "hint"):
            kept, given = getattr(carried.host, column)[:30], getattr(ranking.host, column)
            assert np.array_equal(kept[live == 1], given[live == 1])
    for key in range(100):
        place(back, 10_000 + key, 2, time=1502.0)
    back.validate()


def test_a_call_keeps_the_gil() -> None:
    """Another thread gets no turn within a call, so a call under the cache's lock cannot lose its turn in it."""
    if interpreted():
        pytest.skip("interpreted code lets other threads in")
    ranking = Ranking(policy("lru"), 10, 10, 0)
    ticket = place(ranking, 1)
    ranking.notes[:] = ticket
    turns = [0]
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            turns[0] += 1

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1.0)  # from here on this thread holds the GIL unless the call gives it up
    spinner = threading.Thread(target=spin)
    spinner.start()
    try:
        before = turns[0]
        for _ in range(5000):
            ranking.serve(ranking.handle, DRAIN, NOTES, 1.0, 0, 0, 0.0)
        after = turns[0]
    finally:
        stop.set()
        spinner.join()
        sys.setswitchinterval(switch)
    assert after == before
