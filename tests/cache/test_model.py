"""Any sequence of calls, against a dict that never forgets: the cache may lack a key, and is never wrong about one."""

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvpredict.cache import Cache, Cause, Expiry
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


class WithDates(RuleBasedStateMachine):
    """Expiry, versions, tags, compare-and-set, other capacities and a listener, against a dict that knows all dates."""

    @initialize(
        name=POLICIES, capacity=st.integers(1, 9), read_buffer=st.sampled_from([1, 64]),
        ttl=st.sampled_from([None, 5.0]), idle=st.sampled_from([None, 3.0]),
    )  # fmt: skip
    def make(self, name: str, capacity: int, read_buffer: int, ttl: float | None, idle: float | None) -> None:
        self.now = 0.0
        self.capacity, self.ttl, self.idle = capacity, ttl, idle
        self.gone: list[tuple[object, int]] = []
        self.cache: Cache[object, int] = Cache(
            capacity, policy(name), read_buffer=read_buffer, clock=lambda: self.now,
            expiry=Expiry(ttl=ttl, idle=idle), on_removal=self.removed,
        )  # fmt: skip
        # key -> value, end, last use, version, tags
        self.truth: dict[object, tuple[int, float, float, int | None, tuple[str, ...]]] = {}
        self.put_in: list[tuple[object, int]] = []
        self.value = 0

    def removed(self, key: object, value: int, cause: Cause) -> None:
        self.gone.append((key, value))

    def alive(self, key: object) -> bool:
        if key not in self.truth:
            return False
        _, end, used, _, _ = self.truth[key]
        return self.now < end and (self.idle is None or self.now < used + self.idle)

    def note(self, key: object, ttl: float | None, version: int | None, tags: tuple[str, ...]) -> None:
        ttl = self.ttl if ttl is None else ttl
        self.truth[key] = (self.value, float("inf") if ttl is None else self.now + ttl, self.now, version, tags)
        self.put_in.append((key, self.value))

    @rule(
        key=KEYS, ttl=st.sampled_from([None, 1.0, 4.0]), version=st.one_of(st.none(), st.integers(0, 5)),
        tags=st.lists(st.sampled_from("xyz"), max_size=2, unique=True).map(tuple),
    )  # fmt: skip
    def put(self, key: object, ttl: float | None, version: int | None, tags: tuple[str, ...]) -> None:
        self.value += 1
        entry = self.cache._entries.get(key)
        held_version = getattr(entry.value, "version", None) if entry is not None else None
        taken = self.cache.put(key, self.value, ttl=ttl, version=version, tags=tags)
        if version is not None and held_version is not None and held_version > version:
            assert not taken
        else:
            assert taken
            self.note(key, ttl, version, tags)

    @rule(key=KEYS)
    def get(self, key: object) -> None:
        there = key in self.cache
        assert self.cache.get(key, -1) == (self.truth[key][0] if there else -1)
        if there:
            value, end, _, version, tags = self.truth[key]
            self.truth[key] = (value, end, self.now, version, tags)

    @rule(key=KEYS, change=st.booleans())
    def compare_and_set(self, key: object, change: bool) -> None:
        there = key in self.cache
        _, token = self.cache.read(key)
        assert (token is not None) == there
        if change:
            self.put(key, None, None, ())
        self.value += 1
        taken = self.cache.put_if(key, self.value, token)
        assert taken == (not change)
        if taken:
            self.note(key, None, None, ())

    @rule(key=KEYS, before=st.one_of(st.none(), st.integers(0, 6)))
    def invalidate(self, key: object, before: int | None) -> None:
        there = key in self.cache
        version = self.truth[key][3] if there else None
        kept = before is not None and version is not None and version >= before
        assert self.cache.invalidate(key, before=before) == (there and not kept)
        assert (key in self.cache) == (there and kept)

    @rule(tag=st.sampled_from("xyz"))
    def invalidate_tag(self, tag: str) -> None:
        self.cache.invalidate_tags(tag)
        assert all(tag not in self.truth[key][4] for key in self.cache)

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def sweep(self) -> None:
        self.cache.sweep()
        assert len(self.cache) == len(self.cache.items())

    @rule(capacity=st.integers(1, 9))
    def resize(self, capacity: int) -> None:
        self.cache.resize(capacity)
        self.capacity = capacity

    @rule(name=POLICIES)
    def swap(self, name: str) -> None:
        before = sorted(map(repr, self.cache.items()))
        self.cache.swap_policy(policy(name))
        assert sorted(map(repr, self.cache.items())) == before

    @rule(key=KEYS)
    def pop(self, key: object) -> None:
        there = key in self.cache
        assert self.cache.pop(key, -1) == (self.truth[key][0] if there else -1)

    @invariant()
    def is_never_wrong(self) -> None:
        if not hasattr(self, "cache"):
            return
        self.cache.validate()
        for key, value in self.cache.items():
            assert self.alive(key)
            assert value == self.truth[key][0]
        assert len(self.cache) <= self.capacity
        tagged: dict[str, set[object]] = {}
        for key, entry in self.cache._entries.items():
            for tag in getattr(entry.value, "tags", ()):
                tagged.setdefault(tag, set()).add(key)
        assert self.cache._tagged == tagged
        # Whatever was put in is there, or its removal was told, once.
        inside = [(key, getattr(e.value, "value", e.value)) for key, e in self.cache._entries.items()]
        assert sorted(map(repr, [*self.gone, *inside])) == sorted(map(repr, self.put_in))


TestWithDates = WithDates.TestCase
TestWithDates.settings = TestAgainstDict.settings
