"""Popularity: evict the object least likely to be asked for next, P(k, t) = f(k, t) / F(t).

f(k, t) counts the accesses to key k so far, F(t) all accesses: their ratio estimates the probability of k. Where
accesses are independent draws, keeping the most probable keys is optimal (Aho, Denning, Ullman, "Principles of Optimal
Page Replacement", J. ACM 18(1), 1971, policy A0), and the ratio converges to them. LFU, by contrast, counts only while
an object is held: an evicted key starts again from one, so a key just too rare to stay never shows how often it comes
(in-cache against perfect LFU: Breslau et al., "Web Caching and Zipf-like Distributions", INFOCOM 1999, section IV).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from kvpredict.core.frequencies import (
    check_frequencies,
    frequency_drop,
    frequency_lowest,
    frequency_more,
    frequency_of,
    frequency_put,
    make_frequencies,
)
from kvpredict.core.ghostsets import NOTHING, GhostSets, check_ghost_sets, make_ghost_sets, set_add, set_await, set_take
from kvpredict.core.heap import check_heap, heap_drop, heap_lowest, heap_push, heap_update, make_heap
from kvpredict.core.jit import lean_kernel
from kvpredict.core.policy import Kernels, Policy, require

__all__ = ["Popularity", "probability"]

RATE, REMEMBERS, TOTAL = 0, 1, 2  # indices into State.scalars


class State(NamedTuple):
    order: Any  # slots by P, then by last use: Frequencies of f where counts do not decay, else a Heap by log2 f
    # without its common decay
    key: np.ndarray  # int64 [slots]
    frequency: np.ndarray  # float64 [slots], f as of the last access; [0] where counts do not decay
    last: np.ndarray  # int64 [slots], clock of the last access; [0] likewise
    clock: np.ndarray  # int64 [1], requests seen
    scalars: np.ndarray  # float64 [3]: halvings of a count in a request; 1 with history; F(t)
    returning: np.ndarray  # float64 [1], f of the object being admitted, before this access
    history: GhostSets  # evicted keys, with f as of the last access, or where counts decay with their rank


@lean_kernel
def _tick(s):
    """Count one access to whatever key."""
    s.clock[0] += 1
    if s.scalars[RATE] > 0.0:
        s.scalars[TOTAL] *= 2.0 ** (-s.scalars[RATE])
    s.scalars[TOTAL] += 1.0


@lean_kernel
def _decayed(s, count, last):
    """Return a count as it stands now."""
    return count * 2.0 ** (-(s.clock[0] - last) * s.scalars[RATE])


@lean_kernel
def _rank(s, slot):
    """Return what orders slots as their probabilities do, at any later time: decay is common to all."""
    return np.log2(s.frequency[slot]) + s.last[slot] * s.scalars[RATE]


def probability(s: State, slot: int) -> float:
    """Return P of the object in ``slot``: its share of all accesses so far, recent ones weighing more if so set."""
    decays = s.scalars[RATE] > 0.0
    f = _decayed(s, s.frequency[slot], s.last[slot]) if decays else frequency_of(s.order, slot)
    return float(f / s.scalars[TOTAL])


@dataclass(frozen=True)
class Popularity(Policy):
    """Evict the lowest share of all accesses, counted over a bounded history of evicted keys too.

    Parameters
    ----------
    history : float, default 4.0
        Evicted keys whose counts are kept, for each slot, in sets of seven; of a set the least popular is forgotten. 0:
        none, which is LFU.
    half_life : float, default 0.0
        Requests, for each slot, after which an access counts half; 0: never forget.

    Notes
    -----
    F(t) is common to all keys and so does not change the order; ``probability`` gives P itself. Ties go to the least
    recently used. The one approximation is the bound on the history; with room for every key the counts are exact.
    """

    name = "popularity"

    history: float = 4.0
    half_life: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.history <= 16, self, f"history must be in [0, 16] keys a slot, got {self.history}")
        require(
            0 <= self.half_life < float("inf"),
            self,
            f"half_life must be a finite number of requests a slot, 0 for none, got {self.half_life}",
        )

    def make_state(self, capacity: int, slots: int, seed: int) -> State:
        rate = 1.0 / max(self.half_life * slots, 1.0) if self.half_life else 0.0
        counted = slots if self.half_life else 0
        return State(
            order=make_heap(slots) if self.half_life else make_frequencies(slots),
            key=np.zeros(slots, np.int64),
            frequency=np.zeros(counted, np.float64),
            last=np.zeros(counted, np.int64),
            clock=np.zeros(1, np.int64),
            scalars=np.array([rate, float(self.history > 0), 0.0]),
            returning=np.zeros(1, np.float64),
            history=make_ghost_sets(int(slots * self.history)),
        )

    def kernels(self) -> Kernels:
        return _kernels(self.half_life > 0)

    def validate(self, state: State, resident: np.ndarray) -> None:
        check = check_heap if self.half_life else check_frequencies
        assert check(state.order) == resident.tolist()
        assert not set(check_ghost_sets(state.history)) & set(state.key[resident].tolist())
        held = sum(probability(state, slot) for slot in resident)
        assert held <= 1 + 1e-9, f"probabilities of the objects held add up to {held}"


@lru_cache(maxsize=2)
def _kernels(decays: bool) -> Kernels:
    lowest, drop = (heap_lowest, heap_drop) if decays else (frequency_lowest, frequency_drop)

    @lean_kernel
    def hit(s, slot, e):
        _tick(s)
        if decays:
            s.frequency[slot] = _decayed(s, s.frequency[slot], s.last[slot]) + 1.0
            s.last[slot] = s.clock[0]
            heap_update(s.order, slot, _rank(s, slot), s.clock[0])
        else:
            frequency_more(s.order, slot)

    @lean_kernel
    def admit(s, e):
        _tick(s)
        s.returning[0] = 0.0
        known = set_take(s.history, e.key)
        if known > NOTHING:
            s.returning[0] = 2.0 ** (known - s.clock[0] * s.scalars[RATE]) if decays else known
        return True

    @lean_kernel
    def evict(s, e):
        victim = lowest(s.order)
        if s.scalars[REMEMBERS] > 0.0:
            set_add(s.history, s.key[victim], _rank(s, victim) if decays else np.float64(frequency_of(s.order, victim)))
        drop(s.order, victim)
        return victim

    @lean_kernel
    def insert(s, slot, e):
        s.key[slot] = e.key
        f = s.returning[0] + 1.0
        s.returning[0] = 0.0
        if decays:
            s.frequency[slot] = f
            s.last[slot] = s.clock[0]
            heap_push(s.order, slot, _rank(s, slot), s.clock[0])
        else:
            frequency_put(s.order, slot, np.int64(f))

    @lean_kernel
    def remove(s, slot):
        drop(s.order, slot)

    @lean_kernel
    def expect(s, slot, key, soon):
        if slot < 0 and not soon:
            set_await(s.history, key)

    return Kernels(hit, admit, evict, insert, remove, expect)
