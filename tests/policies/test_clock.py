"""CLOCK against its slow twin, and what it must do on sequences small enough to follow by hand."""

import pytest

from kvpredict.core.errors import KvpredictError
from kvpredict.policies import policy
from kvpredict.simulate import simulate
from kvpredict.trace import Trace
from tests.naive import NaiveClock, compare_with_twin


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_equals_its_twin(bits: int) -> None:
    compare_with_twin(policy("clock", bits=bits), lambda capacity: NaiveClock(capacity, bits))


def test_a_second_chance_and_no_third() -> None:
    keys = [1, 2, 1, 3, 4, 1]  # 3 evicts 2, sparing 1; 4 evicts 1, whose chance is spent
    assert simulate(Trace.from_keys(keys), "clock", 2).hit.tolist() == [0, 0, 1, 0, 0, 0]


def test_more_bits_remember_more_hits() -> None:
    keys = [1, 1, 1, 2, 3, 4, 1]
    assert simulate(Trace.from_keys(keys), policy("clock", bits=1), 2).hit[-1] == 0
    assert simulate(Trace.from_keys(keys), policy("clock", bits=2), 2).hit[-1] == 1


@pytest.mark.parametrize("bits", [0, 9])
def test_refuses_other_widths(bits: int) -> None:
    with pytest.raises(KvpredictError, match=f"'clock': bits must be 1 to 8, got {bits}"):
        policy("clock", bits=bits)
