"""Sweeps, miss-ratio curves and the gap that a policy closes."""

import threading

import numpy as np
import pytest
from hypothesis import given

from kvpredict.core.errors import KvpredictError, TraceError, UnknownName
from kvpredict.policies import policy
from kvpredict.simulate import gap_closed, miss_ratio_curve, reuse_distances, simulate, sweep
from kvpredict.simulate.progress import Progress
from kvpredict.trace import Trace
from tests.strategies import THOROUGH, Sequence, sequences, zipf_mix


@pytest.fixture(scope="module")
def trace() -> Trace:
    keys = zipf_mix(4000, 200, seed=6)
    return Trace.from_keys(keys, sizes=1 + keys % 13, cost=1.0 + keys % 3)


@pytest.mark.parametrize("jobs", [1, 3, None])
def test_cells_equal_single_simulations_in_order(trace: Trace, jobs: int | None) -> None:
    policies = ["lru", policy("hyperbolic", samples=5), "belady"]
    results = sweep(trace, policies, [5, 40, 0.25], warmup=0.5, seed=3, jobs=jobs)
    assert [(r.policy, r.capacity) for r in results] == [
        (name, c) for name in ("lru", "hyperbolic", "belady") for c in (5, 40, trace.capacity(0.25))
    ]
    for result in results:
        made = next(p for p in policies if result.policy == getattr(p, "name", p))
        alone = simulate(trace, made, result.capacity, warmup=0.5, seed=3)
        assert (result.hits, result.bytes, result.hit_bytes) == (alone.hits, alone.bytes, alone.hit_bytes)
        assert result.mean_latency(0.5) == alone.mean_latency(0.5)
        assert result.hit.size == 0
        assert result.sizes is None


def test_bytes_and_fractions_of_the_footprint(trace: Trace) -> None:
    (result,) = sweep(trace, "lru", 0.1, unit="bytes", keep_hits=True)
    assert result.capacity == trace.capacity(0.1, "bytes")
    np.testing.assert_array_equal(result.hit, simulate(trace, "lru", result.capacity, unit="bytes").hit)
    assert result.series(10).requests.sum() == len(trace)


def test_nothing_to_do(trace: Trace) -> None:
    assert sweep(trace, [], [1, 2]) == []
    assert sweep(trace, "lru", []) == []
    assert np.isnan(sweep(Trace.from_keys([]), ["lru", "belady"], 5)[1].object_miss_ratio)


def test_refuses_before_it_starts(trace: Trace) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'lru'"):
        sweep(trace, ["belady", "lruu"], 5)
    with pytest.raises(KvpredictError, match="at least 1"):
        sweep(trace, "lru", [5, 0])
    with pytest.raises(KvpredictError, match="whole number"):
        sweep(trace, "lru", 1.5)
    with pytest.raises(KvpredictError, match="jobs"):
        sweep(trace, "lru", 5, jobs=0)
    with pytest.raises(UnknownName, match="unit"):
        sweep(trace, "lru", 5, unit="kilobytes")


def test_an_error_in_a_run_is_raised_and_leaves_no_thread(trace: Trace) -> None:
    class Needy(type(policy("lru"))):  # type: ignore[misc]
        name = "needy"
        extra = ("tenant",)

    before = threading.active_count()
    with pytest.raises(UnknownName, match="tenant"):
        sweep(trace, ["lru", Needy(), *["lru"] * 20], [5, 10], jobs=2)
    assert threading.active_count() == before


def test_a_pipe_shows_no_bar_and_a_terminal_one_after_a_while(
    trace: Trace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sweep(trace, "lru", [5, 10], progress=True)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    early = Progress(3, None)
    early.update(1)
    assert early._bar is None
    wanted = Progress(3, True)
    wanted.update(1)
    assert wanted._bar is not None
    wanted.close()
    assert wanted._bar is None
    never = Progress(3, False)
    never.update(1)
    assert never._bar is None


# --- curves ----------------------------------------------------------------------------------------------------------


def naive_distances(keys: list[int]) -> list[int]:
    out = []
    for i, key in enumerate(keys):
        earlier = [j for j in range(i) if keys[j] == key]
        out.append(len(set(keys[earlier[-1] + 1 : i])) if earlier else -1)
    return out


@THOROUGH
@given(sequences(keys=40))
def test_reuse_distances_equal_counting(sequence: Sequence) -> None:
    trace = Trace.from_keys(sequence.keys)
    assert reuse_distances(trace.ids, trace.unique).tolist() == naive_distances(sequence.keys)


def test_reuse_distances_survive_renumbering() -> None:
    # 20 keys make an order of 64 places, which 2,000 requests fill over and over.
    keys = zipf_mix(2000, 20, seed=1) % 20
    trace = Trace.from_keys(keys)
    assert reuse_distances(trace.ids, trace.unique).tolist() == naive_distances(keys.tolist())


@pytest.mark.parametrize("warmup", [0, 0.5, 3999, 4000])
def test_lru_curve_equals_simulation_at_every_size(trace: Trace, warmup: float) -> None:
    capacities = [*range(1, 60), trace.unique - 1, trace.unique, trace.unique + 10, 10**9]
    curve = miss_ratio_curve(trace, "lru", capacities, warmup=warmup)
    assert curve.capacity.tolist() == capacities
    for i, capacity in enumerate(capacities):
        result = simulate(trace, "lru", capacity, warmup=warmup)
        assert curve.requests == result.requests
        np.testing.assert_allclose(curve.object_miss_ratio[i], result.object_miss_ratio, rtol=1e-12)
        np.testing.assert_allclose(curve.byte_miss_ratio[i], result.byte_miss_ratio, rtol=1e-12)


@THOROUGH
@given(sequences())
def test_lru_curve_equals_simulation_on_drawn_sequences(sequence: Sequence) -> None:
    trace = Trace.from_keys(sequence.keys)
    curve = miss_ratio_curve(trace, "lru", range(1, 12))
    missed = [simulate(trace, "lru", c).object_miss_ratio for c in range(1, 12)]
    np.testing.assert_allclose(curve.object_miss_ratio, missed, rtol=1e-12)


@pytest.mark.parametrize("unit", ["objects", "bytes"])
def test_other_curves_are_simulated(trace: Trace, unit: str) -> None:
    curve = miss_ratio_curve(trace, "belady" if unit == "objects" else "lru", points=6, unit=unit)
    assert (np.diff(curve.capacity) > 0).all()
    assert curve.capacity[-1] == (trace.unique if unit == "objects" else trace.footprint)
    for i, capacity in enumerate(curve.capacity.tolist()):
        result = simulate(trace, curve.policy, capacity, unit=unit)
        assert curve.object_miss_ratio[i] == result.object_miss_ratio
        assert curve.byte_miss_ratio[i] == result.byte_miss_ratio
    assert curve.object_miss_ratio[-1] == pytest.approx(trace.unique / len(trace))


def test_default_points_cover_the_axis_and_bad_ones_are_refused(trace: Trace) -> None:
    curve = miss_ratio_curve(trace)
    assert curve.capacity[0] == 1
    assert curve.capacity[-1] == trace.unique
    assert 10 < curve.capacity.size <= 30
    assert (np.diff(curve.object_miss_ratio) <= 0).all()
    with pytest.raises(KvpredictError, match="points"):
        miss_ratio_curve(trace, points=0)
    with pytest.raises(TraceError, match="cannot split"):
        miss_ratio_curve(trace, warmup=-1)


def test_a_curve_of_requests_is_refused() -> None:
    from kvpredict.llm.workloads import generate_requests

    with pytest.raises(KvpredictError, match="expected a Trace, got RequestTrace"):
        miss_ratio_curve(generate_requests("chat", requests=5))  # type: ignore[arg-type]


def test_curves_of_an_empty_trace_are_nan() -> None:
    empty = Trace.from_keys([])
    for name in ("lru", "belady"):
        curve = miss_ratio_curve(empty, name, [1, 2])
        assert curve.requests == 0
        assert np.isnan(curve.object_miss_ratio).all()
        assert np.isnan(curve.byte_miss_ratio).all()


def test_gap_closed(trace: Trace) -> None:
    assert gap_closed(0.6, 0.6, 0.2) == 0
    assert gap_closed(0.6, 0.2, 0.2) == 1
    assert gap_closed(0.6, 0.8, 0.2) == -0.5
    assert np.isnan(gap_closed(0.3, 0.2, 0.3))
    lru, popularity, belady = sweep(trace, ["lru", "popularity", "belady"], 20)
    expected = (lru.misses - popularity.misses) / (lru.misses - belady.misses)
    assert gap_closed(lru, popularity, belady) == pytest.approx(expected)
