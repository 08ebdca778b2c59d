"""LRU against its slow twin, and what it must do on sequences small enough to follow by hand."""

from kvpredict.policies import policy
from kvpredict.simulate import simulate
from kvpredict.trace import Trace
from tests.naive import NaiveLRU, compare_with_twin


def test_equals_its_twin() -> None:
    compare_with_twin(policy("lru"), NaiveLRU)


def hits(keys: list[int], capacity: int) -> list[int]:
    answer: list[int] = simulate(Trace.from_keys(keys), "lru", capacity).hit.tolist()
    return answer


def test_a_hit_saves() -> None:
    assert hits([1, 2, 1, 3, 1, 2], 2) == [0, 0, 1, 0, 1, 0]


def test_a_loop_larger_than_the_cache_never_hits() -> None:
    assert sum(hits([1, 2, 3] * 10, 2)) == 0
