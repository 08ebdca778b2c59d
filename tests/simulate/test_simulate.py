"""The simulator: what it counts, from where, in which unit, and what it refuses."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvpredict.core.errors import KvpredictError, TraceError, UnknownName
from kvpredict.policies import policy
from kvpredict.simulate import Result, simulate
from kvpredict.trace import Trace, read_trace
from tests.naive import NaiveLRU, naive_hits, optimal_misses
from tests.strategies import THOROUGH, Sequence, sequences, zipf_mix


@pytest.fixture(scope="module")
def trace() -> Trace:
    keys = zipf_mix(3000, 150, seed=4)
    rng = np.random.default_rng(4)
    size_of = rng.integers(0, 50, int(keys.max()) + 1)
    cost_of = rng.uniform(1, 9, int(keys.max()) + 1)
    return Trace.from_keys(keys, sizes=size_of[keys], times=np.arange(3000) * 0.5, cost=cost_of[keys])


@pytest.mark.parametrize("unit", ["objects", "bytes"])
def test_hits_equal_the_twin(unit: str) -> None:
    @THOROUGH
    @given(sequences(sized=True))
    def check(sequence: Sequence) -> None:
        result = simulate(sequence.trace(), "lru", sequence.capacity, unit=unit)
        sizes = sequence.sizes if unit == "bytes" else None
        assert result.hit.tolist() == naive_hits(NaiveLRU(sequence.capacity), sequence.keys, sizes)

    check()


@pytest.mark.parametrize("unit", ["objects", "bytes"])
@pytest.mark.parametrize("warmup", [0, 0.0, 1, 0.25, 1000, 2999, 3000, 9999])
def test_counts_what_lies_after_the_warmup(trace: Trace, unit: str, warmup: float) -> None:
    cold = simulate(trace, "lru", 40, unit=unit)
    result = simulate(trace, "lru", 40, unit=unit, warmup=warmup)
    np.testing.assert_array_equal(result.hit, cold.hit)  # what comes before is replayed
    cut = int(3000 * warmup) if isinstance(warmup, float) else min(warmup, 3000)
    assert result.warmup == cut
    assert result.requests == 3000 - cut
    assert result.total_requests == 3000
    assert result.hits == sum(cold.hit.tolist()[cut:])
    assert result.misses == result.requests - result.hits
    sizes = [max(int(size), 1) for size in trace.sizes[cut:]]
    assert result.bytes == sum(sizes)
    assert result.hit_bytes == sum(s for s, h in zip(sizes, cold.hit[cut:], strict=True) if h)
    if result.requests:
        assert result.object_miss_ratio == result.misses / result.requests
        assert result.byte_miss_ratio == (result.bytes - result.hit_bytes) / result.bytes
    else:
        assert np.isnan([result.object_miss_ratio, result.byte_miss_ratio, result.mean_latency(1, 10)]).all()


def test_unit_decides_whether_sizes_fill_the_cache() -> None:
    trace = Trace.from_keys([1, 2, 1, 2], sizes=[6, 6, 6, 6])
    assert simulate(trace, "lru", 10).hits == 2
    assert simulate(trace, "lru", 10, unit="bytes").hits == 0
    assert simulate(trace, "lru", 12, unit="bytes").hits == 2


def test_without_sizes_an_object_is_one_byte() -> None:
    trace = Trace.from_keys(zipf_mix(500, 40))
    in_bytes = simulate(trace, "lru", 10, unit="bytes")
    np.testing.assert_array_equal(in_bytes.hit, simulate(trace, "lru", 10).hit)
    assert in_bytes.byte_miss_ratio == in_bytes.object_miss_ratio


def test_object_larger_than_the_cache_changes_nothing() -> None:
    small = [1, 2, 1, 2, 1]
    with_giant = [1, 2, 9, 1, 2, 9, 1]
    sizes = [11 if key == 9 else 5 for key in with_giant]
    result = simulate(Trace.from_keys(with_giant, sizes=sizes), "lru", 10, unit="bytes")
    assert result.hit.tolist() == [0, 0, 0, 1, 1, 0, 1]
    without = simulate(Trace.from_keys(small, sizes=[5] * 5), "lru", 10, unit="bytes")
    assert result.hits == without.hits
    assert result.bytes == 5 * 5 + 2 * 11
    assert simulate(Trace.from_keys([9, 9], sizes=[11, 11]), "lru", 10, unit="bytes").hits == 0


@pytest.mark.parametrize("name", ["lru", "belady", "hyperbolic"])
def test_empty_trace(name: str) -> None:
    result = simulate(Trace.from_keys([]), name, 10, warmup=0.5)
    assert (result.requests, result.hits, result.bytes) == (0, 0, 0)
    assert np.isnan(result.object_miss_ratio)
    assert result.series().requests.size == 0


def test_capacity_beyond_all_keys_costs_no_memory() -> None:
    trace = Trace.from_keys([1, 2, 1], sizes=[10, 10, 10])
    assert simulate(trace, "lru", 10**15).misses == 2
    assert simulate(trace, "lru", 10**15, unit="bytes").misses == 2


def test_seed_reaches_the_policy(trace: Trace) -> None:
    one, again, other = (simulate(trace, policy("hyperbolic", samples=2), 20, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.hit, again.hit)
    assert (one.hit != other.hit).any()
    assert other.seed == 2


def test_oracles_get_the_next_use_and_others_the_cost() -> None:
    keys = [1, 2, 3, 1, 2, 3, 1, 2, 3]
    cost = [100.0 if key == 3 else 1.0 for key in keys]
    assert simulate(Trace.from_keys(keys, cost=cost), "belady", 2).misses == optimal_misses(keys, 2)
    hit = simulate(Trace.from_keys(keys, cost=cost), "gdsf", 2).hit
    assert hit[5] == hit[8] == 1  # the dear one stays


@pytest.mark.parametrize(
    ("capacity", "message"),
    [
        (0, "at least 1"),
        (-3, "at least 1"),
        (0.1, "Trace.capacity"),
        (2.5, "whole number"),
        ("10", "whole number"),
        (None, "whole number"),
        (float("nan"), "whole number"),
        (float("inf"), "whole number"),
    ],
)
def test_refuses_capacities(trace: Trace, capacity: object, message: str) -> None:
    with pytest.raises(KvpredictError, match=message):
        simulate(trace, "lru", capacity)  # type: ignore[arg-type]


def test_takes_whole_capacities_of_any_type(trace: Trace) -> None:
    assert simulate(trace, "lru", 10.0).hits == simulate(trace, "lru", np.int32(10)).hits  # type: ignore[arg-type]


def test_refuses_bad_arguments(trace: Trace) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'lru'"):
        simulate(trace, "lruu", 10)
    with pytest.raises(UnknownName, match="objects"):
        simulate(trace, "lru", 10, unit="object")
    with pytest.raises(KvpredictError, match="expected a Trace, got list"):
        simulate([1, 2], "lru", 10)  # type: ignore[arg-type]
    with pytest.raises(KvpredictError, match="policy must be a policy's name, folder or object, got int"):
        simulate(trace, 7, 10)  # type: ignore[arg-type]
    for warmup in (-1, float("nan")):
        with pytest.raises(TraceError, match="cannot split at"):
            simulate(trace, "lru", 10, warmup=warmup)


# --- latency ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [0, 0.5])
def test_mean_latency_is_the_mean_over_requests(trace: Trace, warmup: float) -> None:
    result = simulate(trace, "lru", 30, warmup=warmup)
    cut = result.warmup
    hit = result.hit[cut:]
    one_by_one = [2.0 if h else 50.0 for h in hit]
    assert result.mean_latency(2.0, 50.0) == pytest.approx(np.mean(one_by_one))
    own = [2.0 if h else c for h, c in zip(hit, trace.columns["cost"][cut:], strict=True)]
    assert result.mean_latency(2.0) == pytest.approx(np.mean(own))
    assert result.mean_latency(2.0, trace.columns["cost"]) == pytest.approx(np.mean(own))
    assert result.summary().mean_latency(2.0) == result.mean_latency(2.0)


def test_mean_latency_refuses_what_does_not_fit(trace: Trace) -> None:
    result = simulate(Trace.from_keys([1, 2, 1]), "lru", 2)
    with pytest.raises(KvpredictError, match="no column 'cost'"):
        result.mean_latency(1.0)
    with pytest.raises(KvpredictError, match=r"shape \(2,\)"):
        result.mean_latency(1.0, np.array([1.0, 2.0]))
    with pytest.raises(KvpredictError, match="keep_hits"):
        result.summary().mean_latency(1.0, np.array([1.0, 2.0, 3.0]))
    assert result.mean_latency(1.0, 4.0) == 3.0


# --- windows ---------------------------------------------------------------------------------------------------------


@THOROUGH
@given(st.integers(0, 60), st.integers(1, 70), st.integers(0, 70), st.booleans())
def test_series_equals_counting_each_window(n: int, windows: int, warmup: int, sized: bool) -> None:
    keys = zipf_mix(n, 9, seed=n) if n else []
    trace = Trace.from_keys(keys, sizes=np.arange(n) % 5 if sized else None)
    result = simulate(trace, "lru", 3, warmup=warmup)
    series = result.series(windows)
    assert series.requests.sum() == result.requests
    assert series.requests.size == min(windows, result.requests)
    assert series.requests.size == 0 or series.requests.max() - series.requests.min() <= 1
    for i, start in enumerate(series.start):
        part = slice(int(start), int(start + series.requests[i]))
        missed = result.hit[part] == 0
        assert series.object_miss_ratio[i] == pytest.approx(missed.mean())
        weights = np.maximum(trace.sizes[part], 1) if trace.sizes is not None else np.ones(missed.size)
        assert series.byte_miss_ratio[i] == pytest.approx((missed * weights).sum() / weights.sum())
    assert np.all(np.diff(np.append(series.start, n)) == series.requests)


def test_series_needs_the_record_of_each_request(trace: Trace) -> None:
    result = simulate(trace, "lru", 10)
    with pytest.raises(KvpredictError, match="windows must be at least 1"):
        result.series(0)
    with pytest.raises(KvpredictError, match="keep_hits=True"):
        result.summary().series()


@pytest.mark.parametrize("seed", [None, "a", 1.5])
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    with pytest.raises(KvpredictError, match="seed must be a whole number"):
        simulate(Trace.from_keys([1, 2, 3]), "random", 2, seed=seed)


def test_row_and_speed(trace: Trace) -> None:
    result = simulate(trace, "lru", 10)
    row = result.as_row()
    assert row["policy"] == "lru"
    assert row["hits"] == result.hits
    assert row["requests_per_second"] == result.total_requests / result.seconds > 0
    assert Result("x", 1, "objects", 0, 0, 0, 0, 0, 0.0).requests_per_second == float("inf")


@pytest.mark.parametrize("cost", [np.nan, np.inf, -1.0, 1e200])
def test_a_cost_that_is_no_cost_is_refused(cost: float) -> None:
    trace = Trace.from_keys([1, 2, 1, 3], cost=[1.0, 2.0, cost, 0.0])
    message = r"'cost' must hold finite numbers.*; 1 are not.*request 2: " + re.escape(str(cost))
    with pytest.raises(KvpredictError, match=message):
        simulate(trace, "gdsf", 2)


@pytest.mark.parametrize("cell", ["n/a", "inf", "$100"])
def test_costs_that_were_read_as_text_are_refused(cell: str, tmp_path: Path) -> None:
    (tmp_path / "some.csv").write_text(f"key,cost\n1,100\n2,200\n3,{cell}\n1,100\n2,200\n")
    trace = read_trace(tmp_path / "some.csv")
    with pytest.raises(KvpredictError, match="read as text") as refusal:
        simulate(trace, "lru", 1)
    assert repr(cell) in str(refusal.value)
