"""SLRU against its slow twin, and what it must do on sequences small enough to follow by hand."""

import pytest

from kvpredict.core.errors import KvpredictError
from kvpredict.policies import policy
from kvpredict.simulate import simulate
from kvpredict.trace import Trace
from tests.naive import NaiveSLRU, compare_with_twin
from tests.strategies import zipf_mix


@pytest.mark.parametrize("segments", [1, 2, 4, 16])
def test_equals_its_twin(segments: int) -> None:
    compare_with_twin(policy("slru", segments=segments), lambda capacity: NaiveSLRU(capacity, segments))


def test_one_segment_is_lru() -> None:
    trace = Trace.from_keys(zipf_mix(2000, 100))
    one = simulate(trace, policy("slru", segments=1), 20)
    assert one.hit.tolist() == simulate(trace, "lru", 20).hit.tolist()


def test_what_was_hit_survives_a_scan() -> None:
    keys = [1, 1, 2, 2, *range(10, 30), 1, 2]
    assert simulate(Trace.from_keys(keys), policy("slru", segments=2), 4).hit[-2:].tolist() == [1, 1]
    assert simulate(Trace.from_keys(keys), "lru", 4).hit[-2:].tolist() == [0, 0]


@pytest.mark.parametrize("segments", [0, 17])
def test_refuses_other_numbers_of_segments(segments: int) -> None:
    with pytest.raises(KvpredictError, match=f"'slru': segments must be 1 to 16, got {segments}"):
        policy("slru", segments=segments)
