"""LRU-K against its slow twin, and what its paper says of it."""

import pytest

from kvpredict.core.errors import KvpredictError
from kvpredict.policies import policy
from kvpredict.simulate import simulate
from kvpredict.trace import Trace
from tests.naive import NaiveLRUK, compare_with_twin, naive_hits
from tests.strategies import zipf_mix


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("correlated", [0, 3, 1000])
def test_equals_its_twin(k: int, correlated: int) -> None:
    # Histories are bounded by the slots, which sized objects make more or fewer than the twin's: it keeps all, and
    # so does the policy with the largest ratio on sequences this short.
    compare_with_twin(
        policy("lruk", k=k, correlated=correlated, retained_ratio=16.0),
        lambda capacity: NaiveLRUK(capacity, k, correlated, retained=10**9),
        examples=30,
        seeds=(),
    )


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("capacity", [2, 10, 40])
def test_bounded_histories_equal_the_twin(ratio: float, capacity: int) -> None:
    keys = zipf_mix(2500, 150, seed=3).tolist()
    twin = NaiveLRUK(capacity, retained=int(capacity * ratio))
    hit = simulate(Trace.from_keys(keys), policy("lruk", retained_ratio=ratio), capacity).hit
    assert hit.tolist() == naive_hits(twin, keys)


def test_k_of_one_is_lru() -> None:
    trace = Trace.from_keys(zipf_mix(2000, 100))
    assert simulate(trace, policy("lruk", k=1), 20).hit.tolist() == simulate(trace, "lru", 20).hit.tolist()


def test_one_use_is_less_than_two() -> None:
    keys = [1, 1, 2, 2, 3, 4, 5, 6, 1, 2]  # the scan 3 … 6 replaces itself
    assert simulate(Trace.from_keys(keys), "lruk", 3).hit[-2:].tolist() == [1, 1]


def test_correlated_uses_count_as_one() -> None:
    # The burst of 3 is one use, or three: then its last use but one is later than that of 1, which goes for 4 instead.
    trace = Trace.from_keys([1, 2, 1, 2, 3, 3, 3, 2, 4, 1])
    assert simulate(trace, policy("lruk", correlated=1), 3).hit[-1] == 1
    assert simulate(trace, policy("lruk", correlated=0), 3).hit[-1] == 0


@pytest.mark.parametrize(
    ("name", "value"), [("k", 0), ("k", 17), ("correlated", -1), ("retained_ratio", -0.5), ("retained_ratio", 17.0)]
)
def test_refuses_parameters_out_of_range(name: str, value: float) -> None:
    with pytest.raises(KvpredictError, match=f"'lruk': {name} must be"):
        policy("lruk", **{name: value})
