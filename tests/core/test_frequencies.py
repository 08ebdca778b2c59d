"""Slots by a whole number that grows, against a sorted dict."""

from hypothesis import given
from hypothesis import strategies as st

from kvpredict.core.frequencies import (
    check_frequencies,
    frequency_drop,
    frequency_lowest,
    frequency_more,
    frequency_put,
    make_frequencies,
)
from tests.strategies import THOROUGH

SLOTS = 6
STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "more", "drop"]), st.integers(0, SLOTS - 1), st.integers(1, 6)), max_size=80
)


@THOROUGH
@given(STEPS)
def test_equals_a_sorted_dict(steps: list[tuple[str, int, int]]) -> None:
    made = make_frequencies(SLOTS)
    held: dict[int, tuple[int, int]] = {}  # number, and when it was reached
    for now, (step, slot, count) in enumerate(steps):
        if step == "put" and slot not in held:
            frequency_put(made, slot, count)
            held[slot] = count, now
        elif step == "more" and slot in held:
            frequency_more(made, slot)
            held[slot] = held[slot][0] + 1, now
        elif step == "drop" and slot in held:
            frequency_drop(made, slot)
            del held[slot]
        assert check_frequencies(made) == sorted(held)
        assert all(made.uses[made.queue[slot]] == number for slot, (number, _) in held.items())
        assert not held or frequency_lowest(made) == min(held, key=held.__getitem__)
