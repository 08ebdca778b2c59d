"""LFU-DA against its slow twin, and what it must do on sequences small enough to follow by hand."""

from kvpredict.policies import policy
from kvpredict.simulate import simulate
from kvpredict.trace import Trace
from tests.naive import NaiveLFUDA, compare_with_twin


def test_equals_its_twin() -> None:
    compare_with_twin(policy("lfuda"), NaiveLFUDA)


def hits(keys: list[int], capacity: int) -> list[int]:
    answer: list[int] = simulate(Trace.from_keys(keys), "lfuda", capacity).hit.tolist()
    return answer


def test_old_popularity_is_overtaken() -> None:
    keys = [1] * 5 + [2, 3] * 20
    assert sum(hits(keys, 2)) > 4 + 20, "LFU hits 4 times here, for ever holding on to key 1"
