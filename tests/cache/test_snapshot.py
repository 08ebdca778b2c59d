"""A restart goes on where the cache stopped, whatever happened to the process while it wrote."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kvpredict.cache import Cache, Codec, Expiry, SnapshotError, load_snapshot, save_snapshot, stable_hash
from kvpredict.core.errors import KvpredictError
from kvpredict.policies import policy, policy_class, policy_names
from tests.cache.clock import Clock
from tests.contracts.factories import make
from tests.strategies import zipf_mix

POLICIES = [name for name in policy_names() if not policy_class(name).traits.oracle]


def run(cache: Cache[Any, Any], keys: list[int], clock: Clock, extra: dict[str, float]) -> list[bool]:
    hits = []
    for key in keys:
        clock.now += 0.125
        hits.append(cache.get(key) is not None)
        if not hits[-1]:
            cache.put(key, -key, extra=extra)
    return hits


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_decides_on_as_if_never_stopped(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    chosen = make(name)
    extra = dict.fromkeys(chosen.extra, 1.0)
    keys = zipf_mix(4000, 400, 11).tolist()
    clock, other = Clock(), Clock(5.0)  # a machine that was started anew
    cache: Cache[int, int] = Cache(60, chosen, seed=3, clock=clock, read_buffer=1, train_aside=False)
    run(cache, keys[:2500], clock, extra)
    monkeypatch.setattr(time, "time", lambda: 1000.0)  # no time passes between the two
    assert save_snapshot(cache, tmp_path / "s") == len(cache)
    restored: Cache[int, int] = Cache(60, chosen, seed=3, clock=other, read_buffer=1, train_aside=False)
    outcome = load_snapshot(restored, tmp_path / "s")
    assert outcome == (len(cache), 0, True, "")
    restored.validate()
    assert dict(restored.items()) == dict(cache.items())
    assert run(restored, keys[2500:], other, extra) == run(cache, keys[2500:], clock, extra)
    restored.validate()


def test_dates_versions_and_tags_come_back(tmp_path: Path, monkeypatch: Any) -> None:
    clock = Clock()
    cache: Cache[str, int] = Cache(10, "lru", clock=clock, key_hash=stable_hash, expiry=Expiry(stale=5))
    cache.put("short", 1, ttl=10)
    cache.put("long", 2, ttl=100)
    cache.put("tagged", 3, tags=("t",))
    cache.put("versioned", 4, version=7)
    cache.put("plain", 5)
    clock.now += 4
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    save_snapshot(cache, tmp_path / "s")
    monkeypatch.setattr(time, "time", lambda: 1007.0)  # the process was away for seven seconds
    other = Clock(0.0)
    restored: Cache[str, int] = Cache(10, "lru", clock=other, key_hash=stable_hash)
    assert load_snapshot(restored, tmp_path / "s") == (4, 1, True, "")
    assert sorted(restored) == ["long", "plain", "tagged", "versioned"]
    assert not restored.put("versioned", 0, version=6)
    assert restored.invalidate_tags("t") == 1
    other.now += 88.9
    assert restored.get("long") == 2
    other.now += 0.2
    assert restored.get("long") is None
    restored.validate()


@pytest.mark.parametrize(("arguments", "reason"), [
    ({"policy": "sieve"}, "its policy is lru"),
    ({"capacity": 50}, "its capacity is 60"),
    ({"key_hash": lambda key: key * 7}, "other numbers"),
])  # fmt: skip
def test_into_another_cache_entries_go_in_order(arguments: dict[str, Any], reason: str, tmp_path: Path) -> None:
    cache: Cache[int, int] = Cache(60, "lru")
    for key in range(60):
        cache[key] = key
    cache.get(0)
    save_snapshot(cache, tmp_path / "s")
    other: Cache[int, int] = Cache(**{"capacity": 60, "policy": "lru", **arguments})
    outcome = load_snapshot(other, tmp_path / "s")
    assert not outcome.exact
    assert reason in outcome.reason
    assert outcome.entries == min(60, other.capacity)
    if other.capacity == 50:
        assert sorted(other) == [0, *range(11, 60)]
    other.validate()


@pytest.mark.parametrize("params", [{"objective": "cost"}, {"leaders": "fifo"}])
def test_a_policy_that_differs_in_its_code_alone_is_another(params: dict[str, str], tmp_path: Path) -> None:
    usual = {"leaders": "lru", "sized_leaders": "", "samples": 1000}
    cache: Cache[int, int] = Cache(60, policy("guarded", **usual), train_aside=False)
    cache[1] = 1
    save_snapshot(cache, tmp_path / "s")
    same: Cache[int, int] = Cache(60, policy("guarded", **usual), train_aside=False)
    assert load_snapshot(same, tmp_path / "s").exact
    other: Cache[int, int] = Cache(60, policy("guarded", **(usual | params)), train_aside=False)
    assert "other parameters" in load_snapshot(other, tmp_path / "s").reason


def test_another_model_is_not_overwritten(tmp_path: Path) -> None:
    cache: Cache[int, int] = Cache(50, policy("s3fifo", small_ratio=0.1))
    cache[1] = 1
    save_snapshot(cache, tmp_path / "s")
    other: Cache[int, int] = Cache(50, policy("s3fifo", small_ratio=0.4))
    outcome = load_snapshot(other, tmp_path / "s")
    assert (outcome.entries, outcome.exact) == (1, False)
    assert "parameters" in outcome.reason


def test_a_weighed_cache_comes_back_with_its_sizes(tmp_path: Path) -> None:
    cache: Cache[int, str] = Cache(5000, "gdsf", weigher=len)
    for key in range(3000):
        cache.put(key, "x" * (key % 3), cost=float(key % 7))
    save_snapshot(cache, tmp_path / "s")
    restored: Cache[int, str] = Cache(5000, "gdsf", weigher=len)
    assert load_snapshot(restored, tmp_path / "s").exact
    assert restored.stats().size == cache.stats().size
    restored.validate()


def test_what_cannot_be_written_is_left_out(tmp_path: Path) -> None:
    cache: Cache[int, Any] = Cache(10, "lru")
    cache[1], cache[2], cache[3] = 1, object(), 3
    assert save_snapshot(cache, tmp_path / "s") == 2
    restored: Cache[int, Any] = Cache(10, "lru")
    assert load_snapshot(restored, tmp_path / "s") == (2, 0, True, "")
    restored.validate()
    for key in range(10, 30):
        restored[key] = key
    restored.validate()


def test_errors_are_told(tmp_path: Path) -> None:
    cache: Cache[int, int] = Cache(10, "lru")
    cache[1] = 1
    with pytest.raises(SnapshotError, match="cannot be written"):
        save_snapshot(cache, tmp_path / "no" / "s")
    with pytest.raises(SnapshotError, match="cannot be read"):
        load_snapshot(Cache(10), tmp_path / "s")
    save_snapshot(cache, tmp_path / "s")
    with pytest.raises(KvpredictError, match="empty cache"):
        load_snapshot(cache, tmp_path / "s")
    data = (tmp_path / "s").read_bytes()
    (tmp_path / "s").write_bytes(data[:-3])
    with pytest.raises(SnapshotError, match="damaged"):
        load_snapshot(Cache(10), tmp_path / "s")
    (tmp_path / "s").write_bytes(Codec().encode({"rows": []}))
    with pytest.raises(SnapshotError, match="version"):
        load_snapshot(Cache(10), tmp_path / "s")


SNAPPER = """
import sys
from kvpredict.cache import Cache, save_snapshot
cache = Cache(20_000, "lru")
for key in range(20_000):
    cache[key] = "x" * 100
print("ready", flush=True)
n = 0
while True:
    cache[0] = n
    save_snapshot(cache, sys.argv[1])
    n += 1
    print(n, flush=True)
"""


def test_kill_9_leaves_a_whole_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "s"
    for round_ in range(4):
        process = subprocess.Popen([sys.executable, "-c", SNAPPER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        while "1" not in process.stdout.readline():
            pass
        time.sleep(0.02 + 0.013 * round_)  # somewhere in the middle of the next one
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        cache: Cache[int, Any] = Cache(20_000, "lru")
        assert load_snapshot(cache, path).entries == 20_000
        assert cache[5] == "x" * 100
    save_snapshot(cache, path)
    assert [each.name for each in tmp_path.iterdir()] == ["s"]  # what the killed ones left is gone


def test_a_snapshot_replaces_files_alone_and_follows_links(tmp_path: Path) -> None:
    cache: Cache[int, int] = Cache(10, "lru")
    cache[1] = 1
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        with pytest.raises(SnapshotError, match="no regular file"):
            save_snapshot(cache, path)
    assert pipe.is_fifo()
    (tmp_path / "there").mkdir()
    link.symlink_to(tmp_path / "there" / "s")
    for _ in range(2):
        assert save_snapshot(cache, link) == 1
        assert link.is_symlink()
        assert load_snapshot(Cache[int, int](10, "lru"), tmp_path / "there" / "s").entries == 1
    assert sorted(each.name for each in tmp_path.iterdir()) == ["link", "pipe", "there"]
