"""Slow, obvious twins of the policies, over keys in plain Python containers; tests compare hit for hit.

A twin knows nothing of slots, kernels or arrays. ``naive_hits`` is the host: it keeps the sizes, asks the twin for
victims until an object fits, and tells it of every hit. ``optimal_misses`` is Belady's bound by brute force.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kvpredict.core.policy import Policy
from kvpredict.core.table import hash_key
from kvpredict.simulate import simulate
from kvpredict.trace import Trace
from tests.strategies import THOROUGH, sequences, zipf_mix
from tests.strategies import Sequence as Drawn

__all__ = [
    "Naive",
    "NaiveARC",
    "NaiveClock",
    "NaiveFIFO",
    "NaiveLFU",
    "NaiveLFUDA",
    "NaiveLRU",
    "NaiveLRUK",
    "NaiveSIEVE",
    "NaiveSLRU",
    "NaiveSets",
    "NaiveTwoQ",
    "Request",
    "compare_with_twin",
    "naive_hits",
    "optimal_misses",
]


class Request(NamedTuple):
    time: float
    key: int
    size: int
    hint: float


class Naive:
    """Base of all twins; ``capacity`` in units."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity

    def hit(self, r: Request) -> None:
        """Learn that the resident ``r.key`` was hit."""

    def admit(self, r: Request) -> bool:
        """Learn of the miss; tell whether to take the object in."""
        return True

    def evict(self, r: Request) -> int:
        """Forget and return the key to evict for ``r``."""
        raise NotImplementedError

    def insert(self, r: Request) -> None:
        """Take ``r.key`` in."""
        raise NotImplementedError


def naive_hits(
    twin: Naive,
    keys: Sequence[int],
    sizes: Sequence[int] | None = None,
    times: Sequence[float] | None = None,
    hints: Sequence[float] | None = None,
    slots: int | None = None,
) -> list[int]:
    """Return 1 for each request that hits; ``slots`` bounds the objects held at once (default: no bound)."""
    held: dict[int, int] = {}
    out = []
    for i, key in enumerate(keys):
        r = Request(
            float(i) if times is None else float(times[i]),
            int(key),
            1 if sizes is None else max(int(sizes[i]), 1),
            1.0 if hints is None else float(hints[i]),
        )
        if r.key in held:
            out.append(1)
            twin.hit(r)
            continue
        out.append(0)
        if r.size > twin.capacity or not twin.admit(r):
            continue
        while sum(held.values()) + r.size > twin.capacity or (slots is not None and len(held) >= slots):
            del held[twin.evict(r)]
        held[r.key] = r.size
        twin.insert(r)
    return out


def optimal_misses(keys: Sequence[int], capacity: int, *, bypass: bool = False) -> int:
    """Return the fewest misses that any policy for unit sizes can have; with ``bypass`` it may refuse objects."""
    next_use = [math.inf] * len(keys)
    last: dict[int, int] = {}
    for i in range(len(keys) - 1, -1, -1):
        next_use[i] = last.get(keys[i], math.inf)
        last[keys[i]] = i
    held: dict[int, float] = {}
    misses = 0
    for i, key in enumerate(keys):
        misses += key not in held
        if key not in held and len(held) == capacity:
            farthest = max(held, key=lambda k: held[k])
            if bypass and next_use[i] >= held[farthest]:
                continue
            del held[farthest]
        held[key] = next_use[i]
    return misses


def compare_with_twin(
    policy: Policy, twin: Callable[[int], Naive], *, examples: int = 150, seeds: tuple[int, ...] = (1, 2)
) -> None:
    """Assert that ``policy`` hits where its twin does: on drawn sequences and longer mixed ones, unit and sized."""

    def check(keys: Sequence[int], sizes: Sequence[int] | None, capacity: int) -> None:
        trace = Trace.from_keys(keys, sizes=sizes)
        hit = simulate(trace, policy, capacity, unit="objects" if sizes is None else "bytes").hit
        assert hit.tolist() == naive_hits(twin(capacity), keys, sizes)

    @settings(THOROUGH, max_examples=examples)
    @given(st.booleans().flatmap(lambda sized: sequences(sized=sized)), st.booleans())
    def drawn(sequence: Drawn, use_sizes: bool) -> None:
        check(sequence.keys, sequence.sizes if use_sizes else None, sequence.capacity)

    drawn()
    for seed in seeds:
        keys = zipf_mix(1500, 120, seed=seed).tolist()
        for capacity in (1, 2, 7, 30):
            check(keys, None, capacity)
        check(keys, [1 + key * 7919 % 23 for key in keys], 250)


class NaiveLRU(Naive):
    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.order: OrderedDict[int, None] = OrderedDict()  # oldest first

    def hit(self, r: Request) -> None:
        self.order.move_to_end(r.key)

    def evict(self, r: Request) -> int:
        return self.order.popitem(last=False)[0]

    def insert(self, r: Request) -> None:
        self.order[r.key] = None


class NaiveFIFO(Naive):
    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.queue: list[int] = []  # oldest first

    def evict(self, r: Request) -> int:
        return self.queue.pop(0)

    def insert(self, r: Request) -> None:
        self.queue.append(r.key)


class NaiveClock(NaiveFIFO):
    def __init__(self, capacity: int, bits: int = 1) -> None:
        super().__init__(capacity)
        self.most = 2**bits - 1
        self.chances: dict[int, int] = {}

    def hit(self, r: Request) -> None:
        self.chances[r.key] = min(self.chances[r.key] + 1, self.most)

    def evict(self, r: Request) -> int:
        while self.chances[self.queue[0]] > 0:
            self.chances[self.queue[0]] -= 1
            self.queue.append(self.queue.pop(0))
        return self.queue.pop(0)

    def insert(self, r: Request) -> None:
        super().insert(r)
        self.chances[r.key] = 0


class NaiveSIEVE(NaiveFIFO):
    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.visited: set[int] = set()
        self.hand: int | None = None  # a key; None stands for the oldest

    def hit(self, r: Request) -> None:
        self.visited.add(r.key)

    def evict(self, r: Request) -> int:
        at = 0 if self.hand is None else self.queue.index(self.hand)
        while self.queue[at] in self.visited:
            self.visited.remove(self.queue[at])
            at = (at + 1) % len(self.queue)
        victim = self.queue.pop(at)
        self.hand = self.queue[at] if at < len(self.queue) else None
        return victim


class NaiveLFU(Naive):
    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.now = 0
        self.rank: dict[int, tuple[float, int]] = {}  # frequency, and when it was reached
        self.uses: dict[int, int] = {}
        self.age = 0.0

    def touch(self, key: int, frequency: float) -> None:
        self.now += 1
        self.rank[key] = (frequency, self.now)

    def hit(self, r: Request) -> None:
        self.touch(r.key, self.rank[r.key][0] + 1)

    def evict(self, r: Request) -> int:
        victim = min(self.rank, key=lambda k: self.rank[k])
        self.age = self.rank.pop(victim)[0]
        return victim

    def insert(self, r: Request) -> None:
        self.touch(r.key, 1)


class NaiveLFUDA(NaiveLFU):
    def hit(self, r: Request) -> None:
        self.uses[r.key] += 1
        self.touch(r.key, self.uses[r.key] + self.age)

    def insert(self, r: Request) -> None:
        self.uses[r.key] = 1
        self.touch(r.key, 1 + self.age)


class NaiveSLRU(Naive):
    def __init__(self, capacity: int, segments: int = 4) -> None:
        super().__init__(capacity)
        self.limit = capacity // segments
        self.lists: list[OrderedDict[int, int]] = [OrderedDict() for _ in range(segments)]  # key -> size, oldest first

    def hit(self, r: Request) -> None:
        level = next(i for i, segment in enumerate(self.lists) if r.key in segment)
        size = self.lists[level].pop(r.key)
        target = min(level + 1, len(self.lists) - 1)
        self.lists[target][r.key] = size
        for i in range(target, 0, -1):
            while sum(self.lists[i].values()) > self.limit:
                key, moved = self.lists[i].popitem(last=False)
                self.lists[i - 1][key] = moved

    def evict(self, r: Request) -> int:
        return next(segment for segment in self.lists if segment).popitem(last=False)[0]

    def insert(self, r: Request) -> None:
        self.lists[0][r.key] = r.size


class NaiveTwoQ(Naive):
    def __init__(self, capacity: int, in_ratio: float = 0.25, out_ratio: float = 0.5) -> None:
        super().__init__(capacity)
        self.k_in, self.k_out = int(capacity * in_ratio), int(capacity * out_ratio)
        self.a1in: OrderedDict[int, int] = OrderedDict()  # oldest first, as the others
        self.a1out: OrderedDict[int, int] = OrderedDict()
        self.am: OrderedDict[int, int] = OrderedDict()
        self.returns = False

    def hit(self, r: Request) -> None:
        if r.key in self.am:
            self.am.move_to_end(r.key)

    def admit(self, r: Request) -> bool:
        self.returns = self.a1out.pop(r.key, None) is not None
        return True

    def evict(self, r: Request) -> int:
        if sum(self.a1in.values()) <= self.k_in and self.am:
            return self.am.popitem(last=False)[0]
        key, size = self.a1in.popitem(last=False)
        if size <= self.k_out:
            self.a1out[key] = size
            while sum(self.a1out.values()) > self.k_out:
                self.a1out.popitem(last=False)
        return key

    def insert(self, r: Request) -> None:
        (self.am if self.returns else self.a1in)[r.key] = r.size


class NaiveLRUK(Naive):
    """Figure 2.1 of the paper, with at most ``retained`` histories of evicted keys."""

    def __init__(self, capacity: int, k: int = 2, correlated: int = 0, retained: int | None = None) -> None:
        super().__init__(capacity)
        self.k, self.correlated = k, correlated
        self.retained = capacity if retained is None else retained
        self.now = 0
        self.hist: dict[int, list[int]] = {}
        self.last: dict[int, int] = {}
        self.past: OrderedDict[int, list[int]] = OrderedDict()

    def hit(self, r: Request) -> None:
        self.now += 1
        key = r.key
        if self.now - self.last[key] > self.correlated:
            span = self.last[key] - self.hist[key][0]
            self.hist[key] = [self.now, *(h + span if h else 0 for h in self.hist[key][:-1])]
        self.last[key] = self.now

    def admit(self, r: Request) -> bool:
        self.now += 1
        return True

    def evict(self, r: Request) -> int:
        free = [key for key in self.hist if self.now - self.last[key] > self.correlated] or list(self.hist)
        victim = min(free, key=lambda key: (self.hist[key][-1], self.last[key]))
        self.past[victim] = self.hist.pop(victim)
        # The object being admitted takes its own history out of the retained ones first.
        while len(self.past) - (r.key in self.past) > self.retained:
            self.past.pop(next(key for key in self.past if key != r.key))
        return victim

    def insert(self, r: Request) -> None:
        past = self.past.pop(r.key, [0] * self.k)
        self.hist[r.key] = [self.now, *past[:-1]]
        self.last[r.key] = self.now


class NaiveARC(Naive):
    """Figure 4 of the paper for pages; lengths are sums of sizes."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.p = 0.0
        self.t1: OrderedDict[int, int] = OrderedDict()  # key -> size, oldest first, as the others
        self.t2: OrderedDict[int, int] = OrderedDict()
        self.b1: OrderedDict[int, int] = OrderedDict()
        self.b2: OrderedDict[int, int] = OrderedDict()
        self.case = 4

    def lengths(self) -> tuple[int, int, int, int]:
        t1, t2, b1, b2 = (sum(part.values()) for part in (self.t1, self.t2, self.b1, self.b2))
        return t1, t2, b1, b2

    def hit(self, r: Request) -> None:
        size = self.t1.pop(r.key) if r.key in self.t1 else self.t2.pop(r.key)
        self.t2[r.key] = size

    def admit(self, r: Request) -> bool:
        _, _, b1, b2 = self.lengths()
        self.case = 2 if r.key in self.b1 else 3 if r.key in self.b2 else 4
        if self.case == 2:
            self.p = min(self.capacity, self.p + r.size * max(1.0, b2 / b1))
            del self.b1[r.key]
        elif self.case == 3:
            self.p = max(0.0, self.p - r.size * max(1.0, b1 / b2))
            del self.b2[r.key]
        return True

    def evict(self, r: Request) -> int:
        t1, _, b1, _ = self.lengths()
        if self.case == 4:
            if t1 + b1 + r.size > self.capacity and not self.b1:
                return self.t1.popitem(last=False)[0]
            self.trim(r.size)
        if (self.t1 and (t1 > self.p or (t1 == self.p and self.case == 3))) or not self.t2:
            key, size = self.t1.popitem(last=False)
            self.b1[key] = size
        else:
            key, size = self.t2.popitem(last=False)
            self.b2[key] = size
        return key

    def trim(self, incoming: int) -> None:
        while self.b1 and sum(self.t1.values()) + sum(self.b1.values()) + incoming > self.capacity:
            self.b1.popitem(last=False)
        while self.b2 and sum(self.lengths()) + incoming > 2 * self.capacity:
            self.b2.popitem(last=False)

    def insert(self, r: Request) -> None:
        if self.case == 4:
            self.trim(r.size)
        (self.t1 if self.case == 4 else self.t2)[r.key] = r.size


class NaiveSets:
    """Twin of ``core.ghostsets``: places of seven to a list, each ``(key, value)`` or None."""

    def __init__(self, n: int) -> None:
        self.sets: list[list[tuple[int, float] | None]] = [[None] * 7 for _ in range(max(1, math.ceil(n / 7)))]
        self.turn = [0] * len(self.sets)

    def at(self, key: int) -> int:
        return int(hash_key(np.int64(key))) * len(self.sets) // 2**32

    def take(self, key: int) -> float | None:
        """Forget ``key`` and return its value."""
        places = self.sets[self.at(key)]
        for way, held in enumerate(places):
            if held is not None and held[0] == key:
                places[way] = None
                return held[1]
        return None

    def add(self, key: int, value: float) -> int | None:
        """Remember ``key`` and return which one is forgotten for it."""
        at = self.at(key)
        if None in self.sets[at]:
            self.sets[at][self.sets[at].index(None)] = key, value
            return None
        turn = self.turn[at]
        self.turn[at] = (turn + 1) % 7
        places = [held for held in self.sets[at] if held is not None]
        way = min(range(7), key=lambda way: (places[way][1], (way - turn) % 7))
        self.sets[at][way] = key, value
        return places[way][0]

    def keys(self) -> list[int]:
        return sorted(held[0] for places in self.sets for held in places if held is not None)
