"""The learned prefix policy: what it learns, saves, and never does worse than."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kvpredict as kvp
from kvpredict.core.errors import ArtifactError, KvpredictError
from kvpredict.llm.hints import degraded
from kvpredict.llm.prefix import Server, fit_prefix, prefix_policy, simulate_prefix
from kvpredict.llm.prefix import simulate as module
from kvpredict.llm.prefix.hazard import BINS, EDGES, gittins, reuse_within
from kvpredict.llm.prefix.model import Model, examples
from kvpredict.llm.prefix.policies.learned import ARRIVAL, FREQUENT, LRU, RANKINGS, Learned
from kvpredict.llm.request_files import read_requests
from kvpredict.llm.requests import RequestTrace
from kvpredict.llm.workloads import generate_requests
from kvpredict.scorers.trees import Node, make_trees
from tests.llm.draws import request_traces

HAZARDS = st.lists(st.floats(0, 1, width=32), min_size=BINS, max_size=BINS)


@settings(deadline=None)
@given(hazard=HAZARDS, age=st.floats(0, 4000), seconds=st.floats(1, 1000))
def test_reuse_within_is_one_minus_survival(hazard: list[float], age: float, seconds: float) -> None:
    alive = 1.0
    for k in range(BINS):
        overlap = max(0.0, min(age + seconds, EDGES[k + 1]) - max(age, EDGES[k]))
        alive *= 1 - hazard[k] * overlap / (EDGES[k + 1] - EDGES[k])
    assert reuse_within(np.array(hazard, np.float32), age, seconds) == pytest.approx(1 - alive, abs=1e-6)


@settings(deadline=None)
@given(hazard=HAZARDS)
def test_gittins_is_the_best_ratio_over_all_times_to_give_up(hazard: list[float]) -> None:
    best, alive, gain, held = 0.0, 1.0, 0.0, 0.0
    for k in range(BINS):
        gain += alive * hazard[k]
        held += alive * (EDGES[k + 1] - EDGES[k]) * (1 - hazard[k] / 2)
        alive *= 1 - hazard[k]
        best = max(best, gain / held)
    assert gittins(np.array(hazard, np.float32), 0.0) == pytest.approx(best, rel=1e-5)


def test_examples_are_censored_not_negative() -> None:
    # One block used at 0 and 100 s, another at 0 s only; seen at 250 s.
    trace = RequestTrace.from_lists([0.0, 1.0, 100.0, 250.0], [[1], [2], [1], [3]], 16)
    r = simulate_prefix(trace, prefix_policy("learned", every=0.0), 10)
    x, y, _ = examples(r.info["turns"], 250.0)
    assert int(y.sum()) == 1
    (reused,) = np.flatnonzero(y)
    assert x[reused, -1] == 6  # the bin from 90 to 120 s
    # the first use of 1 lives through 7 bins, those of 2 and 1 through the whole bins that are over
    assert len(y) == 7 + 9 + 7


def test_learning_beats_lru_and_the_best_simple_rule_where_sessions_end() -> None:
    trace = degraded(generate_requests("chat", requests=2500, seed=1, block_size=128), 0.9)
    capacity = trace.capacity(0.1)
    lru, bound = (simulate_prefix(trace, name, capacity, warmup=0.5) for name in ("lru", "belady"))
    learned = simulate_prefix(trace, "learned", capacity, warmup=0.5)
    assert learned.info["trained"] >= 5
    assert learned.gap_closed(lru, bound) > 0.3


def test_a_model_of_no_use_costs_little() -> None:
    trace = generate_requests("mixed", requests=2500, seed=2, block_size=256)
    capacity = trace.capacity(0.1)
    rng = np.random.default_rng(0)
    garbage = [
        Node(feature=int(rng.integers(20)), threshold=float(rng.normal(5, 5)),
             left=Node(value=float(rng.normal(-3, 3))), right=Node(value=float(rng.normal(-3, 3))))
        for _ in range(20)
    ]  # fmt: skip
    model = Model(make_trees(garbage))
    lru = simulate_prefix(trace, "lru", capacity, warmup=0.5)
    misled = simulate_prefix(trace, Learned(model=model, every=0.0), capacity, warmup=0.5)
    assert misled.hits > 0.97 * lru.hits


@pytest.mark.parametrize("leader", [ARRIVAL, LRU])
@settings(max_examples=40, deadline=None)
@given(trace=request_traces(), capacity=st.integers(1, 12))
def test_following_a_simple_rule_is_that_rule(leader: int, trace: RequestTrace, capacity: int) -> None:
    server = Server(decode_seconds=0.5, flops=1e30)  # so that hits do not change how long requests run
    stay = Learned(every=0.0)
    runs = []
    original = module._Run.__call__

    def led(run: module._Run, state: object, first: int, last: int) -> None:
        run.steer[2] = np.inf  # never choose again
        run.pool.follows[0] = leader
        original(run, state, first, last)
        runs.append(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Run, "__call__", led)
        own = simulate_prefix(trace, stay, capacity, server=server).hit_blocks[:, 0]
    shadows = runs[0].hits[:, -len(RANKINGS) :]
    rules = {
        ARRIVAL: simulate_prefix(trace, "lru", capacity, server=server),
        LRU: simulate_prefix(trace, "lru", capacity, server=server, store="end"),
    }
    for which, rule in rules.items():
        assert shadows[:, which].tolist() == rule.hit_blocks[:, 0].tolist()
    assert own.tolist() == rules[leader].hit_blocks[:, 0].tolist()


def test_a_rank_that_changes_at_this_very_moment_by_rounding_changes_once() -> None:
    # Somewhere here last use + an age is now while now - last use is less than that age: the replay did not end.
    gaps = [1, 1, 1, 50, 0.1, 0.1, 0, 50, 1, 0.1, 1, 0, 0.1, 1, 50, 0.1, 50, 0.1, 50, 0.1, 1, 0, 50]
    lengths = [3, 2, 2, 2, 2, 6, 1, 2, 1, 1, 1, 2, 3, 2, 1, 2, 3, 3, 5, 5, 5, 5, 2]
    trace = RequestTrace(
        times=np.cumsum(gaps),
        starts=np.concatenate([[0], np.cumsum(lengths)]),
        blocks=np.concatenate(
            [
                [
                    0,
                    1,
                    2,
                    3,
                    4,
                    5,
                    6,
                    7,
                    8,
                    3,
                    4,
                    7,
                    8,
                    9,
                    10,
                    11,
                    12,
                    13,
                    0,
                    14,
                    15,
                    3,
                    16,
                    17,
                    18,
                    3,
                    4,
                    19,
                    16,
                    20,
                    21,
                ],
                [
                    22,
                    23,
                    17,
                    24,
                    25,
                    26,
                    27,
                    28,
                    16,
                    29,
                    30,
                    31,
                    32,
                    17,
                    33,
                    34,
                    35,
                    36,
                    3,
                    4,
                    37,
                    38,
                    39,
                    0,
                    40,
                    41,
                    42,
                ],
                [43, 44, 45],
            ]
        ),
        input_tokens=np.array([8, 18, 29, 12, 1, 25, 1, 28, 1, 1, 13, 14, 16, 1, 1, 1, 28, 1, 59, 56, 1, 39, 10]),
        output_tokens=np.array(
            [70, 70, 84, 17, 67, 22, 74, 52, 20, 100, 81, 92, 71, 5, 55, 3, 91, 100, 57, 43, 42, 33, 50]
        ),
        block_size=16,
        prompt_blocks=np.array([1, 2, 2, 1, 0, 2, 0, 2, 0, 1, 1, 1, 1, 0, 0, 1, 2, 0, 4, 4, 1, 3, 1]),
    )
    server = Server(decode_seconds=0.5, flops=1e30)
    assert simulate_prefix(trace, Learned(every=0.0), 9, server=server).hits > 0


def test_after_a_change_of_leader_the_cache_becomes_its_shadow() -> None:
    trace = generate_requests("mixed", requests=400, seed=7, block_size=256)
    runs = []
    original = module._Run.__call__

    def led(run: module._Run, state: object, first: int, last: int) -> None:
        run.steer[2] = np.inf
        run.pool.follows[0] = FREQUENT
        original(run, state, first, 200)
        run.pool.follows[0] = ARRIVAL
        run.engine.rerank(state, run.pool, float(trace.times[200]))
        original(run, state, 200, last)
        runs.append(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Run, "__call__", led)
        simulate_prefix(trace, Learned(every=0.0), 150)
    pool = runs[0].pool
    shadow = len(pool.used) - len(RANKINGS) + ARRIVAL
    assert pool.used[0] == 150
    assert (pool.resident[:, 0] == pool.resident[:, shadow]).mean() > 0.99


def test_dead_tails_are_left_behind() -> None:
    r = simulate_prefix(
        RequestTrace.from_lists([0, 1e3], [[1, 2, 3, 4], [1, 2, 5]], 16), prefix_policy("learned", every=0.0), 10
    )
    assert r.info["turns"].dead[:5].tolist() == [0, 0, 1, 1, 0]


def test_fit_save_load_simulate_by_the_public_names(tmp_path: Path) -> None:
    trace = generate_requests("chat", requests=1200, seed=3, block_size=128)
    policy = kvp.fit(trace.head(0.5), 200, semantics="prefix", every=0.0)
    policy.save(tmp_path / "p")
    loaded = kvp.load_policy(tmp_path / "p")
    results = [kvp.simulate(trace, p, 200, semantics="prefix", warmup=0.5) for p in (policy, loaded)]
    assert results[0].hits == results[1].hits
    assert results[0].prefix_hit_ratio > 0
    assert results[0].tokens_saved > 0
    assert loaded.params() | {"model": None} == policy.params() | {"model": None}
    assert not list(tmp_path.rglob("*.pkl"))


@pytest.mark.parametrize("harm", ["missing", "cut", "features", "newer", "arrays"])
def test_damaged_policies_are_refused(tmp_path: Path, harm: str) -> None:
    policy = Learned(model=Model(make_trees([Node(value=-1.0)])))
    policy.save(tmp_path)
    path = tmp_path / "prefix_policy.json"
    content = json.loads(path.read_text())
    if harm == "missing":
        (tmp_path / "model.npz").unlink()
    elif harm == "cut":
        path.write_text(path.read_text()[:50])
    elif harm == "features":
        path.write_text(json.dumps({**content, "features": content["features"][1:]}))
    elif harm == "newer":
        path.write_text(json.dumps({**content, "format": 99}))
    else:
        (tmp_path / "model.npz").write_bytes(b"PK nonsense")
    with pytest.raises(ArtifactError, match=r"missing|damaged|train it anew|upgrade it"):
        Learned.load(tmp_path)


def test_too_little_to_learn_from_is_said() -> None:
    with pytest.raises(KvpredictError, match=r": 52 segments of prompts, at least 500 are needed. Give a longer trace"):
        fit_prefix(generate_requests("chat", requests=20), 10)
    shared = [[*range(7), *range(100 * k, 100 * k + 3)] for k in range(1, 351)]
    at_once = RequestTrace.from_lists([0.0] * 349 + [100.0], shared, 16)  # 70 % of it hits
    with pytest.raises(KvpredictError, match=r": 1 of \d+ segments of prompts used again after .* 20 are needed"):
        fit_prefix(at_once, 100)
    soon = RequestTrace.from_lists(0.1 * np.arange(60), shared[:60], 16)
    with pytest.raises(KvpredictError, match=": none of 176 segments of prompts was without use for 10 seconds"):
        fit_prefix(soon, 100, first=50)
    for wrong in (
        {"every": -1.0},
        {"growth": -0.1},
        {"half_life": 0.0},
        {"rounds": 0},
        {"rows": 5},
        {"favour": 1.0},
        {"first": 1},
    ):
        with pytest.raises(KvpredictError, match=next(iter(wrong))):
            prefix_policy("learned", **wrong)


@pytest.mark.slow
def test_conversation_trace(shared_traces: Path) -> None:
    trace = read_requests(shared_traces / "mooncake" / "conversation_trace.head60.jsonl")
    gaps, hinted = [], []
    for fraction in (0.01, 0.05, 0.1, 0.2):
        capacity = trace.capacity(fraction)
        lru, bound = (simulate_prefix(trace, name, capacity, warmup=0.5) for name in ("lru", "belady"))
        gaps.append(simulate_prefix(trace, "learned", capacity, warmup=0.5).gap_closed(lru, bound))
        hints = simulate_prefix(degraded(trace, 0.8), "learned", capacity, warmup=0.5)
        hinted.append(hints.gap_closed(lru, bound))
    assert np.mean(gaps) > 0.22  # seeds differ by 0.02; the experiment has the means
    assert min(gaps) > 0
    assert np.mean(hinted) > 0.43


def test_where_documents_stay_popular_it_is_not_behind_lfu() -> None:
    """Counts of uses are all that there is to know: neither recency nor a model adds to them."""
    rng = np.random.default_rng(3)
    documents = np.minimum(rng.pareto(0.8, 3000) + 1, 200).astype(int)
    lengths = rng.integers(1, 5, 3000)
    starts = 100_000 + np.cumsum(lengths)
    blocks = [
        [0, *range(1000 + 50 * int(d), 1012 + 50 * int(d)), *range(int(q), int(q + n))]
        for d, q, n in zip(documents, starts, lengths, strict=True)
    ]
    outputs = rng.integers(1, 300, 3000)
    trace = RequestTrace.from_lists(np.cumsum(rng.exponential(0.3, 3000)), blocks, 512, output_tokens=outputs)
    hits = {p: simulate_prefix(trace, p, trace.capacity(0.05), warmup=0.5).hits for p in ("lru", "lfu", "learned")}
    assert hits["learned"] > hits["lfu"] > 1.05 * hits["lru"]
