"""Real threads, interrupted calls, loaders that fail, wait for each other or come back late."""

import random
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kvpredict.cache import Cache
from kvpredict.core.errors import KvpredictError

THREADS = 8


def together(work: Callable[[int], Any], threads: int = THREADS, timeout: float = 60.0) -> list[Any]:
    """Run ``work(i)`` in threads that start at once; return the results, or raise the first exception."""
    barrier = threading.Barrier(threads)

    def start(i: int) -> Any:
        barrier.wait(timeout)
        return work(i)

    with ThreadPoolExecutor(threads) as pool:
        return [future.result(timeout) for future in [pool.submit(start, i) for i in range(threads)]]


def until(condition: Callable[[], bool], timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


# --- mixed load ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "read_buffer", "weighed"), [
    ("lru", 1, False), ("sieve", 64, True), ("s3fifo", 64, False), ("arc", 7, True), ("random", 64, False),
])  # fmt: skip
def test_threads_leave_a_whole_cache_behind(name: str, read_buffer: int, weighed: bool) -> None:
    weigher = (lambda value: value[1] % 3) if weighed else None
    cache: Cache[int, tuple[int, int]] = Cache(200, name, weigher=weigher, read_buffer=read_buffer)
    lookups = [0] * THREADS

    def work(i: int) -> None:
        rng = random.Random(i)
        for step in range(3000):
            key = int(rng.paretovariate(0.7)) % 800
            draw = rng.random()
            if draw < 0.6:
                lookups[i] += 1
                value = cache.get(key)
                assert value is None or value[0] == key
            elif draw < 0.8:
                cache.put(key, (key, step))
            elif draw < 0.9:
                lookups[i] += 1
                assert cache.get_or_load(key, lambda key, step=step: (key, step))[0] == key
            elif draw < 0.97:
                cache.delete(key)
            elif draw < 0.999:
                cache.stats()
                assert all(key >= 0 for key in cache)
            elif rng.random() < 0.3:
                cache.clear()
            assert len(cache) <= 200

    together(work)
    cache.validate()
    stats = cache.stats()
    assert stats.hits + stats.misses == sum(lookups)
    assert stats.entries == len(cache) == stats.inserts - stats.evictions - stats.deletions
    assert 0 < stats.size <= stats.capacity


@pytest.mark.parametrize("read", ["get", "[]", "in"])
def test_a_value_of_another_size_is_put_without_a_gap(read: str) -> None:
    """Readers take no lock: they find the old value or the new one of a key that always fits."""
    cache: Cache[str, bytes] = Cache(1000, "lru", weigher=len)
    cache.put("a", b"1")
    seen: dict[str, Callable[[], Any]] = {
        "get": lambda: cache.get("a"),
        "[]": lambda: cache["a"],
        "in": lambda: "a" in cache,
    }
    done = threading.Event()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # a loop of nothing else missed it thousands of times when there was a gap

    def work(i: int) -> int:
        if i == 0:
            for step in range(20_000):
                assert cache.put("a", bytes(1 + step % 2))
            done.set()
            return 0
        count = 0
        while not done.is_set():
            assert seen[read]()
            count += 1
        return count

    try:
        reads = sum(together(work, 3))
    finally:
        done.set()
        sys.setswitchinterval(before)
    cache.validate()
    stats = cache.stats()
    assert (stats.misses, stats.entries, stats.updates) == (0, 1, 20_000)
    assert reads > 100
    assert stats.hits == (0 if read == "in" else reads)


def test_swapping_under_load_loses_nothing() -> None:
    cache: Cache[int, int] = Cache(500, "lru")
    kept = range(10_000, 10_400)  # there is room for these and for the churn
    for key in kept:
        cache[key] = key
    for name in ("sieve", "s3fifo", "lru"):  # compiled before the clock starts
        cache.swap_policy(name)
    stop = threading.Event()
    swaps = 0

    def churn(i: int) -> int:
        rounds = 0
        while not stop.is_set():
            for key in range(12 * i, 12 * i + 12):
                cache.put(key, key)
                assert cache.get(key) in (key, None)
                cache.delete(key)
            assert all(cache.peek(key) == key for key in kept)
            rounds += 1
        return rounds

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(churn, i) for i in range(4)]
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline and not any(future.done() for future in futures):
            for name in ("sieve", "s3fifo", "lru"):
                cache.swap_policy(name)
                swaps += 1
        stop.set()
        assert min(future.result(20) for future in futures) > 0
    assert swaps > 3
    cache.validate()
    assert sorted(cache) == list(kept)
    assert cache.stats().evictions == 0


def test_hits_are_all_counted() -> None:
    cache: Cache[int, int] = Cache(10, "sieve")
    cache[1] = 1

    def work(i: int) -> None:
        for _ in range(20_000):
            assert cache.get(1) == 1

    together(work)
    assert cache.stats().hits == THREADS * 20_000


# --- loading ---------------------------------------------------------------------------------------------------------


def test_a_stampede_loads_once() -> None:
    cache: Cache[str, object] = Cache(10, "lru")
    calls = []
    waiting = cache._flights._waiting

    def load(key: str) -> object:
        calls.append(key)
        until(lambda: len(waiting) == THREADS - 1)
        return object()

    values = together(lambda i: cache.get_or_load("k", load))
    assert calls == ["k"]
    assert all(value is values[0] for value in values)
    stats = cache.stats()
    assert (stats.loads, stats.misses, stats.hits, stats.inserts) == (1, THREADS, 0, 1)
    assert not waiting
    assert not cache._flights.by_key


def test_different_keys_load_at_the_same_time() -> None:
    cache: Cache[int, int] = Cache(10, "lru")
    meeting = threading.Barrier(4)

    def load(key: int) -> int:
        meeting.wait(20)  # passes only if all four loads are under way
        return key

    assert together(lambda i: cache.get_or_load(i, load), threads=4) == [0, 1, 2, 3]


def test_a_failing_loader_fails_its_waiters_and_caches_nothing() -> None:
    cache: Cache[str, int] = Cache(10, "lru")
    error = ValueError("the source is down")
    calls = []

    def load(key: str) -> int:
        calls.append(key)
        until(lambda: len(cache._flights._waiting) == THREADS - 1)
        raise error

    def work(i: int) -> BaseException | None:
        try:
            cache.get_or_load("k", load)
        except ValueError as raised:
            return raised
        return None

    assert all(raised is error for raised in together(work))
    assert calls == ["k"]
    assert "k" not in cache
    assert cache.stats()[7:9] == (1, 1)  # loads, load_failures
    assert cache.get_or_load("k", lambda key: 5) == 5
    cache.validate()


def test_an_interrupted_load_is_taken_over_by_a_waiter() -> None:
    cache: Cache[str, int] = Cache(10, "lru")
    started = threading.Event()

    def interrupted(key: str) -> int:
        started.set()
        until(lambda: len(cache._flights._waiting) == 1)
        raise KeyboardInterrupt

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get_or_load, "k", interrupted)
        assert started.wait(20)
        second = pool.submit(cache.get_or_load, "k", lambda key: 7)
        assert second.result(20) == 7
        with pytest.raises(KeyboardInterrupt):
            first.result(20)
    assert cache["k"] == 7


@pytest.mark.parametrize("write", ["put", "delete", "clear"])
def test_a_load_overtaken_by_a_write_is_not_cached(write: str) -> None:
    cache: Cache[str, str] = Cache(10, "lru")
    loading, go_on = threading.Event(), threading.Event()

    def load(key: str) -> str:
        loading.set()
        assert go_on.wait(20)
        return "old"

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(cache.get_or_load, "k", load)
        assert loading.wait(20)
        if write == "put":
            cache["k"] = "new"
        elif write == "delete":
            cache.delete("k")
        else:
            cache.clear()
        go_on.set()
        assert future.result(20) == "old"
    assert cache.get("k") == ("new" if write == "put" else None)
    assert not cache._flights.by_key
    cache.validate()


def test_a_loader_may_use_the_cache() -> None:
    cache: Cache[int, int] = Cache(100, "lru")

    def factorial(n: int) -> int:
        cache.put(-n, n)
        return n * cache.get_or_load(n - 1, factorial) if n else 1

    assert cache.get_or_load(20, factorial) == 2432902008176640000
    assert cache[5] == 120
    cache.validate()


def test_a_loader_that_needs_its_own_key_is_an_error() -> None:
    cache: Cache[str, int] = Cache(10, "lru")
    cache["kept"] = 1
    with pytest.raises(KvpredictError, match="'k' waits for itself"):
        cache.get_or_load("k", lambda key: cache.get_or_load(key, lambda key: 1))
    assert list(cache) == ["kept"]
    assert cache.get_or_load("k", lambda key: 2) == 2


def test_loaders_that_wait_for_each_other_are_an_error() -> None:
    cache: Cache[str, int] = Cache(10, "lru")
    both = threading.Barrier(2)

    def load(key: str) -> int:
        both.wait(20)
        return cache.get_or_load("b" if key == "a" else "a", lambda key: 1)

    def work(i: int) -> str:
        try:
            cache.get_or_load("ab"[i], load)
        except KvpredictError as error:
            return str(error)
        return "no error"

    # Whoever closes the circle gets the error, and so does the other, whose loader was waiting for that load.
    assert all("waits for itself" in outcome for outcome in together(work, threads=2))
    assert len(cache) == 0
    assert not cache._flights._waiting


def test_nothing_is_held_while_a_loader_or_weigher_runs() -> None:
    running, go_on = threading.Event(), threading.Event()

    def slow(value: object) -> int:
        running.set()
        assert go_on.wait(20)
        return 1

    cache: Cache[str, Any] = Cache(10, "lru", weigher=lambda value: slow(value) if value == "slow" else 1)
    with ThreadPoolExecutor(1) as pool:
        for call in (lambda: cache.put("k", "slow"), lambda: cache.get_or_load("l", slow)):
            running.clear()
            go_on.clear()
            future = pool.submit(call)
            assert running.wait(20)
            cache["other"] = 1  # would wait for ever
            assert cache["other"] == 1
            cache.stats()
            go_on.set()
            future.result(20)
    assert sorted(cache) == ["k", "l", "other"]


# --- calls from within a call ----------------------------------------------------------------------------------------


class Meddler:
    """A key that calls ``meddle`` when it is compared, which happens in the middle of the cache's own work."""

    def __init__(self, meddle: Callable[[], Any]) -> None:
        self.meddle = meddle

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        self.meddle()
        return self is other


@pytest.mark.parametrize("meddle", ["put", "delete", "clear", "get", "load", "swap", "stats", "same"])
def test_a_call_from_within_a_call_waits_its_turn(meddle: str) -> None:
    cache: Cache[Any, Any] = Cache(3, "lru", read_buffer=1)
    cache.swap_policy("sieve")
    armed = [False]
    meddled = [0]

    def act() -> None:
        if not armed[0]:
            return
        armed[0] = False
        meddled[0] += 1
        {
            "put": lambda: cache.put("late", 1),
            "delete": lambda: cache.delete("x"),
            "clear": cache.clear,
            "get": lambda: cache.get("x"),
            "load": lambda: cache.get_or_load("loaded", lambda key: 1),
            "swap": lambda: cache.swap_policy("lru"),
            "stats": cache.stats,
            "same": lambda: cache.put(1, "meddled"),
        }[meddle]()

    for _ in range(6):
        for call in (
            lambda: cache.put(1, 0),
            lambda: cache.put(Meddler(act), 0),  # the same hash as 1, so that dicts compare
            lambda: cache.get_or_load(Meddler(act), lambda key: 1),
            lambda: cache.put("x", 0),
            lambda: cache.delete(1),
        ):
            armed[0] = True
            call()
            cache.validate()
    assert meddled[0] >= 6
    assert len(cache) <= 3


def test_endless_calls_from_within_a_call_are_an_error() -> None:
    cache: Cache[Any, int] = Cache(3, "lru")
    cache[Meddler(lambda: cache.put(1, 1))] = 0
    with pytest.raises(RecursionError):
        cache[1] = 1  # every put of 1 compares it with the other key first
    cache.validate()
    cache[1] = 1
    assert cache[1] == 1


class Touchy:
    """A key that cannot be compared, as one that holds an array."""

    touched = True

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        if self.touched:
            raise ValueError("more than one truth value")
        return self is other


@pytest.mark.parametrize("policy", ["lru", "s3fifo"])
def test_a_key_that_cannot_be_compared_costs_no_entry(policy: str, caplog: pytest.LogCaptureFixture) -> None:
    removed: list[Any] = []
    cache: Cache[Any, Any] = Cache(5, policy, on_removal=lambda *each: removed.append(each))
    for key in range(4):
        cache.put(key, key, tags=("t",))
    cache.get(3)
    for call in (
        lambda: cache.put(Touchy(), 0),
        lambda: cache.put_if(Touchy(), 0, None),
        lambda: cache.put(Touchy(), 0, tags=("t",)),
        lambda: cache.delete(Touchy()),
        lambda: cache.pop(Touchy()),
        lambda: cache.get_or_load(Touchy(), lambda key: 0),
        lambda: cache.get(Touchy()),
    ):
        with pytest.raises(ValueError, match="truth value"):
            call()  # type: ignore[no-untyped-call]
        cache.validate()
    assert {key: cache[key] for key in range(4)} == {key: key for key in range(4)}
    assert (removed, caplog.records, cache.stats().deletions) == ([], [], 0)
    assert cache.invalidate_tags("t") == 4
    assert len(cache) == 0


def test_a_cache_that_was_half_changed_forgets_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    removed: list[Any] = []
    cache: Cache[Any, Any] = Cache(2, "lru", read_buffer=1, on_removal=lambda *each: removed.append(each))
    touchy = Touchy()
    touchy.touched = False
    cache[1] = "one"
    cache[touchy] = "touchy"
    cache.get(1)
    touchy.touched = True
    with pytest.raises(ValueError, match="truth value"):
        cache["new"] = 3  # evicts touchy; looking it up compares it with 1
    assert len(cache) == 0
    assert "forgets its 2 entries" in caplog.text
    cache.validate()
    assert cache.stats().deletions == 2
    cache["new"] = 3
    assert sorted(value for _, value, _ in removed) == ["one", "touchy"]


def test_a_call_from_within_an_eviction_waits_its_turn() -> None:
    cache: Cache[Any, int] = Cache(2, "lru", read_buffer=1)
    meddled = []

    def act() -> None:
        if not meddled:
            meddled.append(1)
            assert cache.put("late", 1)
            assert cache.put("later", 2)
            assert "later" not in cache  # the eviction is not over yet

    armed = Meddler(lambda: None)
    cache[1] = 1
    cache[armed] = 2
    cache.get(1)
    armed.meddle = act
    cache["new"] = 3  # evicts the meddler; looking it up compares it with 1
    assert meddled
    cache.validate()
    assert sorted(cache) == ["late", "later"]


def test_a_finalizer_may_use_the_cache() -> None:
    cache: Cache[int, Any] = Cache(2, "lru")
    finished = []

    class Value:
        def __init__(self, number: int) -> None:
            self.number = number

        def __del__(self) -> None:
            cache.put(1000 + self.number % 3, "from a finalizer")
            finished.append(self.number)

    for number in range(50):
        cache.put(number, Value(number))
    cache.clear()
    assert sorted(finished) == list(range(50))
    cache.validate()
    assert len(cache) <= 2


def test_a_key_that_cannot_be_compared_leaves_a_whole_cache() -> None:
    cache: Cache[Any, int] = Cache(3, "lru")

    def refuse() -> None:
        raise ArithmeticError("not comparable")

    cache["a"] = 1
    cache[1] = 2
    with pytest.raises(ArithmeticError):
        cache[Meddler(refuse)] = 3
    cache.validate()
    for key in range(9):
        cache[key] = key
    cache.validate()
    assert len(cache) == 3
