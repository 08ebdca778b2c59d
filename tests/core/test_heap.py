"""The indexed heap and the bag against plain Python containers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvpredict.core.bag import bag_draw, bag_drop, bag_put, check_bag, make_bag
from kvpredict.core.heap import check_heap, heap_drop, heap_lowest, heap_pop, heap_push, heap_update, make_heap
from kvpredict.core.random import seed_random
from tests.strategies import THOROUGH

RANKS = st.tuples(st.sampled_from([-np.inf, -1.5, 0.0, 2.0, np.inf]), st.integers(-2, 2))
STEPS = st.lists(st.tuples(st.sampled_from(["set", "drop", "pop"]), st.integers(0, 11), RANKS), max_size=80)


@THOROUGH
@given(STEPS)
def test_heap_equals_a_sorted_dict(steps: list[tuple[str, int, tuple[float, int]]]) -> None:
    heap = make_heap(12)
    held: dict[int, tuple[float, int]] = {}
    for step, slot, (priority, tie) in steps:
        if step == "set":
            (heap_update if slot in held else heap_push)(heap, slot, priority, tie)
            held[slot] = (priority, tie)
        elif step == "drop" and slot in held:
            heap_drop(heap, slot)
            del held[slot]
        elif step == "pop" and held:
            assert held[int(heap_lowest(heap))] == min(held.values())
            assert held.pop(int(heap_pop(heap))) <= min(held.values(), default=(np.inf, 99))
        assert check_heap(heap) == sorted(held)
        assert all((heap.priority[slot], heap.tie[slot]) == rank for slot, rank in held.items())


def test_heap_pops_in_order_of_rank() -> None:
    rng = np.random.default_rng(0)
    heap = make_heap(500)
    ranks = [(float(p), int(t)) for p, t in zip(rng.integers(0, 50, 500), rng.permutation(500), strict=True)]
    for slot, (priority, tie) in enumerate(ranks):
        heap_push(heap, slot, 0.0, slot)
        heap_update(heap, slot, priority, tie)
    assert [ranks[int(heap_pop(heap))] for _ in range(500)] == sorted(ranks)
    assert heap.held[0] == 0


@THOROUGH
@given(st.lists(st.integers(0, 9), max_size=60))
def test_bag_equals_a_set(toggled: list[int]) -> None:
    bag = make_bag(10)
    held: set[int] = set()
    for slot in toggled:
        (bag_drop if slot in held else bag_put)(bag, slot)
        held ^= {slot}
        assert check_bag(bag) == sorted(held)


def test_draws_are_uniform() -> None:
    bag, rng = make_bag(8), seed_random(4)
    for slot in range(8):
        bag_put(bag, slot)
    bag_drop(bag, 2)
    drawn = np.bincount([int(bag_draw(bag, rng)) for _ in range(7000)], minlength=8)
    assert drawn[2] == 0
    assert (abs(np.delete(drawn, 2) - 1000) < 150).all()  # five standard deviations
