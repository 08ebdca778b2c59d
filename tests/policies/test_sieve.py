"""SIEVE against its slow twin, and what it must do on sequences small enough to follow by hand."""

from kvpredict.policies import policy
from kvpredict.simulate import simulate
from kvpredict.trace import Trace
from tests.naive import NaiveSIEVE, compare_with_twin


def test_equals_its_twin() -> None:
    compare_with_twin(policy("sieve"), NaiveSIEVE)


def hits(keys: list[int], capacity: int) -> list[int]:
    answer: list[int] = simulate(Trace.from_keys(keys), "sieve", capacity).hit.tolist()
    return answer


def test_the_hand_stays_where_it_evicted() -> None:
    # 1 and 2 are visited and spared for 5, and 3 goes; the hand goes on from there, so that 6 replaces 4.
    assert hits([1, 2, 3, 4, 1, 2, 5, 6, 1, 2, 4], 4) == [0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 0]
