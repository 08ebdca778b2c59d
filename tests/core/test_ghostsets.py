"""Ghost sets against lists of places."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvpredict.core.ghostsets import NOTHING, check_ghost_sets, make_ghost_sets, set_add, set_take
from tests.naive import NaiveSets
from tests.strategies import THOROUGH

KEYS = [0, 1, -1, -(2**63), 2**63 - 1, 2**32, *range(2, 40)]


@THOROUGH
@given(
    st.integers(0, 30), st.lists(st.tuples(st.booleans(), st.sampled_from(KEYS), st.floats(-1e9, 1e9)), max_size=120)
)
def test_sets_equal_a_model(n: int, steps: list[tuple[bool, int, float]]) -> None:
    sets, twin = make_ghost_sets(n), NaiveSets(n)
    for adds, key, value in steps:
        held = twin.keys()
        if not adds or key in held:
            known = twin.take(key)
            assert set_take(sets, np.int64(key)) == (NOTHING if known is None else known)
        else:
            twin.add(key, value)
            set_add(sets, np.int64(key), value)
        assert check_ghost_sets(sets) == twin.keys()


def test_as_many_keys_as_asked_for_are_remembered_for_about_as_long() -> None:
    sets = make_ghost_sets(700)
    keys = np.random.default_rng(0).integers(-(2**62), 2**62, 5000)
    for key in keys:
        set_add(sets, key, 1.0)
    assert len(check_ghost_sets(sets)) == 700  # all places are in use
    age = [i for i, key in enumerate(keys[::-1]) if set_take(sets, key) > NOTHING]
    assert 0.9 * 350 < np.mean(age) < 1.4 * 350  # 350 is what a queue would have
    assert max(age) < 2500


def test_of_a_full_set_the_lowest_number_goes() -> None:
    sets = make_ghost_sets(1)
    for key, value in enumerate([4.0, 2.0, 3.0, 2.0, 9.0, 2.0, 5.0, 1.0, 1.0]):
        set_add(sets, np.int64(key), value)
    assert check_ghost_sets(sets) == [0, 2, 3, 4, 5, 6, 8]
