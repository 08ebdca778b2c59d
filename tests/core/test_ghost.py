"""Ghost lists and the lean ghost queue against ordered dicts."""

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from kvpredict.core.ghost import ghost_add, ghost_drop, ghost_find, ghost_oldest, make_ghosts
from kvpredict.core.ghostqueue import (
    check_ghost_queue,
    make_ghost_queue,
    queue_add,
    queue_take,
    queue_trim,
    queue_units,
)
from kvpredict.core.validate import check_ghosts
from tests.strategies import THOROUGH

N = 5
KEYS = [0, 1, 2, 3, -1, -(2**63), 2**63 - 1, 2**32, 2**40]


@THOROUGH
@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "drop"]), st.sampled_from(KEYS), st.integers(0, 1), st.integers(1, 9)),
        max_size=50,
    )
)
def test_ghosts_equal_a_model(operations: list[tuple[str, int, int, int]]) -> None:
    g = make_ghosts(N, 2)
    model: list[OrderedDict[int, int]] = [OrderedDict(), OrderedDict()]  # key -> size, oldest first
    for name, key, which, size in operations:
        if name == "add":
            for part in model:
                part.pop(key, None)
            if len(model[0]) + len(model[1]) == N:
                (model[which] or model[1 - which]).popitem(last=False)
            model[which][key] = size
            node = ghost_add(g, which, key, size)
            assert (g.tag[node], g.value[node]) == (0, 0.0), "a payload starts at nothing"
            g.tag[node], g.value[node] = size, key % 7
        else:
            node = ghost_find(g, key)
            assert (node >= 0) == any(key in part for part in model)
            if node >= 0:
                ghost_drop(g, node)
                for part in model:
                    part.pop(key, None)
        check_ghosts(g)
        for k, part in enumerate(model):
            assert g.counts[k] == len(part)
            assert g.units[k] == sum(part.values())
            oldest = ghost_oldest(g, k)
            assert (oldest < 0) == (not part)
            if part:
                assert g.key[oldest] == next(iter(part))
            for held, held_size in part.items():
                node = ghost_find(g, held)
                assert (g.where[node], g.size[node], g.tag[node], g.value[node]) == (k, held_size, held_size, held % 7)


@THOROUGH
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "add", "take", "trim"]),
            st.sampled_from(KEYS),
            st.integers(1, 9),
            st.integers(0, 20),
        ),
        max_size=50,
    )
)
def test_ghost_queue_equals_a_model(operations: list[tuple[str, int, int, int]]) -> None:
    g = make_ghost_queue(N)
    model: OrderedDict[int, int] = OrderedDict()  # key -> size, oldest first
    for name, key, size, limit in operations:
        if name == "add" and key not in model:
            queue_add(g, key, size, limit)
            if size <= limit:
                while sum(model.values()) + size > limit or len(model) == N:
                    model.popitem(last=False)
                model[key] = size
        elif name == "take":
            assert queue_take(g, key) == (model.pop(key, None) is not None)
        elif name == "trim":
            queue_trim(g, limit)
            while sum(model.values()) > limit:
                model.popitem(last=False)
        assert queue_units(g) == sum(model.values())
        assert check_ghost_queue(g, 10**9) == list(model)[::-1]


def test_no_nodes_asked_for_still_gives_one() -> None:
    g = make_ghosts(0)
    ghost_add(g, 0, 7, 1)
    ghost_add(g, 0, 8, 1)
    assert ghost_find(g, 7) < 0 <= ghost_find(g, 8)
