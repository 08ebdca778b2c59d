"""The environments: Gymnasium's rules, and that they are the simulator, stopped at every eviction."""

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from kvpredict import KvpredictError
from kvpredict.artifact import Artifact
from kvpredict.features.schema import BASE_FEATURES, Schema
from kvpredict.learn.env import CacheEnv, CacheVectorEnv
from kvpredict.learn.lanes import Lanes, miniatures
from kvpredict.policies.learned import Learned
from kvpredict.scorers.linear import Linear
from kvpredict.simulate import simulate
from kvpredict.trace import Trace
from tests.strategies import zipf_mix

CAPACITY = 40
WEIGHT = np.random.default_rng(0).normal(0, 1, len(BASE_FEATURES))


def some_trace(seed: int, n: int = 3000) -> Trace:
    return Trace.from_keys(zipf_mix(n, 300, seed=seed))


def play(env: CacheEnv, seed: int, choose) -> tuple[int, list[np.ndarray]]:  # type: ignore[no-untyped-def]
    """Return the hits of an episode, and the rows of its decisions."""
    rows, info = env.reset(seed=seed)
    hits, seen, ended = info["hits"], [], False
    while not ended:
        seen.append(rows)
        rows, reward, ended, truncated, info = env.step(choose(rows, info["distance"]))
        assert not truncated
        hits += int(reward)
    return hits, seen


def test_it_keeps_gymnasiums_rules() -> None:
    env = CacheEnv(some_trace(0), CAPACITY)
    check_env(env, skip_render_check=True)  # warnings are errors
    assert env.observation_space.shape == (16, len(BASE_FEATURES))


def test_the_same_seed_draws_the_same_candidates_and_another_draws_others() -> None:
    env = CacheEnv(some_trace(1), CAPACITY)
    runs = [play(env, seed, lambda rows, _: int(rows[:, 0].argmax())) for seed in (3, 3, 4)]
    assert runs[0][0] == runs[1][0]
    assert all(map(np.array_equal, runs[0][1], runs[1][1]))
    assert not np.array_equal(runs[0][1][0], runs[2][1][0])
    assert env.reset()[0].shape == env.reset(options={})[0].shape  # without a seed it goes on drawing


@pytest.mark.parametrize(("name", "column"), [("lru", 0), ("belady", None)])
def test_choosing_among_all_residents_is_the_policy_itself(name: str, column: int | None) -> None:
    trace = some_trace(2)
    env = CacheEnv(trace, CAPACITY, candidates=CAPACITY)
    hits, _ = play(env, 0, lambda rows, distance: int((distance if column is None else rows[:, column]).argmax()))
    assert hits == simulate(trace, name, CAPACITY).hits


def test_the_lowest_score_goes_as_in_the_policy_learned() -> None:
    trace = some_trace(3)
    model = Artifact(Linear(WEIGHT, np.zeros(1)), Schema())
    learned = simulate(trace, Learned(model, candidates=16, batch=1), CAPACITY, seed=5).hits
    hits, _ = play(CacheEnv(trace, CAPACITY), 5, lambda rows, _: int((rows.astype(float) @ WEIGHT).argmin()))
    assert hits == learned


def test_many_caches_are_each_what_they_are_alone() -> None:
    traces = [some_trace(4), some_trace(5, 2000), some_trace(6)]
    many = CacheVectorEnv(traces, CAPACITY)
    rows, info = many.reset(seed=7)
    hits, ended = info["hits"].astype(float), np.zeros(3, bool)
    while not ended.all():
        rows, reward, ended, _, info = many.step(rows[:, :, 0].argmax(1))
        hits += reward
    alone = [
        play(CacheEnv(t, CAPACITY), 7 + i, lambda rows, _: int(rows[:, 0].argmax()))[0] for i, t in enumerate(traces)
    ]
    assert hits.tolist() == alone
    again, _ = many.reset(seed=7, options={"reset_mask": np.array([True, False, True])})
    assert many.lanes.ended().tolist() == [False, True, False]
    first, _ = many.reset(seed=7)
    assert np.array_equal(again[[0, 2]], first[[0, 2]])


def test_distance_is_the_time_to_the_next_use() -> None:
    env = CacheEnv(Trace.from_keys([1, 2, 3, 1, 2, 9, 1]), 3)
    _, info = env.reset(seed=0)
    assert sorted(info["distance"].tolist()) == [1.0, np.inf, np.inf]  # 9 misses; 1 comes next, 2 and 3 never
    assert info["hits"] == 2


def test_extra_columns_are_part_of_the_rows() -> None:
    keys = zipf_mix(1000, 200, seed=8)
    trace = Trace.from_keys(keys, kind=(keys % 2).astype(float))
    env = CacheEnv(trace, 20, schema=Schema(("kind",)))
    rows, _ = env.reset(seed=0)
    assert rows.shape == (16, len(BASE_FEATURES) + 1)
    assert set(np.unique(rows[:, -1]).tolist()) <= {0.0, np.log1p(1, dtype=np.float32)}


def test_miniatures_keep_a_share_of_the_keys_and_start_at_different_places() -> None:
    trace = some_trace(9, 8000)
    traces, capacity = miniatures(trace, 80, 4, 20, seed=1)
    assert capacity == 20
    assert all(0.15 < t.unique / trace.unique < 0.35 for t in traces)
    whole, capacity = miniatures(trace, 80, 4, 100)
    assert capacity == 80
    assert np.array_equal(whole[1].keys, np.roll(trace.keys, -2000))


def test_what_is_no_trace_no_capacity_or_holds_everything_is_refused() -> None:
    with pytest.raises(KvpredictError, match="expected a Trace, got str"):
        CacheEnv("x", 5)  # type: ignore[arg-type]
    with pytest.raises(KvpredictError, match=r"capacity is a whole number of objects, got 2\.5"):
        CacheEnv(Trace.from_keys([1, 2, 3]), 2.5)  # type: ignore[arg-type]
    with pytest.raises(KvpredictError, match="holds all of its 3 keys"):
        Lanes([Trace.from_keys([1, 2, 3])], 3)
    for traces in (some_trace(0), [], None):
        with pytest.raises(KvpredictError, match="traces must be a list"):
            CacheVectorEnv(traces, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("mask", [[True], [1, 0], "ab", [[True, False]]])
def test_a_reset_mask_is_one_truth_a_cache(mask: object) -> None:
    many = CacheVectorEnv([some_trace(0), some_trace(1)], CAPACITY)
    with pytest.raises(KvpredictError, match="reset_mask must be true or false for each of 2"):
        many.reset(options={"reset_mask": mask})


@pytest.mark.parametrize("action", [-1, 0.5, np.nan, "a", None, 10**30])
def test_an_action_is_a_whole_number_of_at_least_0(action: object) -> None:
    env = CacheEnv(some_trace(0), CAPACITY)
    env.reset(seed=0)
    with pytest.raises(KvpredictError, match="whole numbers of at least 0"):
        env.step(action)


@pytest.mark.parametrize("actions", [[CAPACITY, 0], [0, 10**12], [0], [0, 0, 0], [[0, 0]]])
def test_an_action_that_is_no_candidate_is_refused(actions: list[int]) -> None:
    many = CacheVectorEnv([some_trace(0), some_trace(1)], CAPACITY)
    many.reset(seed=0)
    with pytest.raises(KvpredictError, match=f"must be 2 numbers below {many.lanes.candidates}"):
        many.step(np.array(actions))
    again, _, _, _, _ = many.step(np.zeros(2, np.int64))  # nothing was changed
    other = CacheVectorEnv([some_trace(0), some_trace(1)], CAPACITY)
    other.reset(seed=0)
    np.testing.assert_array_equal(again, other.step(np.zeros(2, np.int64))[0])


def test_a_step_before_the_first_reset_is_refused() -> None:
    with pytest.raises(KvpredictError, match=r"call reset\(\) before step\(\)"):
        CacheEnv(some_trace(0), CAPACITY).step(0)
    many = CacheVectorEnv([some_trace(0), some_trace(1)], CAPACITY)
    many.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(KvpredictError, match=r"call reset\(\) before step\(\)"):
        many.step(np.zeros(2, np.int64))
    many.reset(options={"reset_mask": np.array([False, True])})
    many.step(np.zeros(2, np.int64))


def test_a_step_after_the_end_is_refused_and_another_episode_is_the_same() -> None:
    env = CacheEnv(some_trace(0), CAPACITY)

    def episode() -> list[float]:
        rewards, ended = [], False
        env.reset(seed=3)
        while not ended:
            _, reward, ended, _, _ = env.step(0)
            rewards.append(reward)
        return rewards

    first = episode()
    with pytest.raises(KvpredictError, match=r"the trace has ended: call reset\(\)"):
        env.step(0)
    assert episode() == first
