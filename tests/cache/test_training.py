"""Training aside: the policy learns as it would have, no caller trains, and nothing breaks when the cache changes."""

import gc
import threading
import time
import weakref
from typing import Any

import numpy as np
import pytest

from kvpredict import Cache, policy
from kvpredict.cache import training
from kvpredict.core.policy import Policy
from kvpredict.policies.guarded import Guarded
from kvpredict.policies.guarded.state import FITS

KEYS = [int(key) for key in np.random.default_rng(0).zipf(1.15, 40_000) % 5_000]


def learning(capacity: int, made: Policy | None = None, **options: Any) -> Cache[int, int]:
    """Return a cache that ``made`` decides from the start, whether its machine code was there or not."""
    cache = Cache[int, int](capacity, policy("guarded", samples=2000) if made is None else made, **options)
    assert cache.ready()
    return cache


def fill(cache: Cache[int, int], keys: list[int] = KEYS) -> None:
    for key in keys:
        if cache.get(key) is None:
            cache.put(key, key)


def settled(cache: Cache[int, int]) -> int:
    """Return the number of fits once the training thread has nothing left to do."""
    training._thread.join()
    return int(cache.stats().policy["fits"])


def gated(cache: Cache[int, int]) -> tuple[threading.Event, threading.Event]:
    """Make fits wait; return the events that one has begun and that it may go on."""
    trainer = cache._trainer
    assert trainer is not None
    begun, go = threading.Event(), threading.Event()

    def fit() -> None:
        begun.set()
        assert go.wait(60)
        trainer.fit()

    cache._ranking.trainer = trainer._replace(fit=fit)
    return begun, go


def test_stats_name_the_leader() -> None:
    # Some keys are asked for more often than others, always the same.
    cache = learning(100, policy("guarded", leaders="lru+popularity", learn=False))
    assert cache.stats().policy["leader"] == "lru"
    fill(cache)
    assert cache.stats().policy["leader"] == "popularity"


def test_stats_ask_the_policy_for_its_account_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    account = Guarded.account
    monkeypatch.setattr(Guarded, "account", lambda made, state: asked.append(1) or account(made, state))
    learning(100, policy("guarded")).stats()
    assert len(asked) == 1


def test_it_learns_on_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = learning(300)
    trained_by = []
    trainer = cache._trainer
    assert trainer is not None

    def fit() -> None:
        trained_by.append(threading.current_thread().name)
        trainer.fit()

    cache._ranking.trainer = trainer._replace(fit=fit)
    for start in range(0, len(KEYS), 2_000):
        fill(cache, KEYS[start : start + 2_000])
        settled(cache)
    assert len(trained_by) >= settled(cache) >= 5  # the first come before there is enough to learn from
    assert {name.startswith("kvpredict-training") for name in trained_by} == {True}
    cache.validate()


def test_what_was_learned_decides_as_if_trained_within_the_call() -> None:
    """Waiting for the thread whenever training is due gives the model that a put would have trained."""
    aside = learning(300, read_buffer=1)
    within = learning(300, read_buffer=1, train_aside=False)
    hits = []
    for cache in (aside, within):
        found = 0
        for key in KEYS:
            if cache.get(key) is None:
                cache.put(key, key)
                if cache._ranking.due[0]:
                    settled(cache)
            else:
                found += 1
        hits.append(found)
    assert settled(aside) == settled(within) > 5
    assert hits[0] == pytest.approx(hits[1], rel=0.01)  # one put later, so not the same to the last hit


def test_a_slow_fit_holds_nobody_up() -> None:
    cache = learning(300)
    for start in range(0, 20_000, 2_000):
        fill(cache, KEYS[start : start + 2_000])
        settled(cache)
    fits = settled(cache)
    assert fits > 0
    begun, go = gated(cache)
    fill(cache, KEYS[20_000:30_000])
    assert begun.wait(60)
    before = cache.stats().hits
    fill(cache, KEYS[30_000:])  # would never end if it waited
    assert cache.stats().hits > before
    assert cache.stats().policy["fits"] == fits
    go.set()
    assert settled(cache) == fits + 1


def test_what_is_learned_for_a_policy_that_is_gone_is_dropped() -> None:
    cache = learning(300)
    begun, go = gated(cache)
    old = cache._ranking.state
    fill(cache, KEYS[:10_000])
    assert begun.wait(60)
    cache.swap_policy("lru")
    go.set()
    training._thread.join()
    assert old.core.word[FITS] == 0
    assert cache.stats().policy == {}
    fill(cache, KEYS[10_000:12_000])
    cache.validate()


def test_a_failing_fit_is_logged_once_and_the_cache_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    cache = learning(300)

    def fit() -> None:
        raise MemoryError("no room to learn")

    cache._ranking.trainer = cache._trainer._replace(fit=fit)  # type: ignore[union-attr]
    fill(cache)
    assert settled(cache) == 0
    assert sum("training failed" in record.message for record in caplog.records) == 1
    cache.validate()


def test_a_growing_cache_keeps_what_it_learned() -> None:
    cache = learning(6_000, weigher=lambda value: value)
    for start in range(0, len(KEYS), 2_000):
        for key in KEYS[start : start + 2_000]:
            if cache.get(key) is None:
                cache.put(key, 20)  # 300 of them fit
        settled(cache)
    fits, slots = settled(cache), cache._ranking.slots
    assert fits > 0
    leaf = cache._ranking.state.model.far.leaf.copy()
    for key in [*cache, *range(10_000, 12_000)]:
        cache.put(key, 1)  # so that all of these fit
    assert cache._ranking.slots > slots
    assert settled(cache) >= fits
    assert (cache._ranking.state.model.far.leaf == leaf).any()
    cache.validate()


def test_training_keeps_no_cache_alive() -> None:
    cache = learning(300)
    fill(cache)
    settled(cache)
    gone = weakref.ref(cache)
    del cache
    for _ in range(50):
        gc.collect()
        if gone() is None:
            break
        time.sleep(0.02)
    assert gone() is None
