"""2Q against its slow twin, and what it must do on sequences small enough to follow by hand."""

import pytest

from kvpredict.core.errors import KvpredictError
from kvpredict.policies import policy
from kvpredict.simulate import simulate
from kvpredict.trace import Trace
from tests.naive import NaiveTwoQ, compare_with_twin


@pytest.mark.parametrize(("in_ratio", "out_ratio"), [(0.25, 0.5), (0.0, 1.0), (1.0, 0.0), (0.6, 0.3)])
def test_equals_its_twin(in_ratio: float, out_ratio: float) -> None:
    compare_with_twin(
        policy("twoq", in_ratio=in_ratio, out_ratio=out_ratio),
        lambda capacity: NaiveTwoQ(capacity, in_ratio, out_ratio),
    )


def test_what_returns_after_leaving_survives_a_scan() -> None:
    keys = [1, 2, 3, 4, 5, 6, 1, *range(10, 40), 1]  # 1 leaves A1in for 5, is remembered, and enters Am
    assert simulate(Trace.from_keys(keys), "twoq", 4).hit.tolist() == [0] * 37 + [1]


@pytest.mark.parametrize("ratio", [-0.1, 1.1])
def test_refuses_ratios_beyond_one(ratio: float) -> None:
    with pytest.raises(KvpredictError, match="'twoq': in_ratio must be in"):
        policy("twoq", in_ratio=ratio)
    with pytest.raises(KvpredictError, match="'twoq': out_ratio must be in"):
        policy("twoq", out_ratio=ratio)
