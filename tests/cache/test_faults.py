"""A full disk under each part that writes to one: only documented errors, nothing stale, nothing acknowledged lost.

The limit on the size of a file (RLIMIT_FSIZE) stands in for the disk: the same writes fail in the same calls.
"""

import subprocess
import sys
from pathlib import Path

import pytest

SMALL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
"""

TIER = (
    SMALL
    + """
import random
from kvpredict.cache import Codec, DiskTier, Guarded, TieredCache
source = {key: 0 for key in range(400)}
rng = random.Random(1)
with TieredCache(
    10, "lru", tiers=[Guarded(DiskTier(sys.argv[1], 10**8), pause=0.001)], codec=Codec(compress=None)
) as cache:
    for step in range(6000):
        key = rng.randrange(400)
        if step % 7 == 0:
            source[key] += 1
            cache.delete(key)
        else:
            value = cache.get_or_load(key, lambda key: [source[key], "x" * 2000])
            assert value[0] == source[key], (step, key)
    tier = cache.tier_stats()[0]
    assert tier.errors > 0, "the disk was never full"
    assert tier.hits > 0
    for key in range(0, 400, 2):
        source[key] += 1
        cache.delete(key)
# What the next one finds must be right, too.
with TieredCache(10, "lru", tiers=[DiskTier(sys.argv[1], 10**8)], codec=Codec(compress=None)) as cache:
    found = {key: cache.get(key) for key in range(400)}
    assert all(value is None or value[0] == source[key] for key, value in found.items())
print(sum(value is not None for value in found.values()), tier.error)
"""
)


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE is of POSIX")
def test_a_full_disk_under_a_tier(tmp_path: Path) -> None:
    found, error = run(TIER, str(tmp_path / "t.db")).split(" ", 1)
    assert int(found) >= 0
    assert "disk" in error


JOURNAL = (
    SMALL
    + """
from kvpredict.cache import Cache, WriteBehind, WriteBehindError
import threading
open_ = threading.Event()
rows = {}
def write(writes):
    open_.wait(60)
    rows.update(writes)
store = WriteBehind(Cache(10), write, journal=sys.argv[1], interval=0.01)
taken, refused = {}, 0
for n in range(400):
    try:
        store.put(n % 50, f"{n}" + "x" * 3000)
        taken[n % 50] = f"{n}" + "x" * 3000
    except WriteBehindError as error:
        assert "was not taken" in str(error), error
        refused += 1
assert refused > 0, "the disk was never full"
assert all(store.get(key) == value for key, value in taken.items())
open_.set()
store.close()
assert rows == taken
print(refused)
"""
)


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE is of POSIX")
def test_a_full_disk_under_a_journal(tmp_path: Path) -> None:
    assert int(run(JOURNAL, str(tmp_path / "j.db"))) > 0


SNAPSHOT = (
    SMALL
    + """
from kvpredict.cache import Cache, SnapshotError, load_snapshot, save_snapshot
import random
cache = Cache(1000, "lru")
for key in range(100):
    cache[key] = key
save_snapshot(cache, sys.argv[1])
for key in range(1000):
    cache[key] = random.Random(key).randbytes(1000)
try:
    save_snapshot(cache, sys.argv[1])
except SnapshotError as error:
    print(error)
restored = Cache(1000, "lru")
assert load_snapshot(restored, sys.argv[1]).entries == 100
"""
)


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE is of POSIX")
def test_a_full_disk_under_a_snapshot(tmp_path: Path) -> None:
    assert "an older one stays" in run(SNAPSHOT, str(tmp_path / "s"))
    assert [each.name for each in tmp_path.iterdir()] == ["s"]
