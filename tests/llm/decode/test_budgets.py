"""Slots sum to the budget exactly, whatever the split."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvpredict.core.errors import KvpredictError
from kvpredict.llm.decode.budgets import allocate, shares


@given(st.data())
def test_the_sum_is_exact_and_every_head_has_what_it_must(data: st.DataObject) -> None:
    layers, heads = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 5))
    least = data.draw(st.integers(0, 20))
    budget = data.draw(st.integers(max(1, least), 300))
    kind = data.draw(st.sampled_from(["equal", "pyramid", "array"]))
    split = kind if kind != "array" else np.array(
        data.draw(st.lists(st.floats(1e-3, 1e3), min_size=layers * heads, max_size=layers * heads))
    ).reshape(layers, heads)  # fmt: skip
    slots = allocate(budget, split, layers, heads, least)
    assert slots.sum() == layers * heads * budget
    assert slots.min() >= least
    wish = shares(split, layers, heads)
    above = slots.ravel() > least + 1  # among those not held up by the least, more share is not fewer slots
    order = np.argsort(wish.ravel()[above], kind="stable")
    assert (np.diff(slots.ravel()[above][order]) >= -1).all()


def test_equal_is_equal_and_the_pyramid_falls() -> None:
    assert (allocate(7, "equal", 3, 2, 1) == 7).all()
    pyramid = allocate(100, "pyramid", 5, 2, 4)
    assert (np.diff(pyramid[:, 0]) < 0).all()
    assert pyramid[0, 0] == 195
    assert pyramid[-1, 0] == 5


def test_proportions_hold_where_nothing_is_held_up() -> None:
    assert allocate(10, [[1, 3]], 1, 2, 1).tolist() == [[5, 15]]
    assert allocate(10, [[1, 99]], 1, 2, 6).tolist() == [[6, 14]]


def test_too_small_a_budget() -> None:
    with pytest.raises(KvpredictError, match="below the 9"):
        allocate(8, "equal", 2, 2, 9)
    with pytest.raises(KvpredictError, match="an array"):
        shares([["x"]], 1, 1)
