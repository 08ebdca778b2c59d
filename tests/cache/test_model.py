"""Any sequence of calls, against a dict that never forgets: the cache may lack a key, and is never wrong about one."""

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvpredict.cache import Cache
from kvpredict.policies import policy

KEYS = st.one_of(st.integers(0, 12), st.sampled_from(["a", "b", (1, 2), None]))
# A list, a hand, queues with ghosts, a heap with sizes: test_ranking takes every policy through an exchange.
POLICIES = st.sampled_from(["lru", "sieve", "s3fifo", "gdsf"])


class Broken(Exception):
    """What a failing loader raises."""


class AgainstDict(RuleBasedStateMachine):
    @initialize(
        name=POLICIES, capacity=st.integers(1, 9), read_buffer=st.sampled_from([1, 2, 64]), weighed=st.booleans(),
        max_entries=st.one_of(st.none(), st.integers(1, 5)),
    )  # fmt: skip
    def make(self, name: str, capacity: int, read_buffer: int, weighed: bool, max_entries: int | None) -> None:
        self.time = 0.0
        self.weighed = weighed
        self.cache: Cache[object, int] = Cache(
            capacity,
            policy(name),
            weigher=(lambda value: value % 4) if weighed else None,
            max_entries=max_entries,
            read_buffer=read_buffer,
            clock=self.tick,
        )
        self.capacity = capacity
        self.most = capacity if max_entries is None else min(max_entries, capacity)
        self.truth: dict[object, int] = {}
        self.lookups = 0
        self.value = 0

    def tick(self) -> float:
        self.time += 0.5
        return self.time

    def fresh(self) -> int:
        self.value += 1
        return self.value

    def weight(self, value: int) -> int:
        return max(value % 4, 1) if self.weighed else 1

    @rule(key=KEYS, cost=st.floats(0, 100))
    def put(self, key: object, cost: float) -> None:
        value = self.fresh()
        taken = self.cache.put(key, value, cost=cost)
        assert taken == (key in self.cache)
        if self.weight(value) > self.capacity:
            assert not taken
        elif not self.cache.policy.traits.bypass:
            assert taken
        self.truth[key] = value

    @rule(key=KEYS)
    def get(self, key: object) -> None:
        self.lookups += 1
        there = key in self.cache
        value = self.cache.get(key, -1)
        assert value == (self.truth[key] if there else -1)

    @rule(key=KEYS)
    def load(self, key: object) -> None:
        self.lookups += 1
        there = key in self.cache
        value = self.fresh()
        got = self.cache.get_or_load(key, lambda asked: value)
        assert got == (self.truth[key] if there else value)
        self.truth[key] = got

    @rule(key=KEYS)
    def fail_to_load(self, key: object) -> None:
        def fail(asked: object) -> int:
            raise Broken

        self.lookups += 1
        before = set(self.cache)
        try:
            value = self.cache.get_or_load(key, fail)
        except Broken:
            assert key not in before
        else:
            assert value == self.truth[key]
        assert set(self.cache) == before

    @rule(key=KEYS)
    def delete(self, key: object) -> None:
        there = key in self.cache
        assert self.cache.delete(key) == there
        self.truth.pop(key, None)

    @precondition(lambda self: self.value % 5 == 0)
    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.truth.clear()
        assert len(self.cache) == 0

    @rule(name=POLICIES)
    def swap(self, name: str) -> None:
        before = {key: self.cache.peek(key) for key in self.cache}
        self.cache.swap_policy(policy(name))
        assert {key: self.cache.peek(key) for key in self.cache} == before
        assert self.cache.policy.name == name

    @invariant()
    def is_never_wrong(self) -> None:
        if not hasattr(self, "cache"):
            return
        held = {key: self.cache.peek(key) for key in self.cache}
        assert held.items() <= self.truth.items()
        assert len(held) <= self.most
        self.cache.validate()
        stats = self.cache.stats()
        assert stats.entries == len(held)
        assert stats.size == sum(self.weight(value) for value in held.values()) <= self.capacity
        assert stats.hits + stats.misses == self.lookups


TestAgainstDict = AgainstDict.TestCase
TestAgainstDict.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
