"""The engine: what ``place``, ``drain`` and ``take`` do to a host's slots, under LRU."""

import numpy as np
import pytest

from kvpredict.core.engine import Engine, Host, bind, make_host
from kvpredict.policies import policy

NOTHING = np.zeros((1, 0))


class Small:
    """An LRU cache of 10 units and 4 slots."""

    def __init__(self) -> None:
        lru = policy("lru")
        self.engine: Engine = bind(lru)
        self.state = lru.state(10, slots=4)
        self.host: Host = make_host(10, 4)

    def place(self, key: int, size: int, hint: float = 1.0) -> tuple[int, list[int]]:
        slot = self.engine.place(self.state, self.host, 0.0, np.int64(key), np.int64(size), hint, NOTHING)
        return int(slot), self.host.victims[: self.host.counts[3]].tolist()


@pytest.fixture
def small() -> Small:
    return Small()


def test_slots_are_handed_out_from_zero(small: Small) -> None:
    assert [small.place(key, 2)[0] for key in range(4)] == [0, 1, 2, 3]
    assert small.host.counts[:3].tolist() == [10, 8, 0]
    assert small.host.live.tolist() == [1, 1, 1, 1]


def test_evicts_for_a_slot_and_for_units(small: Small) -> None:
    for key in range(4):
        small.place(key, 2)
    assert small.place(4, 1) == (0, [0]), "no slot is free"
    assert small.place(5, 6) == (2, [1, 2]), "of 1 + 2 + 2 + 2 units in use at most 4 may stay"
    assert small.host.key[[0, 2]].tolist() == [4, 5]


def test_too_large_an_object_is_refused_and_evicts_nothing(small: Small) -> None:
    small.place(0, 2)
    assert small.place(1, 11) == (-1, [])
    assert small.host.counts[1] == 2
    assert small.place(1, 10) == (0, [0])


def test_what_a_host_knows_of_a_slot(small: Small) -> None:
    slot, _ = small.place(-5, 3, hint=2.5)
    assert (small.host.key[slot], small.host.size[slot], small.host.hint[slot]) == (-5, 3, 2.5)


def test_an_object_of_no_size_takes_a_unit(small: Small) -> None:
    small.place(1, 0)
    assert small.host.counts[1] == 1


def test_hits_are_applied_in_order_and_not_to_freed_slots(small: Small) -> None:
    for key in range(4):
        small.place(key, 2)
    small.engine.take(small.state, small.host, 1)
    small.engine.drain(small.state, small.host, np.array([0, 1, 2], np.int32), np.zeros(3))
    small.place(4, 2)
    assert [small.place(key, 2)[1] for key in (5, 6, 7)] == [[3], [0], [2]]


def test_take_frees_the_slot(small: Small) -> None:
    for key in range(4):
        small.place(key, 2)
    small.engine.take(small.state, small.host, 2)
    assert small.host.counts[:3].tolist() == [10, 6, 1]
    assert small.place(9, 2) == (2, [])


def test_policies_with_the_same_kernels_share_their_loops() -> None:
    assert bind(policy("clock", bits=1)) is bind(policy("clock", bits=3))
    assert bind(policy("clock")) is not bind(policy("lru"))
