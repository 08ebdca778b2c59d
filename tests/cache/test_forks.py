"""A service that is loaded before it forks its workers: the child goes on, with nothing of the parent's threads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvpredict.cache import Cache, DiskTier, WriteBehind
from tests.cache.servers import needs_redis, one_server

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

PARENT = """
import os, sys, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork with threads, which is what is tested
from kvpredict.cache import (
    Cache, Codec, DiskTier, Expiry, Loads, TieredCache, WriteBehind, WriteBehindError,
)
go_on = threading.Event()
refreshed = []
def load(key):
    if key == "slow" and not go_on.is_set() and os.getpid() == parent:
        go_on.wait(30)
    refreshed.append(key)
    return len(refreshed)
parent = os.getpid()
cache = Cache(100, "lru", loader=load, expiry=Expiry(ttl=60, refresh=0.001, retry=0.01, sweep=0.02),
              loads=Loads(limit=1, timeout=5.0))
cache.get_or_load("k")
time.sleep(0.07)
cache.get("k")  # its refresh starts a thread, which the child does not have
time.sleep(0.1)
cache.put("short", 1, ttl=0.3)
source = {}
writes = WriteBehind(Cache(10), source.update, interval=60.0, journal=sys.argv[1] + "/journal.db")
writes.put("parent's", 1)
tiered = TieredCache(1, "lru", tiers=[DiskTier(sys.argv[1] + "/tier.db", 10**6)], codec=Codec("json", compress=None))
for n in range(5):
    tiered.put(n, n)
loader = threading.Thread(target=cache.get_or_load, args=("slow",))  # holds the only permit, and its flight
loader.start()
while cache._gate.running == 0:
    time.sleep(0.001)
held = threading.Event()
def hold():
    with cache._lock:
        held.set()
        go_on.wait(30)
holder = threading.Thread(target=hold)
holder.start()
held.wait(10)
child = os.fork()
if child == 0:
    try:
        assert cache.get_or_load("slow") > 0  # neither the lock, nor the flight, nor the permit of the parent
        before = len(refreshed)
        time.sleep(0.07)
        assert cache.get("k") is not None
        deadline = time.monotonic() + 10
        while len(refreshed) == before:
            assert time.monotonic() < deadline, "no refresh in the child"
            time.sleep(0.005)
        while len(cache) > 2:
            assert time.monotonic() < deadline, "no sweep in the child"
            time.sleep(0.005)
        cache.validate()
        try:
            writes.put("child's", 1)
            raise SystemExit("a write was taken in the child")
        except WriteBehindError as error:
            assert "forked" in str(error)
        assert tiered.get(4) == 4
        assert [tiered.get_or_load(n, lambda n: -n) for n in range(3)] == [0, -1, -2]  # the file is the parent's
        assert not tiered.tier_stats()[0].up
        os._exit(0)
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)
_, status = os.waitpid(child, 0)
go_on.set()
loader.join()
holder.join()
writes.close()
assert source == {"parent's": 1}
assert [tiered.get(n) for n in range(5)] == [0, 1, 2, 3, 4]
tiered.close()
sys.exit(status != 0)
"""

BUS = """
import os, sys, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from kvpredict.cache import Cache, RedisInvalidation
cache = Cache(10)
bus = RedisInvalidation(cache, sys.argv[1])
assert bus.wait_connected()
child = os.fork()
if child == 0:
    assert bus.wait_connected()
    cache.put("k", 1)
    deadline = time.monotonic() + 10
    while "k" in cache and time.monotonic() < deadline:
        time.sleep(0.005)
    os._exit("k" in cache)
for _ in range(40):
    time.sleep(0.1)
    bus.publish("k")
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        break
sys.exit(not done or status != 0)
"""


ENDING = """
import os, sqlite3, subprocess, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import threading
from kvpredict.cache import Cache, DiskTier, WriteBehind
journal, tier = sys.argv[1] + "/journal.db", sys.argv[1] + "/tier.db"
writes = WriteBehind(Cache(10), lambda writes: threading.Event().wait(60), interval=60.0, journal=journal)
disk = DiskTier(tier, 10**6)
writes.put(1, 1)
disk.put(b"1", b"1", None)
if os.fork() == 0:
    sys.exit()  # lets go of everything on its way out
os.wait()
writes.put(2, 2)
disk.put(b"2", b"2", None)
os._exit(0)  # as if killed
"""


def test_a_child_that_ends_leaves_its_parents_files_whole(tmp_path: Path) -> None:
    run(ENDING, str(tmp_path))
    source: dict[int, int] = {}
    with WriteBehind(Cache[int, int](10), source.update, journal=tmp_path / "journal.db"):
        pass
    assert source == {1: 1, 2: 2}
    disk = DiskTier(tmp_path / "tier.db", 10**6)
    assert [disk.get(b"1"), disk.get(b"2")] == [b"1", b"2"]
    disk.close()


def run(code: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=False, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr


def test_a_forked_worker_goes_on(tmp_path: Path) -> None:
    run(PARENT, str(tmp_path))


@needs_redis[0]
@needs_redis[1]
def test_a_forked_worker_listens_for_itself(tmp_path: Path) -> None:
    with one_server(tmp_path) as server:
        run(BUS, server.url)
