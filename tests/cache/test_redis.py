"""A real Redis, and a real cluster of three: shared values, invalidation between processes, and servers that die."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from kvpredict.cache import Cache, Guarded, RedisInvalidation, RedisTier, TieredCache, TierError, WriteThrough
from kvpredict.core.errors import KvpredictError
from tests.cache.servers import Server, needs_redis, one_server, three_nodes
from tests.cache.test_threads import until

pytestmark = needs_redis


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with one_server(tmp_path_factory.mktemp("redis")) as started:
        yield started


def tiered(url: str, **options: Any) -> TieredCache[Any, Any]:
    cluster = options.pop("cluster", False)
    tier = RedisTier(url, prefix=options.pop("prefix", "t:"), cluster=cluster, timeout=options.pop("timeout", 0.5))
    return TieredCache(2, "lru", tiers=[Guarded(tier, pause=0.1)], **options)


def test_processes_share_what_they_load(server: Server) -> None:
    code = (
        "from kvpredict.cache import RedisTier, TieredCache\n"
        f"with TieredCache(10, tiers=[RedisTier({server.url!r}, prefix='shared:', timeout=2.0)]) as cache:\n"
        "    print(cache.get_or_load(('user', 1), lambda key: {'name': 'Ann', 'raw': b'x'}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    with tiered(server.url, prefix="shared:") as cache:
        assert cache.get(("user", 1)) == {"name": "Ann", "raw": b"x"}
        cache.delete(("user", 1))
    with tiered(server.url, prefix="shared:") as cache:
        assert cache.get(("user", 1)) is None


def test_values_end_in_redis_too(server: Server) -> None:
    with tiered(server.url, prefix="ttl:", ttl=0.2) as cache, redis.Redis.from_url(server.url) as client:
        cache.put("a", 1)
        assert 0 < client.pttl(b'ttl:"a"') <= 200
        cache.put("b", 1, ttl=5000)
        assert 3_599_000 <= client.pttl(b'ttl:"b"') <= 3_600_000  # the tier's own limit
        time.sleep(0.25)
        assert cache.get("a") is None


def test_clear_takes_only_what_has_the_prefix(server: Server) -> None:
    with tiered(server.url, prefix="c[1]*:") as cache, redis.Redis.from_url(server.url) as client:
        client.set("c1x:other", 1)
        client.set("c[1]*", 1)
        for key in range(20):
            cache.put(key, key)
        cache.clear()
        assert [cache.get(key) for key in range(20)] == [None] * 20
        assert client.mget("c1x:other", "c[1]*") == [b"1", b"1"]


def test_a_wrong_address_is_told() -> None:
    with pytest.raises(KvpredictError, match="no address"):
        RedisTier("localhost:6379")


# --- a server that dies, hangs and comes back ------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_a_redis_that_fails_under_load_slows_nobody_down_and_comes_back(tmp_path: Path, fault: str) -> None:
    with one_server(tmp_path) as server:
        cache = tiered(server.url, timeout=0.05)
        source = dict.fromkeys(range(50), 0)
        stop, errors, slowest = threading.Event(), [], [0.0]
        calm = threading.Event()  # while set, the breaker has had time to open

        def load_on() -> None:
            n = 0
            while not stop.is_set():
                n += 1
                started, measured = time.monotonic(), calm.is_set()
                try:
                    if n % 5 == 0:
                        source[n % 50] += 1  # this thread alone writes
                        cache.delete(n % 50)
                    elif cache.get_or_load(n % 50, source.__getitem__) != source[n % 50]:
                        errors.append(("stale", n))
                except Exception as error:
                    errors.append((error, n))
                if measured and calm.is_set():
                    slowest[0] = max(slowest[0], time.monotonic() - started)

        thread = threading.Thread(target=load_on)
        thread.start()
        try:
            until(lambda: cache.tier_stats()[0].hits > 50)
            server.kill() if fault == "kill" else server.freeze()
            until(lambda: not cache.tier_stats()[0].up)
            calm.set()
            time.sleep(0.7)
            calm.clear()
            server.start() if fault == "kill" else server.thaw()
            before = cache.tier_stats()[0].hits
            until(lambda: cache.tier_stats()[0].up)
            until(lambda: cache.tier_stats()[0].hits > before + 50)
        finally:
            stop.set()
            thread.join()
            cache.close()
        assert errors == []
        assert slowest[0] < 1.0  # a trial now and then takes the tier's timeout of 0.05 s


def test_a_cluster_serves_and_survives_a_lost_node(tmp_path: Path) -> None:
    with three_nodes(tmp_path) as nodes:
        url = f"redis://127.0.0.1:{nodes[0].port}"
        with tiered(url, cluster=True, prefix="cluster:") as cache:
            for key in range(60):
                assert cache.get_or_load(key, lambda key: key * 2) == key * 2
            assert [cache.get(key) for key in range(60)] == [key * 2 for key in range(60)]
            counts = []
            for node in nodes:
                with redis.Redis(port=node.port) as client:
                    counts.append(client.dbsize())
            assert sum(counts) == 60
            assert min(counts) > 5  # spread over all three
            nodes[2].kill()
            loads = []
            for _ in range(3):
                for key in range(60):
                    assert cache.get_or_load(key, lambda key: loads.append(key) or key * 2) == key * 2
            assert len(loads) >= counts[2]
            nodes[2].start()

            # Its values are gone with it; the cluster takes it back, and the cache uses it again.
            def all_is_well() -> bool:
                before = cache.tier_stats()[0]
                assert all(cache.get_or_load(key, lambda key: key * 2) == key * 2 for key in range(60))
                after = cache.tier_stats()[0]
                return after.up and after.errors == before.errors and after.hits > before.hits + 50

            until(all_is_well, 60)
            cache.clear()
            assert [cache.get(key) for key in range(60)] == [None] * 60


# --- invalidation between processes ----------------------------------------------------------------------------------


def test_a_change_in_one_process_reaches_the_others(server: Server) -> None:
    here: Cache[str, int] = Cache(10)
    there: Cache[str, int] = Cache(10)
    with (
        RedisInvalidation(here, server.url, channel="a") as sender,
        RedisInvalidation(there, server.url, channel="a") as receiver,
        RedisInvalidation(Cache[str, int](10), server.url, channel="b") as stranger,
    ):
        assert sender.wait_connected()
        assert receiver.wait_connected()
        assert stranger.wait_connected()
        for cache in (here, there):
            cache.put("k", 1)
            cache.put("tagged", 1, tags=("t",))
            cache.put("versioned", 1, version=5)
        assert sender.publish("k") == 2
        until(lambda: "k" not in there)
        assert "k" in here
        sender.publish(tags=("t",))
        until(lambda: "tagged" not in there)
        sender.publish("versioned", before=5)
        sender.publish("marker")
        until(lambda: receiver.received == 4)
        assert "versioned" in there
        sender.publish("versioned", before=6)
        until(lambda: "versioned" not in there)
        assert (sender.received, stranger.received) == (0, 0)


def test_write_through_tells_the_others(server: Server) -> None:
    source = {"k": 1}
    here: Cache[str, int] = Cache(10)
    there: Cache[str, int] = Cache(10, loader=source.__getitem__)
    with (
        RedisInvalidation(here, server.url, channel="w") as sender,
        RedisInvalidation(there, server.url, channel="w") as receiver,
    ):
        assert sender.wait_connected()  # which empties its cache
        assert receiver.wait_connected()
        store = WriteThrough(here, source.__setitem__, bus=sender)
        assert there.get_or_load("k") == 1
        store.put("k", 2)
        until(lambda: there.get_or_load("k") == 2, 5)
        assert here["k"] == 2


@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_nothing_is_stale_past_two_heartbeats_while_redis_is_away(tmp_path: Path, fault: str) -> None:
    heartbeat = 0.3
    with one_server(tmp_path) as server:
        source = {"k": 0}
        cache: Cache[str, int] = Cache(10, loader=source.__getitem__)
        changed: list[tuple[float, int]] = [(time.monotonic(), 0)]
        with RedisInvalidation(cache, server.url, heartbeat=heartbeat) as bus:
            assert bus.wait_connected()
            assert cache.get_or_load("k") == 0
            server.kill() if fault == "kill" else server.freeze()
            stale = 0.0
            end = time.monotonic() + 2.0
            while time.monotonic() < end:
                source["k"] += 1  # changed elsewhere, and nobody can be told
                changed.append((time.monotonic(), source["k"]))
                value = cache.get_or_load("k")
                now = time.monotonic()
                overtaken = next((at for at, version in changed if version > value), now)
                stale = max(stale, now - overtaken)
                time.sleep(0.005)
            assert not bus.connected
            assert bus.lost == 1
            assert 0 < stale < 3 * heartbeat  # two, and what a busy machine adds
            with pytest.raises(TierError, match="not published"):
                bus.publish("k")
            server.start() if fault == "kill" else server.thaw()
            until(lambda: bus.connected)
            cache.put("k", -1)
            with RedisInvalidation(Cache[str, int](1), server.url, heartbeat=5.0) as other:
                assert other.wait_connected()
                other.publish("k")
                until(lambda: "k" not in cache)


def test_a_stranger_message_does_no_harm(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    cache: Cache[str, int] = Cache(10)
    with RedisInvalidation(cache, server.url, channel="s") as bus, redis.Redis.from_url(server.url) as client:
        assert bus.wait_connected()
        cache["k"] = 1
        client.publish("s", b"hello")
        until(lambda: "no invalidation" in caplog.text)
        bus_there = RedisInvalidation(Cache[str, int](1), server.url, channel="s")
        assert bus_there.publish("other") >= 1
        until(lambda: bus.received == 1)
        assert "k" in cache
        bus_there.close()


def test_a_tiered_cache_keeps_the_shared_tier_when_another_process_invalidates(server: Server) -> None:
    with tiered(server.url, prefix="local:") as cache, redis.Redis.from_url(server.url) as client:
        cache.put("k", 1)
        cache.local.invalidate("k")
        assert "k" not in cache
        assert client.exists(b'local:"k"')
        cache.local.clear()
        assert cache.get("k") == 1
