"""LFU: evict what was used least often since it came in.

Counts start at 1 on insertion and are forgotten on eviction. Each operation is O(1) (``core.frequencies``). What was
popular long ago stays for ever: LFU-DA and the sketches of W-TinyLFU cure that.
"""

from dataclasses import dataclass

import numpy as np

from kvpredict.core.frequencies import (
    Frequencies,
    check_frequencies,
    frequency_drop,
    frequency_lowest,
    frequency_more,
    frequency_put,
    make_frequencies,
)
from kvpredict.core.jit import lean_kernel
from kvpredict.core.policy import Policy

__all__ = ["LFU"]


@dataclass(frozen=True)
class LFU(Policy):
    """Least frequently used; among equals, what reached the frequency first."""

    name = "lfu"

    def make_state(self, capacity: int, slots: int, seed: int) -> Frequencies:
        return make_frequencies(slots)

    @staticmethod
    @lean_kernel
    def hit(s, slot, e):
        frequency_more(s, slot)

    @staticmethod
    @lean_kernel
    def evict(s, e):
        victim = frequency_lowest(s)
        frequency_drop(s, victim)
        return victim

    @staticmethod
    @lean_kernel
    def insert(s, slot, e):
        frequency_put(s, slot, 1)

    @staticmethod
    @lean_kernel
    def remove(s, slot):
        frequency_drop(s, slot)

    def validate(self, state: Frequencies, resident: np.ndarray) -> None:
        assert check_frequencies(state) == resident.tolist()
