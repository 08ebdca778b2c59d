"""The learned policy against a twin that scores with plain Python, and its modes, log and history."""

from dataclasses import replace

import numpy as np
import pytest

from kvpredict import KvpredictError, Trace, UnknownName, policy, simulate
from kvpredict.artifact import Artifact
from kvpredict.core.engine import bind, make_host
from kvpredict.features.schema import BASE_FEATURES, Schema
from kvpredict.learn.dataset import record_decisions
from kvpredict.policies.learned import MODES, Learned
from kvpredict.scorers.linear import Linear
from tests.contracts.driver import DictHost
from tests.contracts.factories.learned import hand_made_trees, make


def by(feature: str, sign: float, **params: object) -> Learned:
    """Return a policy that ranks by one feature: sign -1 evicts the largest first."""
    weight = np.zeros(len(BASE_FEATURES))
    weight[BASE_FEATURES.index(feature)] = sign
    return Learned(Artifact(Linear(weight, np.zeros(1)), Schema()), **params)  # type: ignore[arg-type]


def zipf_trace(n: int = 20_000, keys: int = 1000, seed: int = 3) -> Trace:
    rng = np.random.default_rng(seed)
    popularity = 1.0 / np.arange(1, keys + 1) ** 0.9
    return Trace.from_keys(rng.choice(keys, n, p=popularity / popularity.sum()), name="zipf")


def test_ranking_by_recency_over_all_residents_is_lru() -> None:
    trace = zipf_trace()
    for capacity in (3, 20, 60):
        lru = simulate(trace, "lru", capacity)
        ours = simulate(trace, by("recency", -1.0, candidates=64, batch=1), capacity)
        assert (ours.hit == lru.hit).all()


def test_ranking_by_residence_over_all_residents_is_fifo() -> None:
    trace = zipf_trace()
    fifo = simulate(trace, "fifo", 40)
    ours = simulate(trace, by("residence", -1.0, candidates=64, batch=1), 40)
    assert (ours.hit == fifo.hit).all()


def test_a_touched_victim_is_passed_over() -> None:
    cache = DictHost(by("recency", -1.0, candidates=256, batch=4), 256)
    for key in range(257):
        cache.access(key)  # evicts key 0 and queues 1, 2, 3
    assert cache.access(1)
    cache.access(1000)
    assert 1 in cache.slot_of
    assert 2 not in cache.slot_of


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_keeps_its_invariants(mode: str) -> None:
    trace = zipf_trace(3000)
    learned = make(mode=mode, threshold=0.2, batch=4, candidates=8)
    cache = DictHost(learned, 30)
    for i, key in enumerate(trace.keys.tolist()):
        cache.access(key)
        if i % 97 == 0:
            cache.delete(key)
        learned.validate(cache.state, np.array(sorted(cache.key_of), int))
    hits = simulate(trace, learned, 30)
    assert 0 < hits.hits < len(trace)


def test_admit_refuses_by_threshold_and_follows_its_base() -> None:
    trace = zipf_trace()
    for base in ("lru", "sieve", "fifo"):
        open_door = make(mode="admit", base=base, threshold=-1e9)
        assert (simulate(trace, open_door, 50).hit == simulate(trace, base, 50).hit).all()
    closed = simulate(trace, make(mode="admit", threshold=1e9), 50)
    first = list(dict.fromkeys(trace.keys.tolist()))[:50]
    assert closed.hits == int(np.isin(trace.keys, first).sum()) - 50  # what filled the cache stays


def test_both_keeps_a_scan_out() -> None:
    hot = np.tile(np.arange(20), 200)
    trace = Trace.from_keys(np.concatenate([hot, np.arange(1000, 3000), hot]))
    # Worth is the number of visits: a newcomer has none and is refused while residents have some.
    both = by("count", 1.0, mode="both", candidates=64, batch=1)
    assert simulate(trace, both, 25).hits > simulate(trace, "lru", 25).hits
    assert simulate(trace, both, 25).hit[-4000:].all()


def test_large_objects_pay_for_their_size_only_when_objects_count() -> None:
    rng = np.random.default_rng(5)
    keys = rng.choice(500, 20_000, p=(p := 1.0 / np.arange(1, 501)) / p.sum())
    sizes = rng.choice([10, 1000], 500)[keys]
    trace = Trace.from_keys(keys, sizes)
    capacity = trace.capacity(0.1, "bytes")
    results = {o: simulate(trace, make(objective=o), capacity, unit="bytes") for o in ("objects", "bytes")}
    assert results["objects"].object_miss_ratio < results["bytes"].object_miss_ratio
    assert results["objects"].byte_miss_ratio > results["bytes"].byte_miss_ratio


def test_logging_changes_no_decision_and_is_a_uniform_sample() -> None:
    trace = zipf_trace()
    learned = make()
    capacity = 50
    plain = simulate(trace, learned, capacity)
    logged = simulate(trace, replace(learned, log_rows=300), capacity)
    assert (plain.hit == logged.hit).all()
    data = record_decisions(trace, replace(learned, log_rows=300), capacity)
    assert len(data) == 300
    assert (np.diff(data.now) >= 0).all()
    assert 0.35 < np.median(data.now) / len(trace) < 0.65


def test_rows_recorded_while_serving_equal_the_data_set_to_the_bit() -> None:
    trace = zipf_trace(5000)
    learned = make(mode="both", log_rows=500)
    data = record_decisions(trace, learned, 40)
    cache = DictHost(learned, 40)
    for i, key in enumerate(trace.keys.tolist()):
        cache.access(key, time=float(i))
    log = cache.state.log
    order = np.argsort(log.now, kind="stable")
    assert log.row[order].tobytes() == data.x.tobytes()
    assert log.unit[order].tobytes() == data.unit.tobytes()


@pytest.mark.parametrize("mode", ["evict", "both"])
def test_labels_tell_the_distance_to_the_next_use(mode: str) -> None:
    trace = zipf_trace(4000)
    data = record_decisions(trace, make(mode=mode, log_rows=100_000), 40)
    assert len(data) > 1000
    recency = BASE_FEATURES.index("recency")
    for now, row, unit, distance in zip(data.now, data.x, data.unit, data.distance, strict=True):
        # Find the object by its last access, and its next use by looking ahead in the trace.
        last = now - round(float(row[recency]) * unit)
        key = trace.keys[last - 1]
        later = np.flatnonzero(trace.keys[now:] == key)
        assert distance == (later[0] + 1 if later.size else np.inf)
    x, y = data.labelled(1.0, 0, 4001)
    assert len(x) == len(y) < len(data)


def test_extra_columns_reach_the_rows() -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 200, 3000)
    trace = Trace.from_keys(keys, tenant=keys % 7)
    schema = Schema(("tenant",))
    learned = Learned(Artifact(hand_made_trees(), schema), log_rows=200)
    data = record_decisions(trace, learned, 30)
    assert set(data.x[:, -1]) == set(range(7))
    recency = BASE_FEATURES.index("recency")
    last = data.now - np.round(data.x[:, recency] * data.unit).astype(int)
    assert (data.x[:, -1] == trace.keys[last - 1] % 7).all()
    with pytest.raises(UnknownName, match="tenant"):
        simulate(Trace.from_keys(keys), learned, 30)


def test_history_is_bounded_and_its_bound_costs_little() -> None:
    trace = zipf_trace(30_000, 3000)
    misses = {h: simulate(trace, make(history=h), 100).misses for h in (1.0, 4.0, 100.0)}
    assert abs(misses[4.0] / misses[100.0] - 1) < 0.05
    state = make(history=4.0).state(1000)
    assert state.history.free.size <= 4 * 1000 + 2


def test_bad_parameters_name_themselves() -> None:
    with pytest.raises(KvpredictError, match="fit"):
        policy("learned")
    for params, word in (
        ({"mode": "evct"}, "evict"),
        ({"objective": "byte"}, "bytes"),
        ({"candidates": 0}, "candidates"),
        ({"batch": 99}, "batch"),
        ({"history": 0.5}, "history"),
        ({"log_rows": -1}, "log_rows"),
    ):
        with pytest.raises(KvpredictError, match=word):
            make(**params)
    with pytest.raises(KvpredictError, match="future"):
        make(mode="admit", base="belady").state(10)


def test_swapping_models_of_one_kind_compiles_nothing() -> None:
    first, second = make(), by("recency", -1.0)
    assert bind(first) is bind(replace(first, batch=2))
    assert bind(first) is not bind(second)
    assert make_host(3, 3).counts.tolist() == [3, 0, 3, 0]
