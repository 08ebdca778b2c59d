"""Random eviction: uniform, and reproducible."""

from collections import Counter

from kvpredict.core.policy import Event
from kvpredict.policies import policy
from kvpredict.simulate import simulate
from kvpredict.trace import Trace


def test_every_object_has_the_same_chance() -> None:
    random = policy("random")
    state = random.state(10, seed=5)
    e = Event(0.0, 0, 1, 1.0, ())
    for slot in range(10):
        random.insert(state, slot, e)
    drawn: Counter[int] = Counter()
    for _ in range(20_000):
        slot = int(random.evict(state, e))
        drawn[slot] += 1
        random.insert(state, slot, e)
    # 2,000 expected, standard deviation 42: five of them either way.
    assert sorted(drawn) == list(range(10))
    assert all(abs(count - 2_000) < 212 for count in drawn.values()), drawn


def test_a_loop_just_too_large_still_hits() -> None:
    trace = Trace.from_keys(list(range(11)) * 300)
    assert simulate(trace, "lru", 10).hits == 0
    # Once warm an object meets one eviction in ten misses: the miss ratio solves m = 1 - (1 - 1/10) ** (11 m - 1).
    assert 0.1 < simulate(trace, "random", 10).object_miss_ratio < 0.35
