"""LFU against its slow twin, and what it must do on sequences small enough to follow by hand."""

from kvpredict.policies import policy
from kvpredict.simulate import simulate
from kvpredict.trace import Trace
from tests.naive import NaiveLFU, compare_with_twin


def test_equals_its_twin() -> None:
    compare_with_twin(policy("lfu"), NaiveLFU)


def hits(keys: list[int], capacity: int) -> list[int]:
    answer: list[int] = simulate(Trace.from_keys(keys), "lfu", capacity).hit.tolist()
    return answer


def test_the_least_frequent_goes_and_the_first_among_equals() -> None:
    assert hits([1, 2, 2, 3, 2, 1, 3], 2) == [0, 0, 1, 0, 1, 0, 0]


def test_old_popularity_is_never_forgotten() -> None:
    keys = [1] * 5 + [2, 3] * 20
    assert sum(hits(keys, 2)) == 4
