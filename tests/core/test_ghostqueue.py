"""The ghost queue and its index against an ordered dict."""

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvpredict.core.ghostqueue import (
    check_ghost_queue,
    make_ghost_queue,
    queue_add,
    queue_take,
    queue_trim,
    queue_units,
)
from kvpredict.core.index import check_index, index_drop, index_get, index_put, make_index
from kvpredict.core.table import hash_key
from tests.strategies import THOROUGH, wide_keys

KEYS = wide_keys(np.arange(30)).tolist()
OPERATION = st.one_of(
    st.tuples(st.just("add"), st.sampled_from(KEYS), st.integers(1, 9)),
    st.tuples(st.just("take"), st.sampled_from(KEYS), st.just(0)),
    st.tuples(st.just("trim"), st.just(0), st.integers(0, 25)),
)


@pytest.mark.parametrize(("n", "limit"), [(1, 5), (4, 1000), (12, 25), (30, 40)])
def test_queue_equals_an_ordered_dict(n: int, limit: int) -> None:
    @THOROUGH
    @given(st.lists(OPERATION, max_size=120))
    def check(operations: list[tuple[str, int, int]]) -> None:
        queue = make_ghost_queue(n)
        twin: OrderedDict[int, int] = OrderedDict()  # size by key, oldest first
        for what, key, number in operations:
            if what == "take":
                assert queue_take(queue, key) == (twin.pop(key, None) is not None)
            elif what == "trim":
                queue_trim(queue, number)
                while sum(twin.values()) > number:
                    twin.popitem(last=False)
            elif key not in twin:
                queue_add(queue, key, number, limit)
                if number <= limit:
                    while len(twin) == n or sum(twin.values()) + number > limit:
                        twin.popitem(last=False)
                    twin[key] = number
            assert check_ghost_queue(queue, limit) == list(reversed(twin))
            assert queue_units(queue) == sum(twin.values())

    check()


def test_index_survives_keys_of_one_home() -> None:
    cells = make_index(8)
    crowded = [key for key in range(4000) if (int(hash_key(key)) >> 1) % cells.size == cells.size - 1][:8]
    rows = np.array(crowded, np.int64)
    held = []
    for row, key in enumerate(crowded):
        index_put(cells, key, row)
        held.append(row)
        check_index(cells, rows, 1, held)
    for row in (3, 0, 7, 1, 5):  # from the middle, the home cell and the end of the run, which wraps around
        index_drop(cells, crowded[row], row)
        held.remove(row)
        check_index(cells, rows, 1, held)
        assert index_get(cells, rows, 1, crowded[row]) == -1
