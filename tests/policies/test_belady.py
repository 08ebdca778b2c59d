"""Belady against brute force."""

import math

import pytest
from hypothesis import given

from kvpredict.policies import policy
from kvpredict.simulate import simulate
from kvpredict.trace import Trace
from tests.naive import Naive, Request, naive_hits, optimal_misses
from tests.strategies import THOROUGH, Sequence, sequences, zipf_mix


class NaiveBelady(Naive):
    def __init__(self, capacity: int, *, bypass: bool = False, slots: int | None = None) -> None:
        super().__init__(capacity)
        self.bypass = bypass
        self.slots = math.inf if slots is None else slots
        self.next_use: dict[int, float] = {}
        self.size: dict[int, int] = {}

    def hit(self, r: Request) -> None:
        self.next_use[r.key] = r.hint

    def admit(self, r: Request) -> bool:
        fits = sum(self.size.values()) + r.size <= self.capacity and len(self.size) < self.slots
        return not self.bypass or fits or r.hint < max(self.next_use.values())

    def evict(self, r: Request) -> int:
        victim = max(self.next_use, key=lambda key: (self.next_use[key], self.size[key]))
        del self.next_use[victim], self.size[victim]
        return victim

    def insert(self, r: Request) -> None:
        self.next_use[r.key] = r.hint
        self.size[r.key] = r.size


@pytest.mark.parametrize("bypass", [False, True])
def test_misses_are_the_optimum(bypass: bool) -> None:
    @THOROUGH
    @given(sequences())
    def check(sequence: Sequence) -> None:
        result = simulate(Trace.from_keys(sequence.keys), policy("belady", bypass=bypass), sequence.capacity)
        assert result.misses == optimal_misses(sequence.keys, sequence.capacity, bypass=bypass)

    check()


@pytest.mark.parametrize("bypass", [False, True])
def test_equals_its_twin_with_sizes(bypass: bool) -> None:
    @THOROUGH
    @given(sequences(sized=True))
    def check(sequence: Sequence) -> None:
        trace = sequence.trace()
        # Among objects never used again the order is free, and it cannot be seen in the hits.
        result = simulate(trace, policy("belady", bypass=bypass), sequence.capacity, unit="bytes")
        twin = NaiveBelady(sequence.capacity, bypass=bypass)
        assert result.hit.tolist() == naive_hits(twin, sequence.keys, sequence.sizes, hints=trace.next_use.tolist())

    check()


def test_bypass_never_misses_more_and_declares_itself() -> None:
    keys = zipf_mix(3000, 200, seed=3)
    trace = Trace.from_keys(keys)
    for capacity in (1, 5, 40):
        plain = simulate(trace, "belady", capacity)
        bypassing = simulate(trace, policy("belady", bypass=True), capacity)
        assert bypassing.misses <= plain.misses
        assert plain.misses == optimal_misses(keys.tolist(), capacity)
    assert policy("belady", bypass=True).traits.bypass
    assert not policy("belady").traits.bypass


def test_bypass_refuses_what_comes_back_last() -> None:
    trace = Trace.from_keys([1, 2, 3, 1, 2, 1, 2, 3])
    assert simulate(trace, policy("belady", bypass=True), 2).hit.tolist() == [0, 0, 0, 1, 1, 1, 1, 0]
