"""One load for all who miss a key, threads and coroutines mixed; limits, deadlines, and loads overtaken by writes."""

import asyncio
import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kvpredict.cache import BloomFilter, Cache, Expiry, Loaded, Loads, LoadTimeout, TooManyLoads, UnknownKey, loads
from kvpredict.core.errors import KvpredictError
from tests.cache.clock import Clock
from tests.cache.test_threads import together, until


def waiting(cache: Cache[Any, Any]) -> int:
    return len(cache._flights._waiting)


# --- coroutines ------------------------------------------------------------------------------------------------------


def test_coroutines_share_one_load() -> None:
    cache: Cache[str, object] = Cache(10, "lru")
    calls = []

    async def load(key: str) -> object:
        calls.append(key)
        while waiting(cache) < 7:
            await asyncio.sleep(0.001)
        return object()

    async def main() -> list[object]:
        return await asyncio.gather(*(cache.aget_or_load("k", load) for _ in range(8)))

    values = asyncio.run(main())
    assert calls == ["k"]
    assert all(value is values[0] for value in values)
    assert asyncio.run(main())[0] is values[0]
    assert (cache.stats().loads, cache.stats().hits, cache.stats().misses) == (1, 8, 8)


@pytest.mark.parametrize("leader", ["thread", "coroutine"])
def test_threads_and_coroutines_share_one_load(leader: str) -> None:
    cache: Cache[str, object] = Cache(10, "lru")
    calls: list[str] = []
    started = threading.Event()

    def load(key: str) -> object:
        calls.append("thread")
        started.set()
        until(lambda: waiting(cache) == 15)
        return object()

    async def aload(key: str) -> object:
        calls.append("coroutine")
        started.set()
        while waiting(cache) < 15:
            await asyncio.sleep(0.001)
        return object()

    async def coroutines() -> list[object]:
        return await asyncio.gather(*(cache.aget_or_load("k", aload) for _ in range(8)))

    with ThreadPoolExecutor(9) as pool:
        if leader == "coroutine":
            loop = pool.submit(asyncio.run, coroutines())
            assert started.wait(20)
            threads = [pool.submit(cache.get_or_load, "k", load) for _ in range(8)]
        else:
            threads = [pool.submit(cache.get_or_load, "k", load)]
            assert started.wait(20)
            threads += [pool.submit(cache.get_or_load, "k", load) for _ in range(7)]
            loop = pool.submit(asyncio.run, coroutines())
        values = [*loop.result(30), *(thread.result(30) for thread in threads)]
    assert calls == [leader]
    assert len(set(map(id, values))) == 1
    assert waiting(cache) == 0
    cache.validate()


def test_a_plain_loader_and_a_cached_value_may_be_awaited() -> None:
    cache: Cache[str, int] = Cache(10, "lru", loader=len)

    async def main() -> list[int]:
        return [await cache.aget_or_load("abc"), await cache.aget_or_load("abc"), await cache.aget_or_load("b", ord)]

    assert asyncio.run(main()) == [3, 3, 98]


def test_a_coroutine_that_is_cancelled_hands_its_load_on() -> None:
    cache: Cache[str, int] = Cache(10, "lru")
    outcome: list[str] = []

    async def hang(key: str) -> int:
        outcome.append("hangs")
        await asyncio.sleep(60)
        return 0

    async def load(key: str) -> int:
        outcome.append("loads")
        return 7

    async def main() -> int:
        first = asyncio.create_task(cache.aget_or_load("k", hang))
        await asyncio.sleep(0.01)
        second = asyncio.create_task(cache.aget_or_load("k", load))
        third = asyncio.create_task(cache.aget_or_load("k", load))
        await asyncio.sleep(0.01)
        third.cancel()  # who gives up waiting disturbs nobody
        await asyncio.sleep(0.01)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        return await second

    assert asyncio.run(main()) == 7
    assert outcome == ["hangs", "loads"]
    assert waiting(cache) == 0


def test_coroutines_get_the_failure_of_their_leader() -> None:
    cache: Cache[str, int] = Cache(10, "lru", loads=Loads(negative_ttl=60))
    calls = []

    async def load(key: str) -> int:
        calls.append(key)
        await asyncio.sleep(0.02)
        raise KeyError("no such thing")

    async def main() -> list[Any]:
        tasks = (cache.aget_or_load("k", load) for _ in range(5))
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert all(isinstance(error, KeyError) for error in [*asyncio.run(main()), *asyncio.run(main())])
    assert calls == ["k"]


def test_a_task_that_needs_its_own_key_is_an_error() -> None:
    cache: Cache[str, int] = Cache(10, "lru")

    async def load(key: str) -> int:
        return await cache.aget_or_load(key, load)

    with pytest.raises(KvpredictError, match="waits for itself"):
        asyncio.run(cache.aget_or_load("k", load))


@pytest.mark.parametrize("how", ["gather", "task", "late", "nested"])
def test_a_task_that_needs_its_own_key_through_others_is_an_error(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loads, "LOOK", 0.02)
    cache: Cache[str, int] = Cache(10, "lru")

    async def again(key: str) -> int:
        return (await asyncio.gather(cache.aget_or_load(key, load)))[0]

    async def load(key: str) -> int:
        if how == "gather":
            return await again(key)
        if how == "nested":
            return (await asyncio.gather(asyncio.sleep(0), asyncio.create_task(again(key))))[1]
        task = asyncio.create_task(cache.aget_or_load(key, load))
        if how == "late":
            await asyncio.sleep(0.01)
        return await task

    with pytest.raises(KvpredictError, match="waits for itself"):
        asyncio.run(asyncio.wait_for(cache.aget_or_load("k", load), 10))
    assert waiting(cache) == 0


def test_two_loads_that_need_each_other_through_tasks_are_an_error() -> None:
    cache: Cache[int, int] = Cache(10, "lru")

    async def load(key: int) -> int:
        await asyncio.sleep(0.01)
        return sum(await asyncio.gather(asyncio.sleep(0, 1), cache.aget_or_load(1 - key, load)))

    async def main() -> list[Any]:
        both = asyncio.gather(*(cache.aget_or_load(key, load) for key in (0, 1)), return_exceptions=True)
        return await asyncio.wait_for(both, 10)

    outcome = asyncio.run(main())
    assert all(isinstance(each, KvpredictError) and "waits for itself" in str(each) for each in outcome)


def test_a_task_that_outlives_its_load_may_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loads, "LOOK", 0.005)
    cache: Cache[str, int] = Cache(10, "lru")
    tasks: list[Any] = []

    async def load(key: str) -> int:
        tasks.append(asyncio.create_task(cache.aget_or_load(key, load)))
        tasks.append(asyncio.create_task(cache.aget_or_load("other", other)))
        await asyncio.sleep(0.03)
        return 7

    async def other(key: str) -> int:
        return await cache.aget_or_load("k", load) + 1

    async def main() -> list[int]:
        return [await cache.aget_or_load("k", load), *[await task for task in tasks]]

    assert asyncio.run(main()) == [7, 7, 8]


@pytest.mark.parametrize("limit", [None, 1])
def test_a_load_whose_event_loop_was_closed_is_begun_anew(limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loads, "LOOK", 0.02)
    cache: Cache[str, int] = Cache(10, "lru", loads=Loads(limit=limit))
    started = threading.Event()

    async def load(key: str) -> int:
        started.set()
        await asyncio.sleep(60)
        return 1

    def begin() -> tuple[Any, Any]:
        started.clear()
        loop = asyncio.new_event_loop()
        task: Any = loop.create_task(cache.aget_or_load("k", load))
        loop.run_until_complete(asyncio.sleep(0.01))
        assert started.is_set()
        return loop, task

    loop, task = begin()
    loop.close()
    task._log_destroy_pending = False
    assert cache.get_or_load("k", lambda key: 7) == 7
    cache.delete("k")
    del task  # its coroutine is let go of, and gives nothing back a second time
    gc.collect()
    loop, task = begin()
    with ThreadPoolExecutor(1) as pool:
        waiter = pool.submit(cache.get_or_load, "k", lambda key: 8)
        until(lambda: waiting(cache) == 1)
        loop.close()
        task._log_destroy_pending = False
        assert waiter.result(20) == 8
    cache.delete("k")
    assert asyncio.run(cache.aget_or_load("k", lambda key: 9)) == 9
    assert (waiting(cache), cache._flights.by_key) == (0, {})
    assert cache._gate is None or cache._gate.running == 0


def test_a_thread_that_waits_for_its_own_event_loop_is_an_error() -> None:
    cache: Cache[str, int] = Cache(10, "lru")

    async def load(key: str) -> int:
        await asyncio.sleep(0.05)
        return 1

    async def main() -> None:
        task = asyncio.create_task(cache.aget_or_load("k", load))
        await asyncio.sleep(0.01)
        with pytest.raises(KvpredictError, match="use aget_or_load"):
            cache.get_or_load("k", lambda key: 2)
        assert await task == 1

    asyncio.run(main())


def test_a_coroutine_function_given_to_a_thread_is_an_error() -> None:
    async def load(key: str) -> int:
        return 1

    cache: Cache[str, Any] = Cache(10, "lru")
    with pytest.raises(KvpredictError, match="use aget_or_load"):
        cache.get_or_load("k", load)
    assert len(cache) == 0


def test_a_coroutine_refreshes_in_its_event_loop() -> None:
    clock = Clock()
    cache: Cache[str, int] = Cache(10, "lru", expiry=Expiry(ttl=10, refresh=0.5), clock=clock)
    calls = []

    async def load(key: str) -> int:
        calls.append(key)
        return len(calls)

    async def main() -> None:
        assert await cache.aget_or_load("k", load) == 1
        clock.now += 5
        assert await cache.aget_or_load("k", load) == 1
        await asyncio.sleep(0.01)
        assert await cache.aget_or_load("k", load) == 2

    asyncio.run(main())
    assert cache.stats().refreshes == 1


def test_a_thread_without_an_event_loop_leaves_the_refresh_to_coroutines() -> None:
    clock = Clock()
    calls: list[int] = []

    async def load(key: int) -> int:
        calls.append(key)
        return len(calls)

    expiry = Expiry(ttl=10, refresh=0.5)
    cache: Cache[int, Any] = Cache(10, "lru", expiry=expiry, clock=clock, loader=load)
    cache[1] = 0
    clock.now += 6
    assert [cache.get(1), cache[1], cache.get_or_load(1), cache.get_many([1])] == [0, 0, 0, {1: 0}]
    assert calls == []

    async def main() -> None:
        assert cache.get(1) == 0
        await asyncio.sleep(0.01)
        assert cache.get(1) == 1

    asyncio.run(main())


# --- the cache's own loader, refresh, what a loader may say ----------------------------------------------------------


def test_the_caches_own_loader_reads_through() -> None:
    cache: Cache[int, int] = Cache(10, "lru", loader=lambda key: key * 2)
    assert cache.get(4) is None  # a plain get does not load
    assert cache.get_or_load(4) == 8
    assert cache.get_or_load(4, lambda key: -1) == 8
    assert cache.get_or_load(5, lambda key: -1) == -1
    with pytest.raises(KvpredictError, match="no loader"):
        Cache(10, "lru").get_or_load(1)


def test_refresh_loads_what_is_cached() -> None:
    source = {"a": 1}
    cache: Cache[str, int] = Cache(10, "lru", loader=source.__getitem__)
    assert cache.get_or_load("a") == 1
    source["a"] = 2
    assert cache.get_or_load("a") == 1
    assert cache.refresh("a") == cache["a"] == 2
    del source["a"]
    with pytest.raises(KeyError):
        cache.refresh("a")
    assert cache["a"] == 2


def test_a_loader_says_how_its_value_is_kept() -> None:
    clock = Clock()
    cache: Cache[str, str] = Cache(10, "lru", weigher=len, clock=clock)
    loaded = Loaded("value", size=4, ttl=9, tags=("t",), version=3)
    assert cache.get_or_load("k", lambda key: loaded) == "value"
    assert cache.stats().size == 4
    assert not cache.put("k", "older", version=2)
    assert cache["k"] == "value"
    assert cache.invalidate_tags("t") == 1
    assert cache.get_or_load("k", lambda key: loaded) == "value"
    clock.now += 9
    assert cache.get("k") is None


def test_many_callers_and_many_keys_load_each_key_once() -> None:
    cache: Cache[int, int] = Cache(1000, "s3fifo")
    loads = [0] * 300

    def load(key: int) -> int:
        loads[key] += 1
        time.sleep(0.0001)
        return key

    def work(i: int) -> None:
        for key in range(300):
            assert cache.get_or_load(key, load) == key

    together(work)
    assert loads == [1] * 300


@pytest.mark.parametrize("invalidate", ["invalidate", "invalidate_tags", "put_if"])
def test_a_load_overtaken_by_an_invalidation_is_not_cached(invalidate: str) -> None:
    cache: Cache[str, str] = Cache(10, "lru")
    loading, go_on = threading.Event(), threading.Event()

    def load(key: str) -> str:
        loading.set()
        assert go_on.wait(20)
        return "old"

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(cache.get_or_load, "k", load, tags=("t",))
        assert loading.wait(20)
        if invalidate == "invalidate":
            cache.invalidate("k")
        elif invalidate == "invalidate_tags":
            cache.invalidate_tags("t")
        else:
            assert cache.put_if("k", "new", None)
        go_on.set()
        assert future.result(20) == "old"
    assert cache.get("k") == ("new" if invalidate == "put_if" else None)


# --- deadlines and limits --------------------------------------------------------------------------------------------


def test_a_waiter_gives_up_at_its_deadline_and_others_go_on() -> None:
    cache: Cache[str, int] = Cache(10, "lru", loads=Loads(timeout=0.05))
    go_on = threading.Event()

    def hang(key: str) -> int:
        assert go_on.wait(30)
        return 1

    async def coroutine() -> int:
        return await cache.aget_or_load("k", hang)

    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(cache.get_or_load, "k", hang)
        until(lambda: "k" in cache._flights.by_key)
        started = time.monotonic()
        with pytest.raises(LoadTimeout, match=r"'k' .* 0.05 s"):
            cache.get_or_load("k", hang)
        with pytest.raises(LoadTimeout):
            asyncio.run(coroutine())
        with pytest.raises(TimeoutError):
            cache.get_or_load("k", hang, timeout=0.01)
        assert time.monotonic() - started < 5
        assert cache.get_or_load("other", len) == 5
        go_on.set()
        assert leader.result(20) == 1
    assert cache["k"] == 1
    assert waiting(cache) == 0


def test_a_waiter_takes_a_stale_value_at_its_deadline() -> None:
    clock = Clock()
    cache: Cache[str, int] = Cache(10, "lru", expiry=Expiry(ttl=5, stale=60), loads=Loads(timeout=0.02), clock=clock)
    cache["k"] = 1
    clock.now += 5
    go_on = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(cache.get_or_load, "k", lambda key: 2 if go_on.wait(30) else 3)
        until(lambda: "k" in cache._flights.by_key)
        assert cache.get_or_load("k", len) == 1
        go_on.set()
        assert leader.result(20) == 2
    assert cache["k"] == 2


@pytest.mark.parametrize("kind", ["threads", "coroutines"])
def test_no_more_loads_at_once_than_the_limit(kind: str) -> None:
    cache: Cache[int, int] = Cache(100, "lru", loads=Loads(limit=3))
    running, most, lock = [0], [0], threading.Lock()

    def begin() -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])

    def load(key: int) -> int:
        begin()
        time.sleep(0.005)
        running[0] -= 1
        return key

    async def aload(key: int) -> int:
        begin()
        await asyncio.sleep(0.005)
        running[0] -= 1
        return key

    async def main() -> list[int]:
        return await asyncio.gather(*(cache.aget_or_load(key, aload) for key in range(40)))

    if kind == "threads":
        together(lambda i: [cache.get_or_load(10 * i + j, load) for j in range(5)])
    else:
        assert asyncio.run(main()) == list(range(40))
    assert most == [3]
    assert cache._gate is not None
    assert cache._gate.running == 0
    assert cache.stats().loads == 40


def test_beyond_the_limit_loads_fail_at_once_if_asked_to() -> None:
    cache: Cache[str, int] = Cache(10, "lru", loads=Loads(limit=1, when_full="fail"))
    go_on = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(cache.get_or_load, "k", lambda key: 1 if go_on.wait(30) else 2)
        until(lambda: cache._gate is not None and cache._gate.running == 1)
        with pytest.raises(TooManyLoads, match="1 loads"):
            cache.get_or_load("other", len)
        go_on.set()
        assert leader.result(20) == 1
    assert cache.get_or_load("other", len) == 5
    stats = cache.stats()
    assert (stats.loads, stats.load_failures, stats.load_refusals) == (2, 0, 1)


def test_waiting_for_a_turn_ends_at_the_deadline() -> None:
    cache: Cache[str, int] = Cache(10, "lru", loads=Loads(limit=1, timeout=0.03))
    go_on = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(cache.get_or_load, "k", lambda key: 1 if go_on.wait(30) else 2)
        until(lambda: cache._gate is not None and cache._gate.running == 1)
        with pytest.raises(LoadTimeout, match="no turn"):
            cache.get_or_load("a", len)
        with pytest.raises(LoadTimeout, match="no turn"):
            asyncio.run(cache.aget_or_load("b", len))
        go_on.set()
        leader.result(20)
    assert cache._gate is not None
    assert cache._gate.running == 0
    assert cache.get_or_load("a", len) == 1


def test_a_load_within_a_load_needs_no_permit_of_its_own() -> None:
    cache: Cache[int, int] = Cache(100, "lru", loads=Loads(limit=1, timeout=5))

    def factorial(n: int) -> int:
        return n * cache.get_or_load(n - 1, factorial) if n else 1

    async def afactorial(n: int) -> int:
        return n * await cache.aget_or_load(n - 1, afactorial) if n else 1

    assert cache.get_or_load(9, factorial) == 362880
    cache.clear()
    assert asyncio.run(cache.aget_or_load(9, afactorial)) == 362880


def test_keys_that_are_not_known_are_not_loaded() -> None:
    known = BloomFilter(100)
    known.update(range(50))
    cache: Cache[int, int] = Cache(100, "lru", loads=Loads(known=known))
    calls = []

    def load(key: int) -> int:
        calls.append(key)
        return key

    assert cache.get_or_load(7, load) == 7
    with pytest.raises(UnknownKey, match="1007"):
        cache.get_or_load(1007, load)
    assert calls == [7]
    cache[1007] = 1  # now it exists
    cache.delete(1007)
    assert cache.get_or_load(1007, load) == 1007


@pytest.mark.parametrize("wrong", [
    {"limit": 0}, {"limit": 1.5}, {"when_full": "panic"}, {"timeout": 0}, {"negative_ttl": -1},
    {"negative": (int,)}, {"known": 5}, {"workers": 0},
])  # fmt: skip
def test_wrong_loads_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(KvpredictError, match=next(iter(wrong))):
        Loads(**wrong)
