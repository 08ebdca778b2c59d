"""Clock2Q+ against a twin: S3-FIFO's, with ages in the small queue."""

import pytest
from hypothesis import given

from kvpredict.core.errors import KvpredictError
from kvpredict.policies import policy
from kvpredict.simulate import simulate
from kvpredict.trace import Trace
from tests.naive import Request, naive_hits
from tests.policies.test_s3fifo import NaiveS3FIFO
from tests.strategies import THOROUGH, Sequence, sequences


class NaiveClock2QPlus(NaiveS3FIFO):
    def __init__(
        self, capacity: int, small_ratio: float = 0.1, ghost_ratio: float = 0.5, window_ratio: float = 0.5
    ) -> None:
        super().__init__(capacity, small_ratio, ghost_ratio, threshold=1)
        self.window = self.small_limit * window_ratio
        self.entered: list[int] = []  # keys in the order in which they entered the small queue, ever

    def hit(self, r: Request) -> None:
        if r.key in self.small:
            since = len(self.entered) - 1 - self.entered[::-1].index(r.key)
            if sum(self.size[key] for key in self.entered[since + 1 :]) < self.window:
                return
        self.freq[r.key] = 1

    def insert(self, r: Request) -> None:
        super().insert(r)
        if r.key in self.small:
            self.entered.append(r.key)


@pytest.mark.parametrize(
    "params",
    [{}, {"small_ratio": 0.5}, {"small_ratio": 0.5, "window_ratio": 0.0}, {"small_ratio": 0.4, "ghost_ratio": 2.0}],
)
@pytest.mark.parametrize("unit", ["objects", "bytes"])
def test_equals_its_twin(params: dict[str, float], unit: str) -> None:
    @THOROUGH
    @given(sequences(sized=unit == "bytes", max_capacity=20))
    def check(sequence: Sequence) -> None:
        result = simulate(sequence.trace(), policy("clock2qplus", **params), sequence.capacity, unit=unit)
        sizes = sequence.sizes if unit == "bytes" else None
        assert result.hit.tolist() == naive_hits(NaiveClock2QPlus(sequence.capacity, **params), sequence.keys, sizes)

    check()


def test_a_burst_on_arrival_earns_nothing() -> None:
    # A small queue of 10 fills first, then the main one; 7 is hit at once (in the window) or after 6 more newcomers.
    def survives(hits_after: int) -> bool:
        fill = [*range(1000, 1100)]
        arrival = [7, *range(2000, 2000 + hits_after), 7, 7, *range(3000, 3040)]
        return bool(simulate(Trace.from_keys([*fill, *arrival, 7]), "clock2qplus", 100).hit[-1])

    assert not survives(0)
    assert survives(6)


@pytest.mark.parametrize("params", [{"small_ratio": 0.0}, {"ghost_ratio": 9}, {"window_ratio": 1.5}])
def test_refuses_parameters_out_of_range(params: dict[str, float]) -> None:
    with pytest.raises(KvpredictError, match=f"'clock2qplus'.*{next(iter(params))}"):
        policy("clock2qplus", **params)
