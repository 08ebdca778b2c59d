"""LIRS against a twin that keeps S and Q as Python lists of keys."""

import numpy as np
import pytest
from hypothesis import given

from kvpredict.core.errors import KvpredictError
from kvpredict.policies import policy
from kvpredict.simulate import simulate
from kvpredict.trace import Trace
from tests.naive import Naive, Request, naive_hits
from tests.strategies import THOROUGH, Sequence, sequences


class NaiveLIRS(Naive):
    """S and Q are lists, oldest first; a key of S that is neither LIR nor in Q is not resident."""

    def __init__(self, capacity: int, hir_ratio: float = 0.01, stack_ratio: float = 2.0) -> None:
        super().__init__(capacity)
        self.lir_limit = capacity - max(1, int(capacity * hir_ratio))
        self.stack_limit = int(capacity * stack_ratio)
        self.stack: list[int] = []
        self.queue: list[int] = []
        self.lir: set[int] = set()
        self.gone: list[int] = []  # non-resident keys of S in the order of their eviction
        self.size: dict[int, int] = {}
        self.returning = False

    def units(self, keys: list[int] | set[int]) -> int:
        return sum(self.size[key] for key in keys)

    def prune(self) -> None:
        while self.stack and self.stack[0] not in self.lir:
            key = self.stack.pop(0)
            if key in self.gone:
                self.gone.remove(key)

    def to_top(self, key: int) -> None:
        if key in self.stack:
            self.stack.remove(key)
        self.stack.append(key)
        while self.units(self.stack) > self.stack_limit and self.gone:
            self.stack.remove(self.gone.pop(0))

    def promote(self, key: int) -> None:
        self.lir.add(key)
        self.prune()
        while self.units(self.lir) > self.lir_limit:
            bottom = self.stack.pop(0)
            self.lir.remove(bottom)
            self.queue.append(bottom)
            self.prune()

    def hit(self, r: Request) -> None:
        in_stack = r.key in self.stack
        self.to_top(r.key)
        if r.key in self.lir:
            self.prune()
            return
        self.queue.remove(r.key)
        if in_stack and self.size[r.key] <= self.lir_limit:
            self.promote(r.key)
        else:
            self.queue.append(r.key)

    def admit(self, r: Request) -> bool:
        self.returning = r.key in self.gone
        if self.returning:
            self.gone.remove(r.key)
            self.stack.remove(r.key)
        return True

    def evict(self, r: Request) -> int:
        if not self.queue:
            key = self.stack.pop(0)
            self.lir.remove(key)
            self.prune()
            return key
        key = self.queue.pop(0)
        if key in self.stack:
            self.gone.append(key)
        return key

    def insert(self, r: Request) -> None:
        self.size[r.key] = r.size
        self.to_top(r.key)
        if self.units(self.lir) + r.size <= self.lir_limit or (self.returning and r.size <= self.lir_limit):
            self.promote(r.key)
        else:
            self.queue.append(r.key)


@pytest.mark.parametrize("params", [{}, {"hir_ratio": 0.3}, {"hir_ratio": 0.5, "stack_ratio": 1.0}, {"stack_ratio": 5}])
@pytest.mark.parametrize("unit", ["objects", "bytes"])
def test_equals_its_twin(params: dict[str, float], unit: str) -> None:
    @THOROUGH
    @given(sequences(sized=unit == "bytes", max_capacity=20, keys=40))
    def check(sequence: Sequence) -> None:
        result = simulate(sequence.trace(), policy("lirs", **params), sequence.capacity, unit=unit)
        sizes = sequence.sizes if unit == "bytes" else None
        assert result.hit.tolist() == naive_hits(NaiveLIRS(sequence.capacity, **params), sequence.keys, sizes)

    check()


def test_a_loop_larger_than_the_cache_hits_in_proportion() -> None:
    # The LIR set, 99 of 100 slots, holds its part of the loop; LRU would hit nothing.
    keys = np.tile(np.arange(200), 20)
    assert simulate(Trace.from_keys(keys), "lirs", 100).hits == 99 * 19
    assert simulate(Trace.from_keys(keys), "lru", 100).hits == 0


def test_a_shorter_distance_takes_the_place_of_a_longer_one() -> None:
    # 9 misses twice within the reach of S and becomes LIR; 0, the oldest LIR object, leaves by way of Q.
    keys = [0, 1, 2, 9, 8, 9]
    trace = Trace.from_keys([*keys, 7, 6, 9, 0])
    made = policy("lirs", hir_ratio=0.25)
    assert simulate(trace, made, 4).hit[-2:].tolist() == [1, 0]


@pytest.mark.parametrize("params", [{"hir_ratio": 0.0}, {"hir_ratio": 1.0}, {"stack_ratio": 0.5}])
def test_refuses_parameters_out_of_range(params: dict[str, float]) -> None:
    with pytest.raises(KvpredictError, match=f"'lirs'.*{next(iter(params))}"):
        policy("lirs", **params)
