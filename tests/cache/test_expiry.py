"""Values live as long as they were told to, under every policy, and are fetched anew in time."""

import decimal
import threading
import time
from typing import Any

import numpy as np
import pytest

from kvpredict.cache import Cache, Cause, Expiry, Loaded, Loads, TieredCache
from kvpredict.cache.expiry import duration
from kvpredict.core.errors import KvpredictError
from kvpredict.policies import policy_class, policy_names
from tests.cache.clock import Clock
from tests.cache.test_threads import until
from tests.contracts.factories import make
from tests.strategies import zipf_mix

POLICIES = [name for name in policy_names() if not policy_class(name).traits.oracle]


def test_a_ttl_ends_a_value_at_its_time() -> None:
    clock = Clock()
    cache: Cache[str, int] = Cache(10, "lru", ttl=60, clock=clock)
    cache["a"] = 1
    clock.now += 59.9
    assert cache.get("a") == cache.peek("a") == cache["a"] == 1
    assert "a" in cache
    clock.now += 0.1
    assert "a" not in cache
    assert (cache.peek("a", 7), list(cache), cache.items(), cache.read("a")) == (7, [], [], (None, None))
    assert len(cache) == 1  # not looked for yet
    assert cache.get("a", 7) == 7
    assert len(cache) == 0
    with pytest.raises(KeyError):
        cache["a"]
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.expirations, stats.deletions) == (2, 2, 1, 0)
    cache.validate()


def test_a_put_starts_the_time_anew() -> None:
    clock = Clock()
    cache: Cache[str, int] = Cache(10, "lru", ttl=60, clock=clock)
    cache["a"] = 1
    clock.now += 50
    cache["a"] = 2
    clock.now += 50
    assert cache.get("a") == 2


def test_what_was_put_in_meanwhile_is_not_over() -> None:
    clock = Clock()
    cache: Cache[str, int] = Cache(10, "lru", ttl=60, clock=clock)
    cache["a"] = 1
    seen = cache._entries["a"]  # by a reader that is then kept waiting
    clock.now += 61
    cache["a"] = 2
    cache._lapse("a", seen, clock.now)
    assert cache.get("a") == 2


def test_an_entrys_own_ttl_goes_first() -> None:
    clock = Clock()
    cache: Cache[str, int] = Cache(10, "lru", clock=clock)
    get = cache.get  # taken before the cache has anything that expires
    cache.put("plain", 0)
    cache.put("short", 1, 5)  # by position, as in other caches
    cache.get_or_load("loaded", lambda key: Loaded(2, ttl=7))
    clock.now += 5
    assert (get("plain"), get("short"), get("loaded")) == (0, None, 2)
    clock.now += 2
    assert (get("plain"), get("loaded")) == (0, None)
    assert Cache(10, "lru", ttl=60, clock=clock).put("a", 1, ttl=0.5)


def test_idle_entries_end_and_used_ones_do_not() -> None:
    clock = Clock()
    cache: Cache[str, int] = Cache(10, "lru", expiry=Expiry(ttl=100, idle=10), clock=clock)
    cache["used"] = cache["idle"] = 1
    for _ in range(9):
        clock.now += 9
        assert cache.get("used") == 1
    assert cache.get("idle") is None
    cache.peek("used")  # is no use
    clock.now += 10
    assert cache.get("used") is None
    cache["used"] = 1
    for _ in range(11):
        clock.now += 9.5
        cache.get("used")
    assert cache.get("used") is None  # the ttl holds whatever the use


def test_jitter_spreads_deadlines_below_the_ttl() -> None:
    clock = Clock()
    cache: Cache[int, int] = Cache(1000, "lru", expiry=Expiry(ttl=100, jitter=0.2), clock=clock)
    for key in range(1000):
        cache[key] = key
    clock.now += 79.9
    assert len(cache.items()) == 1000
    left = []
    for _ in range(20):
        clock.now += 1
        left.append(len(cache.items()))
    gone = -np.diff([1000, *left])
    assert left[-1] < 20
    assert gone.min() > 20  # 50 expected each second
    assert gone.max() < 90


def test_a_caller_computes_the_ttl() -> None:
    clock = Clock()
    compute = {"a": 5, "b": None, "c": 0}
    cache: Cache[str, str] = Cache(
        10, "lru", expiry=Expiry(ttl=50, compute=lambda key, value: compute[value]), clock=clock
    )
    for name in "abc":
        cache[name] = name
    assert cache.get("c") is None  # over from the start
    clock.now += 5
    assert (cache.get("a"), cache.get("b")) == (None, "b")
    clock.now += 45
    assert cache.get("b") is None


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_lives_with_expiry(name: str) -> None:
    chosen = make(name)
    clock = Clock()
    cache: Cache[int, int] = Cache(
        40, chosen, expiry=Expiry(ttl=30, idle=20, jitter=0.5), clock=clock, read_buffer=3, seed=1
    )
    extra = dict.fromkeys(chosen.extra, 1.0)
    born: dict[int, float] = {}
    hits = 0
    for step, key in enumerate(zipf_mix(3000, 300, 5).tolist()):
        clock.now += 0.25
        value = cache.get(key)
        if value is None:
            cache.put(key, step, extra=extra)
            born[key] = clock.now
        else:
            hits += 1
            assert clock.now - born[key] < 30
        if step % 500 == 0:
            cache.validate()
    cache.validate()
    stats = cache.stats()
    assert stats.hits == hits > 100
    assert stats.expirations > 50
    assert stats.inserts == stats.entries + stats.evictions + stats.expirations
    clock.now += 31
    assert cache.sweep() == stats.entries
    assert len(cache) == 0
    cache.validate()


def test_writes_sweep_what_nobody_asks_for() -> None:
    clock = Clock()
    cache: Cache[int, int] = Cache(400, "lru", ttl=10, clock=clock)
    for key in range(400):
        cache[key] = key
    clock.now += 10
    for key in range(1000, 1100):
        cache[key] = key
    assert len(cache) <= 104
    assert cache.stats().evictions == 0
    cache.validate()


def test_a_thread_sweeps_and_ends_with_its_cache() -> None:
    removed: list[Any] = []
    cache: Cache[int, int] = Cache(
        10, "lru", expiry=Expiry(ttl=0.02, sweep=0.01), on_removal=lambda *what: removed.append(what)
    )
    cache[1] = 1
    until(lambda: removed == [(1, 1, Cause.EXPIRED)])
    sweepers = [thread for thread in threading.enumerate() if thread.name == "kvpredict-sweep"]
    assert sweepers
    del cache
    until(lambda: not any(thread.is_alive() for thread in sweepers))


# --- early refresh ---------------------------------------------------------------------------------------------------


def test_a_hit_late_in_life_refreshes_in_the_background() -> None:
    clock = Clock()
    loads: list[str] = []

    def load(key: str) -> int:
        loads.append(threading.current_thread().name)
        return len(loads)

    cache: Cache[str, int] = Cache(10, "lru", expiry=Expiry(ttl=10, refresh=0.8), loader=load, clock=clock)
    assert cache.get_or_load("a") == 1
    clock.now += 7.9
    assert cache.get("a") == 1
    assert len(loads) == 1
    clock.now += 0.1
    assert cache.get("a") == 1  # nobody waits
    until(lambda: cache.peek("a") == 2)
    until(lambda: cache.stats().refreshes == 1)
    clock.now += 7.9
    assert cache.get("a") == 2
    assert len(loads) == 2
    assert loads[1] == "kvpredict-refresh"
    assert cache.stats().misses == 1


def test_a_refresh_that_fails_leaves_the_value_to_its_end() -> None:
    clock = Clock()
    calls = []

    def load(key: str) -> int:
        calls.append(clock.now)
        if len(calls) > 1:
            raise OSError("the source is down")
        return 1

    cache: Cache[str, int] = Cache(10, "lru", expiry=Expiry(ttl=10, refresh=0.5, retry=2.0), clock=clock)
    assert cache.get_or_load("a", load) == 1
    clock.now += 5
    assert cache.get_or_load("a", load) == 1
    until(lambda: cache.stats().load_failures == 1)
    assert cache.get_or_load("a", load) == 1  # left alone for two seconds
    clock.now += 2
    assert cache.get_or_load("a", load) == 1
    until(lambda: cache.stats().load_failures == 2)
    clock.now += 3
    with pytest.raises(OSError, match="down"):
        cache.get_or_load("a", load)
    assert calls == [100, 105, 107, 110]


def test_xfetch_refreshes_earlier_what_takes_longer_to_load() -> None:
    clock = Clock()
    expiry = Expiry(ttl=100, refresh="xfetch")

    def moments(took: float) -> "np.ndarray":
        cache: Cache[int, int] = Cache(500, "lru", expiry=expiry, clock=clock, seed=3)
        held = [cache._hold(key, key, clock.now, None, (), None, took) for key in range(500)]
        return np.array([each.deadline - each.refresh_at for each in held])

    assert moments(2.0).mean() == pytest.approx(2.0, rel=0.15)  # exponential, its mean the time of the load
    assert moments(2.0).std() == pytest.approx(2.0, rel=0.2)
    assert moments(0.1).mean() == pytest.approx(0.1, rel=0.15)


# --- stale and negative ----------------------------------------------------------------------------------------------


def test_a_stale_value_stands_in_for_a_source_that_fails() -> None:
    clock = Clock()
    up = [True]
    calls = []

    def load(key: str) -> str:
        calls.append(key)
        if not up[0]:
            raise OSError("down")
        return f"value {len(calls)}"

    cache: Cache[str, str] = Cache(10, "lru", expiry=Expiry(ttl=10, stale=20, retry=3), clock=clock)
    assert cache.get_or_load("a", load) == "value 1"
    up[0] = False
    clock.now += 10
    assert cache.get("a") is None  # get never hands out what is over
    assert cache.get_or_load("a", load) == "value 1"
    assert cache.get_or_load("a", load) == "value 1"
    assert len(calls) == 2  # the source is left alone for a while
    clock.now += 3
    assert cache.get_or_load("a", load) == "value 1"
    assert len(calls) == 3
    assert cache.stats().stale_served == 3
    clock.now += 17
    with pytest.raises(OSError, match="down"):
        cache.get_or_load("a", load)
    up[0] = True
    clock.now += 3
    assert cache.get_or_load("a", load) == "value 5"


def test_a_failure_is_kept_when_asked_for() -> None:
    clock = Clock()
    calls = []

    def load(key: str) -> int:
        calls.append(key)
        if key == "broken":
            raise OSError("down")
        raise KeyError(key)

    removed: list[Any] = []
    cache: Cache[str, int] = Cache(
        10, "lru", loads=Loads(negative_ttl=5), clock=clock, on_removal=lambda *what: removed.append(what)
    )
    for _ in range(3):
        with pytest.raises(KeyError, match="nobody"):
            cache.get_or_load("nobody", load)
        with pytest.raises(OSError, match="down"):
            cache.get_or_load("broken", load)
    assert calls == ["nobody", "broken", "broken", "broken"]
    assert cache.get("nobody", 7) == 7
    assert "nobody" not in cache
    assert cache.items() == []
    assert cache.stats().negative_hits == 3
    clock.now += 5
    with pytest.raises(KeyError):
        cache.get_or_load("nobody", load)
    assert len(calls) == 5
    cache["nobody"] = 1  # a write ends it
    assert cache.get_or_load("nobody", load) == 1
    assert removed == []  # a failure was never a value
    cache.validate()


def test_a_kept_failure_does_not_collect_the_tracebacks_of_its_callers() -> None:
    def load(key: str) -> int:
        raise KeyError(key)

    def depth(error: BaseException) -> int:
        traceback, frames = error.__traceback__, 0
        while traceback is not None:
            traceback, frames = traceback.tb_next, frames + 1
        return frames

    cache: Cache[str, int] = Cache(10, "lru", loads=Loads(negative_ttl=5))
    depths = []
    for _ in range(20):
        with pytest.raises(KeyError) as caught:
            cache.get_or_load("k", load)
        depths.append(depth(caught.value))
    assert max(depths[1:]) <= depths[0]


@pytest.mark.parametrize("wrong", [
    {"ttl": 0}, {"ttl": -1}, {"ttl": "soon"}, {"ttl": float("nan")}, {"idle": 0}, {"jitter": 1.0}, {"jitter": -0.1},
    {"refresh": 0.0}, {"refresh": 1.5}, {"refresh": "early"}, {"stale": -1}, {"compute": 5}, {"sweep": 0},
    {"ttl": True},
])  # fmt: skip
def test_a_wrong_expiry_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(KvpredictError, match=next(iter(wrong))):
        Expiry(**wrong)


def test_a_wrong_ttl_of_a_put_names_the_key() -> None:
    cache: Cache[str, int] = Cache(10, "lru", expiry=Expiry(compute=lambda key, value: "x"))  # type: ignore[arg-type, return-value]
    with pytest.raises(KvpredictError, match="compute returned for key 'k'"):
        cache["k"] = 1
    with pytest.raises(KvpredictError, match="ttl for key 'k'"):
        cache.put("k", 1, ttl=-1)
    with pytest.raises(KvpredictError, match="ttl or expiry"):
        Cache(10, ttl=1, expiry=Expiry())
    assert duration("t", 0, least=0.0) == 0.0


@pytest.mark.parametrize("name", ["ttl", "idle", "sweep", "stale", "retry", "jitter", "refresh"])
def test_text_is_no_number(name: str) -> None:
    for text in ("5", b"5", "0.5"):
        with pytest.raises(KvpredictError, match=name):
            Expiry(**{name: text})  # type: ignore[arg-type]


def test_a_ttl_is_a_number_wherever_it_is_given() -> None:
    for give in (
        lambda: Cache(10, ttl="5"),
        lambda: TieredCache(10, tiers=[], ttl="5"),
        lambda: Cache(10).put("k", 1, ttl="5"),
        lambda: TieredCache(10, tiers=[]).put("k", 1, ttl="5"),
        lambda: Cache(10).get_or_load("k", len, ttl="5"),
    ):
        with pytest.raises(KvpredictError, match=r"ttl.* must be a number of seconds, above 0, got '5'"):
            give()  # type: ignore[no-untyped-call]
    cache: Cache[str, int] = Cache(10, ttl=decimal.Decimal(5))  # type: ignore[arg-type]
    cache.put("k", 1)
    assert cache["k"] == 1


def test_expiry_holds_under_threads() -> None:
    cache: Cache[int, list[float]] = Cache(64, "s3fifo", expiry=Expiry(ttl=0.02, jitter=0.5, idle=0.015))
    stop = time.monotonic() + 1.0
    errors: list[Any] = []

    def work(seed: int) -> None:
        keys = zipf_mix(2000, 200, seed).tolist()
        while time.monotonic() < stop:
            for key in keys:
                before = time.monotonic()
                put = cache.get(key)  # when the put had ended, once it has: its time begins no later
                if put is None:
                    put = []
                    cache.put(key, put)
                    put.append(time.monotonic())
                elif put and before - put[0] > 0.02:
                    errors.append(before - put[0])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    cache.validate()
    assert cache.stats().expirations > 0
