"""Workloads: found by name, checked, the same for the same seed, and with the property that each advertises."""

import re
import time
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import kvpredict.trace.workloads as workloads
from kvpredict.core.errors import UnknownName
from kvpredict.simulate import simulate
from kvpredict.trace.workloads import workload, workload_class, workload_names
from kvpredict.trace.workloads._base import WorkloadError
from kvpredict.trace.workloads._draw import DAY

CONF = Path(workloads.__file__).parents[2] / "conf" / "workload"
SMALL = {  # parameters that keep each property at a size that tests can afford
    "zipf": {"requests": 200_000, "objects": 20_000},
    "scans": {"requests": 100_000, "objects": 5_000, "table": 50_000, "scan_length": 5_000},
    "loops": {"requests": 100_000, "loop_length": 2_000, "objects": 1_000},
    "drift": {"requests": 200_000, "objects": 20_000, "life": 100.0},
    "one_hit_wonders": {"requests": 100_000, "objects": 6_000},
    "diurnal": {"requests": 200_000, "objects": 20_000},
    "online_shop": {"requests": 200_000, "products": 5_000, "customers": 10_000},
    "course_platform": {"requests": 200_000, "courses": 50},
    "payments": {"requests": 200_000, "cards": 20_000, "accounts": 15_000, "merchants": 1_000},
}


@pytest.fixture(scope="module")
def traces():
    return {name: workload(name, **SMALL[name]).generate(1) for name in workload_names()}


def kind(trace, name):
    """Return which requests are for objects of a kind."""
    return trace.columns["kind"] == trace.categories["kind"].index(name)


def op(trace, name):
    return trace.columns["op"] == trace.categories["op"].index(name)


def shares(times, width, span):
    return np.histogram(times, np.arange(0, span + width, width))[0]


def test_every_workload_is_known_here():
    assert set(SMALL) == set(workload_names())


def test_unknown_names_get_the_nearest():
    with pytest.raises(UnknownName, match="'online_shop'"):
        workload("onlineshop")
    with pytest.raises(UnknownName, match="'alpha'"):
        workload("zipf", alhpa=1.0)


@pytest.mark.parametrize("name", workload_names())
class TestEvery:
    def test_seed(self, name, traces):
        again = workload(name, **SMALL[name]).generate(1)
        other = workload(name, **SMALL[name]).generate(2)
        assert again.fingerprint == traces[name].fingerprint
        assert other.fingerprint != again.fingerprint

    def test_shape(self, name, traces):
        trace = traces[name]
        assert len(trace) == SMALL[name]["requests"]
        assert trace.times[0] >= 0
        assert trace.name == name
        assert trace.info["seed"] == 1
        assert trace.info["requests"] == len(trace)
        for column, texts in trace.categories.items():
            codes = trace.columns[column]
            assert codes.min() >= 0
            assert codes.max() < len(texts)
        if trace.sizes is not None:
            assert trace.sizes.min() >= 1
            # An object has one size.
            first = np.zeros(trace.unique, np.int64)
            first[trace.ids[::-1]] = trace.sizes[::-1]
            assert np.array_equal(first[trace.ids], trace.sizes)

    def test_yaml_lists_every_parameter_with_its_default_and_a_comment(self, name):
        text = (CONF / f"{name}.yaml").read_text()
        assert yaml.safe_load(text) == {"name": name, **workload(name).params()}
        for line in text.splitlines()[2:]:
            assert "  # " in line, line

    def test_parameters_are_documented(self, name):
        document = workload_class(name).__doc__
        for f in fields(workload_class(name)):
            default = re.search(rf"^    {f.name} : {f.type.__name__}, default ([\d_.]+)$", document, re.MULTILINE)
            assert default, f.name
            assert float(default[1]) == f.default

    def test_bounds_hold(self, name):
        for f in fields(workload_class(name)):
            low, high = f.metadata["low"], f.metadata["high"]
            assert low <= f.default <= high
            wrong = [low - 1, "many", None, True, float("nan"), float("inf")]
            wrong += [high + 1] if np.isfinite(high) else []
            wrong += [f.default + 0.5] if f.type is int else []
            for value in wrong:
                with pytest.raises(WorkloadError, match=rf"{name}.*{f.name} must be"):
                    workload(name, **{f.name: value})

    def test_a_count_from_yaml_may_be_written_as_a_float(self, name):
        made = workload(name, **{**SMALL[name], "requests": 1e5})
        assert made.requests == 100_000
        assert type(made.requests) is int


@pytest.mark.parametrize("seed", [-1, 1.5, "1", None, True])
def test_bad_seed(seed):
    with pytest.raises(WorkloadError, match="seed"):
        workload("zipf").generate(seed)


def test_parameters_that_contradict():
    with pytest.raises(WorkloadError, match="scan_length must be at most the table's 10"):
        workload("scans", table=10, scan_length=11)
    with pytest.raises(WorkloadError, match="requests must be at least 500"):
        workload("one_hit_wonders", requests=499, objects=100, one_hit_ratio=0.75)
    with pytest.raises(WorkloadError, match="cohort_weeks must be at most"):
        workload("course_platform", course_weeks=3)
    with pytest.raises(WorkloadError, match="objects must be more than"):
        workload("diurnal", objects=3)


def params_of(name):
    """Draw small parameters of a workload, the edges of their ranges among them."""
    drawn = {"requests": st.integers(1, 400)}
    for f in fields(workload_class(name)):
        low, high = f.metadata["low"], min(f.metadata["high"], 60)
        if f.name == "requests":
            continue
        drawn[f.name] = st.integers(int(low), int(high)) if f.type is int else st.floats(low, high)
    return st.fixed_dictionaries(drawn)


@pytest.mark.parametrize("name", workload_names())
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), seed=st.integers(0, 2**40))
def test_any_parameters_make_a_valid_trace_or_one_clear_error(name, data, seed):
    params = data.draw(params_of(name))
    try:
        made = workload(name, **params)
    except WorkloadError as error:
        assert name in str(error)  # noqa: PT017
        return
    trace = made.generate(seed)
    assert len(trace) == params["requests"]
    assert trace.fingerprint == made.generate(seed).fingerprint


@pytest.mark.parametrize("name", workload_names())
def test_a_million_requests_in_two_seconds_of_work(name):
    best = float("inf")
    for seed in range(2):
        started = time.process_time()
        assert len(workload(name).generate(seed)) == 1_000_000
        best = min(best, time.process_time() - started)
    assert best < 2


class TestZipf:
    @pytest.mark.parametrize("alpha", [0.6, 1.0, 1.4])
    def test_slope(self, alpha):
        trace = workload("zipf", requests=500_000, objects=10_000, alpha=alpha).generate(3)
        counts = np.sort(np.bincount(trace.ids))[::-1][:200]
        slope = np.polyfit(np.log(np.arange(1, 201)), np.log(counts), 1)[0]
        assert slope == pytest.approx(-alpha, abs=0.06)

    def test_alpha_zero_is_uniform(self):
        counts = np.bincount(workload("zipf", requests=100_000, objects=100, alpha=0).generate(0).ids)
        assert np.abs(counts - 1000).max() < 6 * np.sqrt(1000)

    def test_arrivals_are_poisson(self, traces):
        gaps = np.diff(traces["zipf"].times)
        assert gaps.mean() == pytest.approx(1e-3, rel=0.02)
        assert gaps.std() == pytest.approx(gaps.mean(), rel=0.02)

    def test_a_key_does_not_tell_its_rank(self, traces):
        counts = np.bincount(traces["zipf"].keys, minlength=20_000)
        assert abs(np.corrcoef(np.arange(20_000), counts)[0, 1]) < 0.05

    def test_sizes(self):
        trace = workload("zipf", requests=100_000, objects=50_000, alpha=0, size_median=1000, size_sigma=1).generate(0)
        assert np.median(trace.sizes) == pytest.approx(1000, rel=0.05)
        assert np.log(trace.sizes).std() == pytest.approx(1, abs=0.03)


def test_scans_are_sequential_and_hurt_lru(traces):
    trace = traces["scans"]
    scanned = op(trace, "scan")
    assert scanned.sum() == 30_000
    steps = np.diff(trace.keys[scanned])
    assert np.count_nonzero(steps != 1) <= 5  # six scans
    assert trace.keys[scanned].max() < 50_000 <= trace.keys[~scanned].min()
    # What scans cost: misses of the look-ups beyond those without scans.
    quiet = workload("scans", **{**SMALL["scans"], "scan_share": 0.0}).generate(1)
    loss = {}
    for policy in ("lru", "s3fifo"):
        missed = simulate(trace, policy, 1000).hit[~scanned] == 0
        loss[policy] = missed.mean() - simulate(quiet, policy, 1000).object_miss_ratio
    assert loss["lru"] > 0.005
    assert loss["s3fifo"] < 0.5 * loss["lru"]


def test_loops_defeat_lru_and_not_belady(traces):
    trace = workload("loops", **{**SMALL["loops"], "loops": 1, "lookup_share": 0.0}).generate(1)
    ratio = {p: simulate(trace, p, 1000).object_miss_ratio for p in ("lru", "lirs", "belady")}
    assert ratio["lru"] == 1.0
    assert ratio["belady"] < 0.6
    assert ratio["lirs"] < 0.7
    looked = op(traces["loops"], "get")
    assert looked.mean() == pytest.approx(0.1, abs=0.01)


def test_drift_moves_the_working_set(traces):
    trace = traces["drift"]
    parts = np.array_split(trace.ids, 20)
    top = [set(np.argsort(-np.bincount(p, minlength=trace.unique))[:100].tolist()) for p in parts]
    neighbours = np.mean([len(a & b) for a, b in pairwise(top)])
    assert neighbours > 30
    assert len(top[0] & top[-1]) < 5
    stable = workload("drift", **{**SMALL["drift"], "life": 1e6}).generate(1)
    parts = np.array_split(stable.ids, 20)
    top = [set(np.argsort(-np.bincount(p, minlength=stable.unique))[:100].tolist()) for p in parts]
    assert len(top[0] & top[-1]) > 50


def test_drift_fades_exponentially():
    # One object, born before the end: its ages are exponential with the mean life (or cut by the window).
    trace = workload("drift", requests=50_000, objects=1, alpha=0, rate=1.0, life=500.0).generate(4)
    ages = trace.times - trace.times[0]
    assert ages.mean() == pytest.approx(500, rel=0.03)
    assert np.median(ages) == pytest.approx(500 * np.log(2), rel=0.04)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.9])
def test_one_hit_wonders_share_is_exact(ratio):
    trace = workload("one_hit_wonders", requests=100_000, objects=3_000, one_hit_ratio=ratio).generate(0)
    counts = np.bincount(trace.ids)
    assert np.mean(counts == 1) == pytest.approx(ratio, abs=1e-3)


def test_diurnal_has_a_period_of_a_day(traces):
    trace = traces["diurnal"]
    hourly = shares(trace.times, 3600, 7 * DAY)[: 7 * 24]
    spectrum = np.abs(np.fft.rfft(hourly - hourly.mean()))
    assert np.argmax(spectrum) == 7  # seven periods in seven days
    assert hourly[:24].max() > 2 * hourly[:24].min()
    for region, peak in ((0, 20), (1, 2), (2, 8)):
        mine = trace.times[trace.columns["region"] == region]
        by_hour = np.bincount((mine // 3600).astype(int) % 24, minlength=24)
        angle = np.angle((by_hour * np.exp(2j * np.pi * (np.arange(24) + 0.5) / 24)).sum()) * 24 / (2 * np.pi)
        assert (angle - peak + 12) % 24 - 12 == pytest.approx(0, abs=0.5)


class TestOnlineShop:
    def test_sessions(self, traces):
        trace = traces["online_shop"]
        assert kind(trace, "product").sum() == pytest.approx(kind(trace, "image").sum(), rel=1e-3)
        assert kind(trace, "product").sum() / kind(trace, "category").sum() == pytest.approx(5, rel=0.05)
        written = kind(trace, "cart") & op(trace, "put")
        assert written.sum() / kind(trace, "product").sum() == pytest.approx(0.1, rel=0.05)
        # A checkout reads a cart that was written before.
        carts = trace.ids[written]
        read = trace.ids[kind(trace, "cart") & op(trace, "get")]
        assert read.size > 0
        assert np.isin(read, carts).all()

    def test_campaigns(self):
        params = {**SMALL["online_shop"], "amplitude": 0.0, "campaigns": 1, "novelty_share": 0.0}
        trace = workload("online_shop", **params).generate(5)
        hourly = shares(trace.times, 3600, 14 * DAY)
        peak = np.argmax(np.convolve(hourly, np.ones(4), "valid"))
        assert hourly[peak : peak + 4].mean() / np.median(hourly) == pytest.approx(4, rel=0.15)
        viewed = kind(trace, "product")
        during = viewed & (trace.times > peak * 3600) & (trace.times < (peak + 4) * 3600)
        inside, outside = (
            np.bincount(trace.ids[part], minlength=trace.unique) / part.sum() for part in (during, viewed & ~during)
        )
        risen = np.sort(inside - outside)[::-1]
        assert risen[:40].sum() == pytest.approx(0.5, abs=0.06)
        assert risen[39] > 2 * risen[40]

    def test_new_products_are_unknown_before_and_novel_after(self, traces):
        trace = traces["online_shop"]
        seen = kind(trace, "product")
        first = np.full(trace.unique, -1.0)
        first[trace.ids[seen][::-1]] = trace.times[seen][::-1]
        launched = np.flatnonzero(first > 5 * DAY)  # mostly new ones
        ages = np.concatenate([trace.times[seen & (trace.ids == i)] - first[i] for i in launched[:300]])
        assert np.mean(ages < DAY) > 0.2  # of up to nine days

    def test_sizes_differ_by_kind(self, traces):
        trace = traces["online_shop"]
        assert np.median(trace.sizes[kind(trace, "image")]) > 10 * np.median(trace.sizes[kind(trace, "product")])


class TestCoursePlatform:
    def test_videos_are_read_in_order_and_often_left(self, traces):
        trace = traces["course_platform"]
        base = trace.keys[kind(trace, "page")].max() + 1  # not the videos' own base, but never above it
        video = trace.keys[kind(trace, "video")]
        assert video.min() >= base
        offset = 50 * 6 * 3
        place = (video - offset) % 15
        seen = np.bincount(place, minlength=15)
        assert (np.diff(seen) < 0).all()
        assert seen[-1] / seen[0] == pytest.approx(0.5 + 0.5 / 15, abs=0.03)

    def test_deadline_rush(self, traces):
        trace = traces["course_platform"]
        left = 7 * DAY - trace.times[kind(trace, "assignment")] % (7 * DAY)
        assert np.mean(left < DAY) == pytest.approx(1 - np.exp(-2.4), abs=0.02)
        handed_in = 7 * DAY - trace.times[kind(trace, "submission")] % (7 * DAY)
        assert np.median(handed_in) < np.median(left)

    def test_cohorts_come_back_after_their_weeks(self):
        trace = workload("course_platform", requests=100_000, courses=1, retention=1.0, rush_hours=1.0).generate(0)
        week = (trace.times // (7 * DAY)).astype(int)
        pages = [set(trace.ids[(week == w) & kind(trace, "page")].tolist()) for w in range(12)]
        for w in range(6):
            assert pages[w] == pages[w + 4]
            assert not pages[w] & pages[w + 1]

    def test_large_videos_small_pages(self, traces):
        trace = traces["course_platform"]
        assert np.median(trace.sizes[kind(trace, "video")]) > 50 * np.median(trace.sizes[kind(trace, "page")])
        assert trace.columns["tenant"].max() < 50


class TestPayments:
    def test_payday(self):
        params = {**SMALL["payments"], "amplitude": 0.0, "bursts": 0, "scan_share": 0.0}
        trace = workload("payments", **params).generate(0)
        daily = shares(trace.times, DAY, 35 * DAY)
        for payday in (7, 21):
            assert daily[payday] / daily[payday - 1] == pytest.approx(1 + 2 * 0.787, rel=0.1)
        assert daily[12] < 0.5 * daily[7]

    def test_balances_are_read_fresh_and_written(self, traces):
        trace = traces["payments"]
        assert set(np.unique(trace.columns["kind"][op(trace, "get_fresh")])) == {2}
        assert set(np.unique(trace.columns["kind"][op(trace, "put")])) == {2}
        paid = kind(trace, "merchant").sum()
        assert op(trace, "put").sum() / paid == pytest.approx(0.96, abs=0.01)
        assert paid / op(trace, "get_fresh").sum() == pytest.approx(0.7, abs=0.01)

    def test_fraud_scans_go_on_where_the_last_ended(self, traces):
        trace = traces["payments"]
        scanned = op(trace, "scan")
        assert scanned.sum() == 30_000
        assert np.array_equal(trace.keys[scanned], np.arange(30_000) % 20_000)

    def test_bursts(self):
        params = {**SMALL["payments"], "bursts": 1, "burst_share": 0.2, "scan_share": 0.0, "amplitude": 0.0}
        trace = workload("payments", **params).generate(1)
        minutes = shares(trace.times, 60, 35 * DAY)
        busy = np.argmax(np.convolve(minutes, np.ones(10), "valid"))
        inside = (trace.times >= busy * 60) & (trace.times < (busy + 10) * 60) & kind(trace, "merchant")
        assert inside.sum() > 0.15 * kind(trace, "merchant").sum()
        assert np.bincount(trace.ids[inside]).max() > 0.95 * inside.sum()
