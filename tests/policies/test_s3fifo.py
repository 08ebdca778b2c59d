"""S3-FIFO against a twin that moves keys between Python lists."""

import numpy as np
import pytest
from hypothesis import given

from kvpredict.core.errors import KvpredictError
from kvpredict.policies import policy
from kvpredict.simulate import simulate
from kvpredict.trace import Trace
from tests.naive import Naive, Request, naive_hits
from tests.strategies import THOROUGH, Sequence, sequences


class NaiveS3FIFO(Naive):
    """Queues are lists of keys, oldest first."""

    def __init__(self, capacity: int, small_ratio: float = 0.1, ghost_ratio: float = 0.9, threshold: int = 2) -> None:
        super().__init__(capacity)
        self.small_limit = max(1, int(capacity * small_ratio))
        self.ghost_limit = int(capacity * ghost_ratio)
        self.threshold, self.most = threshold, 3
        self.small: list[int] = []
        self.main: list[int] = []
        self.ghosts: list[int] = []
        self.size: dict[int, int] = {}
        self.freq: dict[int, int] = {}
        self.returning = self.evicted = False

    def units(self, queue: list[int]) -> int:
        return sum(self.size[key] for key in queue)

    def hit(self, r: Request) -> None:
        self.freq[r.key] = min(self.freq[r.key] + 1, self.most)

    def admit(self, r: Request) -> bool:
        self.returning = r.key in self.ghosts
        if self.returning:
            self.ghosts.remove(r.key)
        return True

    def evict(self, r: Request) -> int:
        self.evicted = True
        if self.units(self.main) <= self.capacity - self.small_limit:
            while self.small:
                key = self.small.pop(0)
                if self.freq[key] >= self.threshold:
                    self.main.append(key)
                    self.freq[key] = 0
                    continue
                if self.size[key] <= self.ghost_limit:
                    while self.units(self.ghosts) + self.size[key] > self.ghost_limit:
                        self.ghosts.pop(0)
                    self.ghosts.append(key)
                return key
        while self.freq[self.main[0]] > 0:
            self.freq[self.main[0]] -= 1
            self.main.append(self.main.pop(0))
        return self.main.pop(0)

    def insert(self, r: Request) -> None:
        self.freq[r.key] = 0
        filling = not self.evicted and self.units(self.small) >= self.small_limit
        self.size[r.key] = r.size
        (self.main if self.returning or filling else self.small).append(r.key)


@pytest.mark.parametrize(
    "params", [{}, {"small_ratio": 0.5, "threshold": 1}, {"small_ratio": 0.3, "threshold": 3, "ghost_ratio": 2.0}]
)
@pytest.mark.parametrize("unit", ["objects", "bytes"])
def test_equals_its_twin(params: dict[str, float], unit: str) -> None:
    @THOROUGH
    @given(sequences(sized=unit == "bytes", max_capacity=20))
    def check(sequence: Sequence) -> None:
        result = simulate(sequence.trace(), policy("s3fifo", **params), sequence.capacity, unit=unit)
        sizes = sequence.sizes if unit == "bytes" else None
        assert result.hit.tolist() == naive_hits(NaiveS3FIFO(sequence.capacity, **params), sequence.keys, sizes)

    check()


def test_a_scan_leaves_the_main_queue_alone() -> None:
    hot = np.tile(np.arange(80), 6)
    scan = np.arange(1000, 11_000)
    trace = Trace.from_keys(np.concatenate([hot, scan, np.arange(80)]))
    assert simulate(trace, "s3fifo", 100).hit[-80:].all()
    assert not simulate(trace, "lru", 100).hit[-80:].any()


def test_a_ghost_returns_to_the_main_queue() -> None:
    # 1 leaves the small queue (2 of 20 slots) unseen, comes back as a ghost, and outlives the newcomers after it.
    keys = [*range(1, 24), 1, *range(100, 140), 1]
    assert simulate(Trace.from_keys(keys), "s3fifo", 20).hit[-1] == 1
    assert simulate(Trace.from_keys(keys), policy("s3fifo", ghost_ratio=0), 20).hit[-1] == 0


@pytest.mark.parametrize("params", [{"small_ratio": 0.0}, {"small_ratio": 1.0}, {"ghost_ratio": -1}, {"threshold": 4}])
def test_refuses_parameters_out_of_range(params: dict[str, float]) -> None:
    with pytest.raises(KvpredictError, match=f"'s3fifo'.*{next(iter(params))}"):
        policy("s3fifo", **params)
