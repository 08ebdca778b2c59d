"""What a miss counts for, and what an object is worth."""

import math

import pytest

from kvpredict import UnknownName
from kvpredict.core.objective import check_objective, weigher, worth


@pytest.mark.parametrize(("objective", "weight"), [("objects", 1.0), ("bytes", 300.0), ("cost", 0.25)])
def test_what_a_miss_counts_for(objective: str, weight: float) -> None:
    check_objective(objective)
    assert weigher(objective)(300, 0.25) == weight
    assert math.isclose(worth(weight, 300), math.log(weight / 300), abs_tol=1e-6)


def test_nothing_is_worth_less_than_what_costs_nothing() -> None:
    assert worth(weigher("cost")(1, 0.0), 1) < worth(weigher("cost")(1, 1e-6), 1)


def test_an_unknown_objective_is_named() -> None:
    with pytest.raises(UnknownName, match="cost"):
        check_objective("costs")
