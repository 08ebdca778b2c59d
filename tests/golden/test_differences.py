"""That the differences named in ``different.py`` are the whole difference, for three policies.

Each twin below follows libcachesim's rule where ours follows the paper's, and must then have libcachesim's misses to
the last one on generated traces. What the policies' docstrings say of libcachesim thus rests on a measurement.
"""

import csv
from collections import OrderedDict
from pathlib import Path

import pytest

from tests.golden.traces import GENERATED
from tests.naive import Naive, NaiveSLRU, Request, naive_hits


class FillingSLRU(NaiveSLRU):
    """Newcomers enter the lowest segment that has room."""

    def insert(self, r: Request) -> None:
        room = (s for s in self.lists if sum(s.values()) + r.size <= self.limit)
        next(room, self.lists[0])[r.key] = r.size


class ForgetfulLRU2(Naive):
    """No histories of evicted objects; those used once go first in, first out."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.now = 0
        self.uses: dict[int, list[int]] = {}

    def hit(self, r: Request) -> None:
        self.now += 1
        self.uses[r.key].append(self.now)

    def evict(self, r: Request) -> int:
        victim = min(self.uses, key=lambda k: (len(self.uses[k]) > 1, self.uses[k][-2:][0]))
        del self.uses[victim]
        return victim

    def insert(self, r: Request) -> None:
        self.now += 1
        self.uses[r.key] = [self.now]


class CompoundingLFUDA(Naive):
    """The age, which is the lowest priority in use, is added to an object's priority at each hit."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.queues: dict[int, OrderedDict[int, None]] = {}
        self.priority: dict[int, int] = {}
        self.age = self.highest = 0

    def raise_age(self) -> None:
        above = [p for p, queue in self.queues.items() if queue and self.age < p <= self.highest]
        self.age = min(above, default=self.age)

    def hit(self, r: Request) -> None:
        old = self.priority[r.key]
        self.highest = max(self.highest, old + self.age)
        del self.queues[old][r.key]
        target = old + self.age
        if self.age == old and not self.queues[old]:
            self.raise_age()
        self.put(r.key, target)

    def evict(self, r: Request) -> int:
        self.age = max(self.age, 1)
        victim, _ = self.queues[self.age].popitem(last=False)
        if not self.queues[self.age]:
            self.raise_age()
        return victim

    def insert(self, r: Request) -> None:
        self.put(r.key, self.age + 1)

    def put(self, key: int, priority: int) -> None:
        self.priority[key] = priority
        self.queues.setdefault(priority, OrderedDict())[key] = None


@pytest.mark.parametrize(
    ("policy", "twin", "trace", "capacity"),
    [
        ("slru", FillingSLRU, "loops", 16),
        ("slru", FillingSLRU, "loops", 160),
        ("slru", FillingSLRU, "wonders", 169),
        ("lruk", ForgetfulLRU2, "loops", 160),
        ("lruk", ForgetfulLRU2, "mixed", 67),
        ("lruk", ForgetfulLRU2, "wonders", 169),
        ("lfuda", CompoundingLFUDA, "loops", 160),
        ("lfuda", CompoundingLFUDA, "mixed", 675),
        ("lfuda", CompoundingLFUDA, "wonders", 169),
        ("lfuda", CompoundingLFUDA, "zipf", 375),
    ],
)
def test_the_named_rule_is_the_difference(policy: str, twin: type[Naive], trace: str, capacity: int) -> None:
    with (Path(__file__).parent / "golden.csv").open(newline="") as file:
        rows = {(r["policy"], r["trace"], r["capacity"], r["unit"]): int(r["misses"]) for r in csv.DictReader(file)}
    keys = GENERATED[trace]().keys.tolist()
    misses = len(keys) - sum(naive_hits(twin(capacity), keys))
    assert misses == rows[policy, trace, str(capacity), "objects"]
