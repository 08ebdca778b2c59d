"""Guarded: follows its leader exactly, changes it when another misses less, learns where something can be learned."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvpredict import KvpredictError, UnknownName, load_policy
from kvpredict.core.arithmetic import exponential
from kvpredict.core.engine import HIT, bind, make_host
from kvpredict.core.objective import worth
from kvpredict.core.random import below
from kvpredict.features.facts import FACTS, LAST
from kvpredict.features.history import MISSED
from kvpredict.policies import policy
from kvpredict.policies.guarded import policy as guarded_policy
from kvpredict.policies.guarded.contests import by_last_access
from kvpredict.policies.guarded.guard import look_back
from kvpredict.policies.guarded.kernels import ROOMY, number, penalty, reprieve, take_highest
from kvpredict.policies.guarded.learning import FIRST_FIT, FREE, OLD, PER_FIT, SETTLED, draw_ahead, draw_anew
from kvpredict.policies.guarded.state import (
    AHEAD,
    BEGUN,
    FITS,
    INHERITED,
    LAMBDA,
    LEADER,
    LOST,
    NEXT_FIT,
    SAMPLED,
    SWITCHES,
    State,
)
from kvpredict.simulate import simulate
from kvpredict.simulate.simulate import replay_arguments
from kvpredict.trace import Trace
from tests.contracts.driver import DictHost
from tests.strategies import zipf_mix


def run(trace: Trace, capacity: int, **params: object) -> tuple[np.ndarray, State]:
    """Return hits, and the state afterwards."""
    made = policy("guarded", **{"sized_leaders": "", **params})
    _, slots, columns = replay_arguments(trace, made, capacity, "objects")
    state, host, outcome = made.state(capacity, 0, slots), make_host(capacity, slots), np.empty(len(trace), np.uint8)
    bind(made).replay(state, host, trace.ids, trace.keys, *columns, np.full(trace.unique, -1, np.int32), outcome)
    return (outcome == HIT).astype(np.uint8), state


@pytest.mark.parametrize("unit", ["objects", "bytes"])
@pytest.mark.parametrize(
    ("leader", "sample"), [("lru", 1.0), ("s3fifo", 1.0), ("arc", 1.0), ("sieve", 1.0), ("lirs", 1.0), ("arc", 0.2)]
)
def test_with_lambda_at_its_maximum_it_is_its_leader(leader: str, sample: float, unit: str) -> None:
    keys = zipf_mix(6000, 400, seed=5)
    trace = Trace(keys, sizes=np.random.default_rng(0).integers(1, 20, keys.max() + 1)[keys])
    capacity = trace.capacity(0.1, unit)
    # A history that never forgets: a leader that loses an object to a full history is not its former self.
    made = policy("guarded", leaders=leader, sized_leaders="", learn=False, history=16.0, sample=sample)
    followed = simulate(trace, made, capacity, unit=unit).hit
    np.testing.assert_array_equal(followed, simulate(trace, leader, capacity, unit=unit).hit)


@pytest.mark.parametrize("sample", [1.0, 0.25])
def test_the_leader_changes_with_the_workload(sample: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded_policy, "FEWEST_SLOTS", 100)
    rng = np.random.default_rng(1)
    steady = np.minimum(rng.zipf(1.1, 20_000), 3000)  # LFU's best
    drift = 10_000 + np.arange(10_000) // 6 + rng.integers(0, 80, 10_000)  # and its worst
    trace = Trace.from_keys(np.concatenate([steady[:10_000], drift, steady[10_000:]]))
    hit, state = run(trace, 150, leaders="lru+lfu", learn=False, sample=sample)
    alone = {name: simulate(trace, name, 150).hit for name in ("lru", "lfu")}
    parts = [slice(0, 10_000), slice(10_000, 20_000), slice(20_000, None)]
    for part, best in zip(parts, ("lfu", "lru", "lfu"), strict=True):
        assert hit[part].sum() > 0.85 * alone[best][part].sum(), best
    assert state.core.word[SWITCHES] >= 2
    assert hit.sum() > max(alone["lru"].sum(), alone["lfu"].sum())


def test_a_sample_estimates_what_leaders_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded_policy, "FEWEST_SLOTS", 64)
    rng = np.random.default_rng(4)
    keys = rng.permutation(20_000)[np.minimum(rng.zipf(1.05, 60_000) - 1, 19_999)] + 2**40
    names = ["lru", "s3fifo", "fifo"]
    _, state = run(Trace.from_keys(keys), 1500, leaders="+".join(names), learn=False, memory=1e9, sample=0.25)
    assert state.core.level[SAMPLED] == 0.25
    for k, name in enumerate(names):
        assert state.core.slow[k] == pytest.approx(simulate(Trace.from_keys(keys), name, 1500).misses, rel=0.05), name


@pytest.mark.parametrize("unit", ["objects", "bytes"])
def test_on_a_sample_invariants_hold_through_changes_of_the_leader(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded_policy, "FEWEST_SLOTS", 8)
    made = policy("guarded", leaders="lru+lfu+s3fifo", sized_leaders="gdsf", samples=1000, memory=0.5, sample=0.3)
    rng = np.random.default_rng(1)
    host = DictHost(made, 24 if unit == "objects" else 120, 24)
    keys = np.concatenate([rng.zipf(1.3, 2000) % 90, 100 + np.arange(2000) // 6 + rng.integers(0, 9, 2000)] * 2)
    for i, key in enumerate(keys.tolist()):
        host.access(key, 1 + key % 7 if unit == "bytes" else 1, float(i))
        if rng.random() < 0.05 and host.key_of:
            host.delete(host.key_of[int(rng.choice(host.resident()))])
        if i % 10 == 0:
            host.validate()
    assert host.state.core.word[SWITCHES] >= 2


SAMPLED_RUN = """
import numpy as np
from kvpredict.policies import policy
from kvpredict.policies.guarded import policy as guarded_policy
from kvpredict.simulate import simulate
from kvpredict.trace import Trace

guarded_policy.FEWEST_SLOTS = 8
rng = np.random.default_rng(1)
keys = np.concatenate([rng.zipf(1.3, 1500) % 90, 100 + np.arange(1500) // 6 + rng.integers(0, 9, 1500)])
made = policy("guarded", leaders="lru+lfu", sized_leaders="", samples=1000, memory=0.5, sample=0.3)
result = simulate(Trace.from_keys(keys), made, 24)
print(result.account["counts"]["leader_changes"], np.packbits(result.hit).tobytes().hex())
"""


def test_on_a_sample_compiled_equals_interpreted() -> None:
    told = [
        subprocess.run(
            [sys.executable, "-c", SAMPLED_RUN], env=os.environ | extra, capture_output=True, text=True, check=True
        ).stdout
        for extra in ({}, {"NUMBA_DISABLE_JIT": "1"})
    ]
    assert told[0] == told[1]
    assert int(told[0].split()[0]) > 0


@given(st.lists(st.integers(0, 50), max_size=60))
@settings(deadline=None, max_examples=30)
def test_entries_are_sorted_by_their_last_access(times: list[int]) -> None:
    fact = np.zeros((len(times), FACTS), np.int64)
    fact[:, LAST] = times
    entries = np.arange(len(times), dtype=np.int32)[::-1].copy()
    by_last_access(entries, len(times), fact.reshape(-1))
    assert sorted(entries.tolist()) == list(range(len(times)))
    assert fact[entries, LAST].tolist() == sorted(times)


@pytest.mark.parametrize("weight", [1e-9, 0.3, 1.0, 7.5, 1e6])
def test_what_a_miss_costs_is_read_from_its_logarithm(weight: float) -> None:
    assert exponential(worth(weight, 4)) * 4 == pytest.approx(weight, rel=1e-5)


def lasting_and_passing(requests: int) -> Trace:
    """Every other request goes round 200 keys, more than the cache can keep by recency; the rest never come back."""
    keys = np.arange(requests) + 10_000
    keys[0::2] = np.arange(requests // 2) % 200
    return Trace.from_keys(keys)


def test_it_learns_what_its_leader_cannot_do() -> None:
    trace = lasting_and_passing(16_000)
    hit, state = run(trace, 150, leaders="lru", samples=1000)
    lru = simulate(trace, "lru", 150).hit
    later = slice(8_000, None)
    assert state.core.word[FITS] >= 3
    assert hit[later].sum() > 2_000 > 10 * lru[later].sum()


def test_the_guard_keeps_it_near_the_best_leader_where_nothing_can_be_learned() -> None:
    rng = np.random.default_rng(3)
    trace = Trace.from_keys(rng.permutation(5000)[np.minimum(rng.zipf(1.2, 30_000) - 1, 4999)])
    hit, _ = run(trace, 250, leaders="lru+lfu", samples=1000)
    best = min(simulate(trace, name, 250, warmup=0.5).misses for name in ("lru", "lfu"))
    assert (hit[15_000:] == 0).sum() < 1.02 * best
    unguarded, _ = run(trace, 250, leaders="lru+lfu", guard=False, samples=1000)
    assert hit.sum() >= 0.99 * unguarded.sum()


def test_where_all_can_be_learned_the_guard_costs_nothing_from_the_first_model_on() -> None:
    rng = np.random.default_rng(2)
    weights = np.arange(1, 5001) ** -0.7
    trace = Trace.from_keys(rng.choice(5000, 30_000, p=weights / weights.sum()))
    guarded, unguarded = (simulate(trace, policy("guarded", guard=guard), 2000, warmup=0.5) for guard in (True, False))
    series = guarded.account["series"]
    first = series["fits"].index(1)
    assert series["lambda"][first - 1] > 3.0 > series["lambda"][first]
    assert guarded.misses < 1.01 * unguarded.misses


def test_an_heir_has_the_model_and_as_much_trust_in_it() -> None:
    made = policy("guarded", sized_leaders="", samples=1000)
    _, state = run(Trace.from_keys(zipf_mix(20_000, 1000, seed=5)), 200, samples=1000)
    state.core.level[LAMBDA] = 0.25
    heir = made.state(400, 1)
    made.inherit(heir, state)
    assert heir.core.level[LAMBDA] == 0.25
    assert heir.core.word[FITS] == heir.core.word[INHERITED] == state.core.word[FITS] > 0
    assert (heir.model.far.leaf == state.model.far.leaf).all()


def test_a_scan_that_all_miss_is_no_reason_to_leave_the_leader() -> None:
    hot = zipf_mix(20_000, 1000, seed=4)
    trace = Trace.from_keys(np.concatenate([hot, np.arange(20_000) + 10_000, hot]))
    series = simulate(trace, policy("guarded", leaders="lru+s3fifo", samples=1000), 200).account["series"]
    requests = np.array(series["request"])
    before, after = np.array(series["lambda"])[np.searchsorted(requests, [20_000, 39_000])]
    assert after > before - 0.1 > 2.0


def test_what_was_hot_before_a_scan_is_there_after_it() -> None:
    rng = np.random.default_rng(4)
    weights = 1.0 / np.arange(1, 5001) ** 0.9
    hot = rng.choice(5000, 60_000, p=weights / weights.sum())
    trace = Trace.from_keys(np.concatenate([hot[:58_000], np.arange(20_000) + 10_000, hot[58_000:]]))
    best = simulate(trace, "popularity", 250, warmup=78_000).misses
    # With so wide a margin the model decides when the scan begins, and of a scan it knows nothing.
    hit, _ = run(trace, 250, leaders="popularity+lru", margin=0.5, samples=2001)
    assert (hit[78_000:] == 0).sum() < 1.07 * best


def test_lambda_follows_the_misses() -> None:
    trace = Trace.from_keys(zipf_mix(8_000, 1000, seed=2))
    _, state = run(trace, 100, leaders="lru+s3fifo", most=2.0, samples=1000)
    assert 0.0 <= state.core.level[LAMBDA] <= 2.0
    assert state.core.slow[:2].min() == pytest.approx(state.core.slow[state.core.word[LEADER]], rel=2e-4)
    _, free = run(trace, 100, leaders="lru+s3fifo", guard=False, samples=1000)
    assert free.core.level[LAMBDA] == 0.0


def test_what_a_new_leader_missed_before_it_led_is_not_held_against_the_model() -> None:
    """Both shadows and this cache as they stand after a look; in the periods that follow, each misses so many."""
    state = policy("guarded", leaders="lru+lfu", sized_leaders="").state(1000, 0, 1000)
    core = state.core
    core.history.clock[:2] = 50_000, 1000
    core.history.level[MISSED] = 0.5
    core.level[LAMBDA] = 2.0

    def look(lru: int, lfu: int, own: int) -> float:
        core.history.clock[0] += 128
        core.missed[:5] = lru, lfu, own, own, (lru, lfu)[core.word[LEADER]]
        look_back(core, 128)
        return float(core.level[LAMBDA])

    for _ in range(40):
        look(60, 60, 60)
    even = look(60, 60, 60)
    assert core.word[LEADER] == 0
    while core.word[LEADER] == 0:
        assert look(60, 10, 60) <= even  # as many as the leader, many more than the one that will lead
    assert core.fast[1] < 0.95 * core.fast[2]
    assert look(60, 60, 60) < even
    for _ in range(10):
        look(60, 20, 60)
    assert core.level[LAMBDA] > even  # but more than the leader of now


@pytest.mark.parametrize("held", [1000, 40_000])
def test_where_another_leads_the_schedule_of_fits_begins_anew(held: int) -> None:
    """Unless it is young still, or there have been too many fits already."""
    core = policy("guarded", leaders="lru+lfu", sized_leaders="").state(held, 0, held).core
    core.history.clock[:2] = 10_000_000, held
    core.word[NEXT_FIT] = far = 10_400_000

    def change(at: int) -> None:
        core.history.clock[0] = at
        leader = core.word[LEADER]
        core.missed[:5] = [held, held, held, held, held]
        core.missed[1 - leader] = 0
        core.slow[:] = 0.0
        look_back(core, 128)
        assert core.word[LEADER] == 1 - leader

    now = 10_000_000
    core.word[FITS] = FREE + now // PER_FIT
    change(now)
    assert core.word[BEGUN] == now
    assert core.word[NEXT_FIT] == now + max(FIRST_FIT, held // 4) < far
    enough = max(int(SETTLED * held), OLD)
    change(now + enough)
    assert core.word[BEGUN] == now
    change(now + enough + 1)
    assert core.word[BEGUN] == now + enough + 1
    last = now + 2 * enough + 2
    core.word[FITS] = FREE + last // PER_FIT + 1
    change(last)
    assert core.word[BEGUN] == now + enough + 1
    core.word[INHERITED] = 1  # by a cache before a resize, whose clock was another
    change(last)
    assert core.word[BEGUN] == last


def test_after_a_shift_it_is_fitted_to_as_often_as_at_first() -> None:
    weights = np.arange(1, 20_001) ** -0.8
    before = np.random.default_rng(1).choice(20_000, 150_000, p=weights / weights.sum())
    later = np.repeat(np.arange(20_000) + 20_000, 2)
    later[1:-1:2], later[2::2] = later[2::2].copy(), later[1:-1:2].copy()  # each key twice, with another between
    trace = Trace.from_keys(np.concatenate([before, later]))
    made = policy("guarded", leaders="popularity+lru", sized_leaders="", samples=1000)
    series = simulate(trace, made, 2000).account["series"]
    leader, request, fits = (np.array(series[name]) for name in ("leader", "request", "fits"))
    shift = np.searchsorted(request, 150_000)
    assert set(leader[shift - 20 : shift]) == {"popularity"}
    assert fits[shift] <= FREE
    led = shift + np.flatnonzero(leader[shift:] == "lru")[0]

    def fitted(start: int, end: int) -> int:
        start, end = np.searchsorted(request, [start, end])
        return int(fits[end] - fits[start])

    assert fitted(request[led] - 20_000, request[led]) <= 1
    assert fitted(request[led], request[led] + 10_000) >= 3


def test_the_guard_compares_with_the_shadow_that_is_followed() -> None:
    """In caches too small for smaller shadows there are two of full size, of which a new leader's is filled anew."""
    keys = zipf_mix(6_000, 800, seed=2)
    _, full = run(Trace.from_keys(keys), 100, leaders="lru", learn=False)
    assert full.core.fast[3] == full.core.fast[0] == full.core.fast[1] > 0
    _, small = run(Trace.from_keys(keys), 100, leaders="lru+lfu", learn=False, sample=0.5)
    assert small.core.level[SAMPLED] == 1.0
    assert small.core.fast[4] == pytest.approx(small.core.fast[2], rel=0.1)


def ranked(scores: list[float]) -> list[int]:
    rank = np.zeros(len(scores), np.int64)
    number(np.array(scores), rank, len(scores))
    return [int(take_highest(rank, len(scores))) for _ in scores]


@given(st.lists(st.floats(-2000, 2000) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=70))
def test_the_highest_comes_first_and_of_equals_the_first(scores: list[float]) -> None:
    steps = np.floor(np.abs(scores) * 2.0**28) * np.sign(scores)
    assert ranked(scores) == sorted(range(len(scores)), key=lambda i: (-steps[i], i))


def test_however_large_lambda_is_what_the_leader_holds_goes_in_the_models_order() -> None:
    state = policy("guarded", most=1e9).state(100, 0, 100)
    state.core.level[LAMBDA] = 1e8
    scores = np.array([3.0, -20.0, 700.0, 3.25]) - penalty(state.core)
    assert ranked([-50.0, *scores]) == [0, 3, 4, 1, 2]


@pytest.mark.parametrize("held", [60, 80])
def test_who_has_a_reprieve_is_passed_over_when_drawn(held: int) -> None:
    _, state = run(Trace.from_keys(np.arange(80)), 80, leaders="lru")
    c, rng = state.core, np.random.default_rng(0)
    c.resident[:] = rng.permutation(c.resident)
    c.history.clock[1] = held  # the first so many in that order
    c.reprieved[:] = left = rng.integers(0, 3, 80)
    word, drawn = c.word.copy(), list[int]()
    for _ in range(100):
        at = below(word, held)
        if left[at] == 0:
            drawn.append(int(c.resident[at]))
        left[at] = max(left[at] - 1, 0)
    assert draw_anew(c, 5, 100) == 5 + len(drawn)
    assert c.drawn[5 : 5 + len(drawn)].tolist() == drawn
    assert (c.reprieved == left).all()
    assert 0 < len(drawn) < 100


@pytest.mark.parametrize("held", [60, 80])
def test_who_was_drawn_ahead_is_taken_first_if_still_there(held: int) -> None:
    _, state = run(Trace.from_keys(np.arange(80)), 80, leaders="lru")
    c = state.core
    c.resident[:] = np.random.default_rng(0).permutation(c.resident)
    c.reprieved[:] = 0
    c.word[AHEAD] = 0
    word = c.word.copy()
    for _ in range(3):
        draw_ahead(c)
    ahead = c.ahead[: c.word[AHEAD]].copy()
    assert ahead.tolist() == [below(word, 80) for _ in ahead]
    c.history.clock[1] = held  # of 80
    there = [int(at) if at < held else below(word, held) for at in ahead]
    there += [below(word, held) for _ in range(10)]
    assert draw_anew(c, 2, len(there)) == 2 + len(there)
    assert c.drawn[2 : 2 + len(there)].tolist() == c.resident[there].tolist()
    assert c.word[AHEAD] == 0
    for _ in range(100):
        draw_ahead(c)
    assert c.word[AHEAD] == len(c.ahead), "there is no room for more"


@pytest.mark.parametrize("reprieves", [0, 1, 3])
def test_candidates_that_are_kept_and_better_than_the_mean_get_a_reprieve(reprieves: int) -> None:
    _, state = run(Trace.from_keys(np.arange(60)), 60, leaders="lru", reprieves=reprieves)
    c = state.core
    c.reprieved[:] = 9
    c.drawn[:6] = c.resident[[3, 7, 11, 20, 21, 22]]
    c.score[:6] = [5.0, 1.0, 2.0, -1.0, 0.5, 3.0]
    number(c.score, c.rank, 6)
    assert [int(take_highest(c.rank, 6)) for _ in range(2)] == [0, 5]
    reprieve(c, 6)
    expected = np.full(60, 9)
    expected[[3, 7, 11, 20, 21, 22]] = 0
    expected[[7, 20, 21]] = reprieves  # the mean is 1.75
    assert c.reprieved.tolist() == expected.tolist()


@pytest.mark.parametrize("capacity", [ROOMY - 1, ROOMY])
def test_small_caches_score_all_that_are_drawn(capacity: int) -> None:
    keys = zipf_mix(40_000, 8_000, seed=3)
    (some, state), (no, _) = (
        run(Trace.from_keys(keys), capacity, leaders="lru", guard=False, samples=1000, reprieves=r) for r in (1, 0)
    )
    assert state.core.word[FITS] > 0
    assert (some == no).all() == (capacity < ROOMY)


def test_what_a_short_history_costs_is_counted() -> None:
    keys = np.random.default_rng(0).integers(0, 3000, 12_000)
    _, short = run(Trace.from_keys(keys), 100, leaders="lru+s3fifo+lfu", history=2.0, learn=False)
    _, long = run(Trace.from_keys(keys), 100, leaders="lru+s3fifo+lfu", history=31.0, learn=False)
    assert short.core.word[LOST] > 0 == long.core.word[LOST]


def test_leaders_by_size_sleep_until_sizes_differ() -> None:
    keys = zipf_mix(6_000, 800, seed=2)
    _, state = run(Trace.from_keys(keys), 100, leaders="lru+s3fifo", sized_leaders="gdsf", learn=False)
    assert state.core.led[2] == state.core.slow[2] == 0
    sizes = np.where(np.arange(keys.max() + 1) % 3, 1, 60)[keys]
    trace = Trace(keys, sizes=np.where(np.arange(6_000) < 1_000, 1, sizes))
    made = policy("guarded", leaders="lru+s3fifo", sized_leaders="gdsf", learn=False)
    counts = simulate(trace, made, 1000, unit="bytes").account["counts"]
    assert counts["led_gdsf"] > counts["led_lru"]
    assert counts["led_gdsf"] < 6_000 / 128


def test_the_account_tells_who_led_and_when() -> None:
    trace = Trace.from_keys(zipf_mix(400_000, 3000, seed=2))
    account = simulate(trace, policy("guarded", samples=1000), 100).account
    counts, series = account["counts"], account["series"]
    led = {name: count for name, count in counts.items() if name.startswith("led_")}
    assert sum(led.values()) == pytest.approx(400_000 / 128, rel=0.02)
    assert 100 < len(series["request"]) <= 512
    assert {len(values) for values in series.values()} == {len(series["request"])}
    gaps = np.diff(series["request"])
    assert gaps.max() < 3 * np.median(gaps), "evenly spread"
    assert series["request"][-1] > 395_000
    assert {f"led_{name}" for name in series["leader"]} <= {name for name, count in led.items() if count}
    assert counts["fits"] == series["fits"][-1] > 5
    assert 0 <= min(series["lambda"]) <= max(series["lambda"]) <= 4


def test_numbers_of_numpy_are_saved(tmp_path: Path) -> None:
    made = policy("guarded", candidates=np.int64(64), bypass=np.True_, margin=np.float32(0.5))
    made.save(tmp_path / "made")
    assert load_policy(tmp_path / "made") == policy("guarded", candidates=64, bypass=True, margin=0.5)


def test_bypass_writes_less() -> None:
    rng = np.random.default_rng(0)
    once = rng.random(40_000) < 0.5  # half of the requests are never repeated
    keys = np.where(once, rng.integers(10_000, 2**60, 40_000), rng.zipf(1.2, 40_000) % 2_000)
    trace = Trace.from_keys(keys)
    result = {b: simulate(trace, policy("guarded", bypass=b), 200, warmup=0.5) for b in (False, True)}
    assert result[True].writes < 0.7 * result[False].writes
    assert result[True].misses < 1.05 * result[False].misses
    assert result[True].account["counts"]["refused_by_model"] > 0 == result[False].account["counts"]["refused_by_model"]


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"leaders": "lru+lrru"}, UnknownName, "lru"),
        ({"leaders": "belady"}, KvpredictError, "cannot lead"),
        ({"leaders": "guarded"}, KvpredictError, "cannot lead"),
        ({"leaders": "lru+lru"}, KvpredictError, "different"),
        ({"objective": "costs"}, UnknownName, "cost"),
        ({"history": 1.0}, KvpredictError, "history"),
        ({"samples": 10}, KvpredictError, "samples"),
        ({"swing": 0.0}, KvpredictError, "swing"),
        ({"horizon": np.inf}, KvpredictError, "horizon"),
        ({"most": 10**400}, KvpredictError, "most"),
        ({"near": np.nan}, KvpredictError, "near"),
        ({"margin": -0.1}, KvpredictError, "margin"),
        ({"batch": 0}, KvpredictError, "batch"),
        ({"reprieves": -1}, KvpredictError, "reprieves"),
        ({"sample": 0.0}, KvpredictError, "sample"),
        ({"sample": 1.5}, KvpredictError, "sample"),
        ({"candidates": 4}, KvpredictError, "candidates"),
    ],
)
def test_bad_parameters_are_named(params: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        policy("guarded", **params)
