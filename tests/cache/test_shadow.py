"""What a shadow foretells is what happens, and an automatic cache moves to it, once, and says why."""

import gc
import logging
import threading
import weakref

import numpy as np
import pytest

from kvpredict.cache import Cache, Shadow, Tuner
from kvpredict.cache.tap import make_tap, note, written
from kvpredict.core.errors import KvpredictError
from kvpredict.simulate import simulate
from kvpredict.trace import Trace
from tests.cache.test_threads import together, until
from tests.strategies import zipf_mix


def use(cache: Cache[int, int], keys: "np.ndarray | list[int]") -> None:
    for key in np.asarray(keys).tolist():
        if cache.get(key) is None:
            cache.put(key, key)


def loop_keys(size: int, rounds: int) -> np.ndarray:
    """A loop somewhat larger than the cache, which LRU always misses and others do not."""
    return np.tile(np.arange(size), rounds)


def test_the_tap_sees_what_the_policy_sees() -> None:
    cache: Cache[int, int] = Cache(20, "lru")
    cache.tap(1.0, 5000)
    keys = zipf_mix(3000, 100, 3)
    use(cache, keys)
    rows, count = cache.tapped()
    assert count == 3000
    assert rows[:, 0].tolist() == keys.tolist()
    assert set(rows[:, 1]) == {1}
    cache.swap_policy("sieve")
    cache.clear()
    cache.resize(30)
    use(cache, [1, 2, 1])
    assert cache.tapped()[0][-3:, 0].tolist() == [1, 2, 1]
    cache.tap(0.0, 1)
    use(cache, keys[:100])
    assert cache.tapped()[1] == 0


def test_the_tap_is_a_ring_of_a_sample_by_key() -> None:
    tap = make_tap(1.0, 4)
    for key in range(7):
        note(tap, key, 10 * key)
    assert written(tap).tolist() == [[3, 30], [4, 40], [5, 50], [6, 60]]
    cache: Cache[int, int] = Cache(50, "lru")
    cache.tap(0.25, 100_000)
    use(cache, zipf_mix(20_000, 2000, 4))
    rows, count = cache.tapped()
    seen = set(rows[:, 0].tolist())
    asked = np.unique(zipf_mix(20_000, 2000, 4))
    assert len(seen) == pytest.approx(0.25 * len(asked), rel=0.2)
    expected = [key for key in zipf_mix(20_000, 2000, 4).tolist() if key in seen]
    assert rows[:, 0].tolist() == expected
    assert count == len(expected)


def test_a_shadow_foretells_other_policies_and_sizes() -> None:
    keys = zipf_mix(60_000, 6000, 5)
    cache: Cache[int, int] = Cache(600, "lru")
    shadow = Shadow(cache, ["lru", "sieve", "s3fifo", "lfu"])
    assert shadow.sample == 1.0
    use(cache, keys)
    for forecast in shadow.evaluate([0.5, 1.0, 2.0]):
        truth = simulate(Trace.from_keys(keys), forecast.policy, forecast.capacity, warmup=0.5)
        assert forecast.hit_ratio == pytest.approx(1 - truth.object_miss_ratio, abs=1e-12)
        assert forecast.accesses == 30_000


def test_a_sample_foretells_nearly_as_well() -> None:
    keys = zipf_mix(120_000, 20_000, 6)
    cache: Cache[int, int] = Cache(4000, "lru")
    shadow = Shadow(cache, ["lru", "sieve", "s3fifo"], sample=0.25)
    use(cache, keys)
    for forecast in [*shadow.evaluate(), *shadow.curve("lru", [0.25, 0.5, 2.0])]:
        truth = simulate(Trace.from_keys(keys), forecast.policy, forecast.capacity, warmup=0.5)
        assert forecast.hit_ratio == pytest.approx(1 - truth.object_miss_ratio, abs=0.04)
    curve = [forecast.hit_ratio for forecast in shadow.curve()]
    assert curve == sorted(curve)
    shadow.close()


def test_sizes_are_foretold_in_units() -> None:
    keys = zipf_mix(30_000, 3000, 7)
    cache: Cache[int, int] = Cache(20_000, "lru", weigher=lambda key: 1 + key % 60)
    shadow = Shadow(cache, ["gdsf"], sample=1.0)
    use(cache, keys)
    truth = simulate(Trace(keys, None, 1 + keys % 60), "gdsf", 20_000, unit="bytes", warmup=0.5)
    assert shadow.evaluate()[0].hit_ratio == pytest.approx(1 - truth.object_miss_ratio, abs=0.01)


def test_wrong_arguments_are_named() -> None:
    cache: Cache[int, int] = Cache(10)
    with pytest.raises(KvpredictError, match="sample"):
        Shadow(cache, sample=2.0)
    with pytest.raises(KvpredictError, match="wait"):
        Shadow(cache).evaluate()
    with pytest.raises(KvpredictError, match="future"):
        Shadow(cache, ["belady"])
    with pytest.raises(KvpredictError, match="margin"):
        Tuner(cache, margin=1.5)
    with pytest.raises(KvpredictError, match="wins"):
        Tuner(cache, wins=0, interval=None)


# --- automatic -------------------------------------------------------------------------------------------------------


def test_a_closed_shadow_and_one_of_nothing_say_so() -> None:
    cache: Cache[int, int] = Cache(10, "lru")
    for make in (Shadow, Tuner):
        with pytest.raises(KvpredictError, match="at least one policy"):
            make(cache, [])
    shadow = Shadow(cache)
    shadow.close()
    for ask in (shadow.evaluate, shadow.curve):
        with pytest.raises(KvpredictError, match="closed"):
            ask()


def test_it_moves_to_the_better_policy_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    cache: Cache[int, int] = Cache(100, "lru")
    tuner = Tuner(cache, ["lru", "lirs", "sieve"], interval=None, wins=2, window=2000)
    use(cache, loop_keys(130, 20))
    with caplog.at_level(logging.INFO, "kvpredict"):
        first = tuner.look()
        assert first is not None
        assert (first.moved, first.present, first.gain > 0.3) == (False, "lru", True)
        assert tuner.look() is None  # nothing new was seen
        use(cache, loop_keys(130, 10))
        second = tuner.look()
    assert second is not None
    assert second.moved
    assert cache.policy.name == second.best != "lru"
    assert "of the misses of lru" in caplog.text
    before = cache.stats()
    use(cache, loop_keys(130, 20))
    after = cache.stats()
    assert after.hits - before.hits > 0.5 * 130 * 20  # LRU would have none
    cache.validate()


def test_it_does_not_follow_chance() -> None:
    cache: Cache[int, int] = Cache(200, "sieve")
    tuner = Tuner(cache, ["sieve", "s3fifo", "lru", "arc"], interval=None, window=5000)
    for seed in range(8):
        use(cache, np.random.default_rng(seed).integers(0, 2000, 4000))  # no policy can do better than another
        decision = tuner.look()
        assert decision is not None
        assert not decision.moved, decision.reason
    assert cache.policy.name == "sieve"


def test_auto_tunes_itself_in_the_background_and_is_let_go() -> None:
    made: list[Cache[int, int]] = [Cache(100, "auto")]
    assert made[0].policy.name == "s3fifo"
    assert made[0].tuner.decisions.maxlen == 100
    assert Cache(10, "lru").tuner is None
    assert "kvpredict-tuner" in {each.name for each in threading.enumerate()}
    quick = [Tuner(made[0], ["s3fifo", "lirs"], interval=0.02, wins=1, margin=0.0, window=1000)]
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            use(made[0], loop_keys(130, 2))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        until(lambda: len(quick[0].decisions) > 1)
    finally:
        stop.set()
        thread.join()
    assert made[0].policy.name == "lirs"
    gone = weakref.ref(made.pop())
    quick.clear()
    until(lambda: gc.collect() >= 0 and gone() is None)


def test_tuning_under_load_keeps_every_answer_right() -> None:
    cache: Cache[int, int] = Cache(100, "lru")
    tuner = Tuner(cache, ["lru", "sieve", "s3fifo"], interval=None, wins=1, margin=0.0, window=1000)
    for name in ("sieve", "s3fifo", "lru"):
        cache.swap_policy(name)

    def work(i: int) -> None:
        if i == 0:
            for _ in range(20):
                tuner.look()
        else:
            for key in zipf_mix(4000, 300, i).tolist():
                assert cache.get(key) in (None, key)
                cache.put(key, key)

    together(work, threads=4)
    cache.validate()
