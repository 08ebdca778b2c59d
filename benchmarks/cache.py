"""What the in-process cache costs a caller and what it hits, beside the caches that people use, in one run.

    python benchmarks/cache.py [--policies s3fifo,sieve,…] [--capacity 10_000] [--calls 100_000] [--repeats 5]

Checked first: the hits of each policy on the mix are the simulator's, and every peer returns what was put in.

**Cost**: CPU time of a call less that of an empty loop, the best of the repeats, subjects taken in turns. Hits walk
through all keys of a full cache; overwriting puts do, too; evicting puts bring keys never seen; the mix is a get, and a
put on a miss, over Zipf keys (exponent 0.9, ten times as many as fit). Recording is on: the policy is told of every hit
within the time measured. Functions that memoize (functools, warp-cache) have no put; their miss stands for it.
**Hit ratio**: Zipf 0.9 over 100,000 keys, and the same with a scan of as many new keys as fit after every five times as
many requests; the second half counts. **Latency**: wall time of single puts that evict, among gets of Zipf keys, with
``guarded`` learning meanwhile on its own thread. **Memory**: growth of a fresh process's resident memory by 200,000
entries whose keys and values exist already. **Threads**: wall time of the mix in four threads over that in one.
**Stampede**: loads when eight callers miss one key at once.

``learned`` is trained on the first half of the Zipf keys (LightGBM), and left out where the ``train`` extra is missing.
"""

import argparse
import asyncio
import functools
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from kvpredict.cache import Cache, cached
from kvpredict.simulate import simulate
from kvpredict.trace import Trace

SEED = 0
PEERS = [
    "functools.lru_cache",
    "cachetools+RLock",
    "cachebox LRU",
    "cachebox LFU",
    "lru-dict",
    "warp-cache",
    "moka-py",
    "theine",
]
ONE_LOCK = {"lru-dict"}  # not safe under threads by itself


class Subject:
    """Something with ``get`` and ``put`` to be timed; ``put`` is None where a miss fills it."""

    def __init__(self, name: str, get: Callable[[Any], Any], put: Callable[[Any, Any], Any] | None) -> None:
        self.name, self.get, self.put = name, get, put


def make(name: str, capacity: int, policies: dict[str, Any]) -> Subject:
    """Return an empty subject."""
    if name in policies:
        cache: Cache[int, int] = Cache(capacity, policies[name])
        cache.ready()  # not its stand-in, where it has not been compiled before
        return Subject(name, cache.get, cache.put)
    if name == "functools.lru_cache":
        return Subject(name, functools.lru_cache(capacity)(lambda key: key), None)
    if name == "cachetools+RLock":
        import cachetools

        plain, lock = cachetools.LRUCache(capacity), threading.RLock()

        def get(key: Any) -> Any:
            with lock:
                return plain.get(key)

        def put(key: Any, value: Any) -> None:
            with lock:
                plain[key] = value

        return Subject(name, get, put)
    if name.startswith("cachebox"):
        import cachebox

        made = (cachebox.LRUCache if name.endswith("LRU") else cachebox.LFUCache)(capacity)
        return Subject(name, made.get, made.insert)
    if name == "lru-dict":
        import lru

        table = lru.LRU(capacity)
        return Subject(name, table.get, table.__setitem__)
    if name == "warp-cache":
        import warp_cache

        return Subject(name, warp_cache.cache(max_size=capacity)(lambda key: key), None)
    if name == "moka-py":
        import moka_py

        moka = moka_py.Moka(capacity)
        return Subject(name, moka.get, moka.set)
    if name == "theine":
        import theine

        theirs = theine.Cache(capacity)

        def get_value(key: Any) -> Any:
            return theirs.get(key)[0]

        return Subject(name, get_value, theirs.set)
    raise ValueError(name)


def fill(subject: Subject, keys: Sequence[int]) -> None:
    for key in keys:
        subject.get(key) if subject.put is None else subject.put(key, key)


def get_loop(subject: Subject, keys: Sequence[int]) -> None:
    get = subject.get
    for key in keys:
        get(key)


def put_loop(subject: Subject, keys: Sequence[int]) -> None:
    put = subject.put
    if put is None:
        get_loop(subject, keys)
        return
    for key in keys:
        put(key, key)


def mix_loop(subject: Subject, keys: Sequence[int]) -> None:
    get, put = subject.get, subject.put
    if put is None:
        get_loop(subject, keys)
        return
    for key in keys:
        if get(key) is None:
            put(key, key)


def hit_ratio(subject: Subject, keys: Sequence[int]) -> float:
    """Return the share of the second half that is found."""
    half = len(keys) // 2
    if subject.put is None:
        before = None
        for i, key in enumerate(keys):
            if i == half:
                before = subject.get.cache_info().hits  # type: ignore[attr-defined]
            subject.get(key)
        return (subject.get.cache_info().hits - before) / (len(keys) - half)  # type: ignore[attr-defined]
    get, put, hits = subject.get, subject.put, 0
    for i, key in enumerate(keys):
        value = get(key)
        if value is None:
            put(key, key)
        else:
            assert value == key, subject.name
            hits += i >= half
    return hits / (len(keys) - half)


def per_call(loop: Callable[[Subject, Sequence[int]], None], subject: Subject, keys: Sequence[int]) -> float:
    started = time.process_time_ns()
    loop(subject, keys)
    return (time.process_time_ns() - started) / len(keys)


def empty_loop(subject: Subject, keys: Sequence[int]) -> None:
    for _key in keys:
        pass


def zipf_keys(n: int, keys: int, alpha: float = 0.9) -> np.ndarray:
    weights = np.arange(1, keys + 1, dtype=np.float64) ** -alpha
    return np.random.default_rng(SEED).choice(keys, n, p=weights / weights.sum()) + 1


def with_scans(keys: np.ndarray, capacity: int) -> np.ndarray:
    """Return ``keys`` with ``capacity`` new ones after every ``5 * capacity``."""
    parts, fresh = [], 10**9
    for start in range(0, len(keys), 5 * capacity):
        parts += [keys[start : start + 5 * capacity], np.arange(fresh, fresh + capacity)]
        fresh += capacity
    return np.concatenate(parts)


def check(name: str, policy: Any, capacity: int, keys: Sequence[int]) -> None:
    """Assert that the cache hits as often as the simulator says."""
    now = [0.0]
    cache: Cache[int, int] = Cache(capacity, policy, read_buffer=1, train_aside=False, seed=SEED, clock=lambda: now[0])
    for key, now[0] in zip(keys, range(len(keys)), strict=True):
        if cache.get(key) is None:
            cache.put(key, key)
    hits, expected = cache.stats().hits, simulate(Trace.from_keys(keys), policy, capacity, seed=SEED).hits
    assert hits == expected, f"{name}: {hits} hits, the simulator has {expected}"


def costs(names: Sequence[str], policies: dict[str, Any], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return ns a call."""
    capacity = options.capacity
    hits = [key % capacity for key in range(options.calls)]
    mixed = zipf_keys(options.calls, 10 * capacity).tolist()
    found: dict[str, dict[str, float]] = {name: {} for name in names}
    fresh = 10**7
    for _ in range(options.repeats):
        for name in names:
            subject = make(name, capacity, policies)
            fill(subject, range(capacity))
            empty = min(per_call(empty_loop, subject, hits) for _ in range(3))
            works: list[tuple[str, Any, Sequence[int]]] = [("hit", get_loop, hits)]
            if subject.put is not None:
                works.append(("overwrite", put_loop, hits))
            works += [("evicting", put_loop, range(fresh, fresh + options.calls)), ("mix", mix_loop, mixed)]
            fresh += options.calls
            for what, loop, keys in works:
                taken = per_call(loop, subject, keys) - empty
                found[name][what] = min(taken, found[name].get(what, float("inf")))
    return found


def put_latency(name: str, policy: Any, capacity: int, calls: int) -> dict[str, float]:
    """Return wall time of evicting puts in µs: mean, median, 99.9th percentile and longest, among Zipf gets."""
    cache: Cache[int, int] = Cache(capacity, policy)
    cache.ready()
    for key in zipf_keys(calls, 10 * capacity).tolist():  # full, and past the first fits
        if cache.get(key) is None:
            cache.put(key, key)
    taken = []
    for key in zipf_keys(2 * calls, 10 * capacity)[calls:].tolist():
        if cache.get(key) is None:
            started = time.perf_counter_ns()
            cache.put(key, key)
            taken.append(time.perf_counter_ns() - started)
    found = np.array(taken) / 1000
    fits = int(cache.stats().policy.get("fits", 0))
    percentiles = {"median": float(np.median(found)), "p99.9": float(np.quantile(found, 0.999))}
    return {"mean": float(found.mean()), **percentiles, "longest": float(found.max()), "fits": fits}


def threads_over_one(name: str, policies: dict[str, Any], capacity: int, keys: list[int]) -> float:
    """Return the wall time of the mix in four threads over that in one, the best of three each."""

    def wall(count: int) -> float:
        subject = make(name, capacity, policies)
        mix_loop(subject, keys)  # full before the clock starts
        share = len(keys) // count
        parts = [keys[i * share : (i + 1) * share] for i in range(count)]
        threads = [threading.Thread(target=mix_loop, args=(subject, part)) for part in parts]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - started

    pairs = [(wall(1), wall(4)) for _ in range(3)]
    return min(four for _, four in pairs) / min(one for one, _ in pairs)


def resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def memory_here(name: str, count: int = 200_000) -> float:
    """Return bytes an entry in this process, which must be fresh."""
    keys = list(range(10**6, 10**6 + count))
    warm = make(name, 1000, {name: name} if name not in PEERS else {})
    fill(warm, keys[:5000])  # compiled, and the allocator's first arenas taken
    before = resident()
    subject = make(name, count, {name: name} if name not in PEERS else {})
    fill(subject, keys)
    return (resident() - before) / count


def memory(name: str) -> float:
    done = subprocess.run(
        [sys.executable, __file__, "--memory", name], check=True, capture_output=True, text=True, env={**os.environ}
    )
    return float(done.stdout)


def stampedes() -> dict[str, dict[str, int | None]]:
    """Return how often eight callers at once load one key, threads and coroutines."""
    import cachebox
    import cachetools
    import moka_py
    import theine
    import warp_cache

    ways: dict[str, Callable[[Any], Any]] = {
        "kvpredict": cached(100, key=lambda key: key),
        "functools.lru_cache": functools.lru_cache(100),
        "cachetools+RLock": cachetools.cached(cachetools.LRUCache(100), lock=threading.RLock()),
        "cachetools+Condition": cachetools.cached(cachetools.LRUCache(100), condition=threading.Condition()),
        "cachebox": cachebox.cached(cachebox.LRUCache(100)),
        "warp-cache": warp_cache.cache(max_size=100),
        "moka-py": moka_py.cached(100),
        "moka-py wait_concurrent": moka_py.cached(100, wait_concurrent=True),
        "theine": theine.Memoize(100, None),
    }
    table: dict[str, dict[str, int | None]] = {}
    for name, way in ways.items():
        table[name] = {}
        for kind, run in (("threads", _thread_loads), ("coroutines", _coroutine_loads)):
            try:
                table[name][kind] = run(way)
            except Exception:  # not for coroutines
                table[name][kind] = None
    return table


def _thread_loads(way: Callable[[Any], Any]) -> int:
    calls = []

    @way
    def load(key: int) -> int:
        calls.append(key)
        time.sleep(0.05)
        return key

    barrier = threading.Barrier(8)

    def one(_: int) -> int:
        barrier.wait()
        return int(load(1))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(8))) == [1] * 8
    return len(calls)


def _coroutine_loads(way: Callable[[Any], Any]) -> int:
    calls = []

    @way
    async def load(key: int) -> int:
        calls.append(key)
        await asyncio.sleep(0.05)
        return key

    async def one() -> int:
        return int(await load(2))  # not gathered as they are: gather awaits one coroutine object once

    async def main() -> list[int]:
        return await asyncio.gather(*(one() for _ in range(8)))

    assert asyncio.run(main()) == [2] * 8
    return len(calls)


def learned_policy(capacity: int) -> Any | None:
    try:
        import kvpredict

        return kvpredict.fit(Trace.from_keys(zipf_keys(200_000, 10 * capacity)), capacity, learner="lightgbm")
    except kvpredict.MissingExtra:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policies", default="s3fifo,sieve,wtinylfu,popularity,guarded")
    parser.add_argument("--capacity", type=int, default=10_000)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    parser.add_argument("--memory", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(memory_here(options.memory))
        return
    policies: dict[str, Any] = {name: name for name in options.policies.split(",")}
    learned = learned_policy(options.capacity)
    if learned is not None:
        policies["learned"] = learned
    names = [*policies, *PEERS]
    versions = {
        name: version(name)
        for name in ("numpy", "numba", "cachetools", "cachebox", "lru-dict", "warp-cache", "moka-py", "theine")
    }
    print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores, seed {SEED}; {versions}")

    mixed = zipf_keys(50_000, 10 * options.capacity).tolist()
    for name, policy in policies.items():
        check(name, policy, options.capacity, mixed)
    times = costs(names, policies, options)
    ratios: dict[str, dict[str, float]] = {name: {} for name in names}
    for capacity in (1000, 10_000):
        keys = zipf_keys(600_000, 100_000)
        for what, asked in (("zipf", keys), ("scan", with_scans(keys, capacity))):
            for name in names:
                subject = make(name, capacity, policies)
                ratios[name][f"{what} {capacity}"] = hit_ratio(subject, asked.tolist())
    sizes = {name: memory(name) for name in names if name != "learned"}
    latency = {name: put_latency(name, policy, options.capacity, 300_000) for name, policy in policies.items()}
    threads = {
        name: threads_over_one(name, policies, options.capacity, mixed) for name in names if name not in ONE_LOCK
    }

    base = times["cachetools+RLock"]
    columns = ("hit", "overwrite", "evicting", "mix")
    kinds = list(ratios[names[0]])
    print("\n| | " + " | ".join(f"{c}, ns" for c in columns) + " | hit over cachetools | "
          + " | ".join(kinds) + " | B/entry | 4 threads |")  # fmt: skip
    print("|---" * (len(columns) + len(kinds) + 4) + "|")
    for name in names:
        cells = [f"{times[name][c]:.0f}" if c in times[name] else "-" for c in columns]
        cells += [f"{times[name]['hit'] / base['hit']:.2f}x", *(f"{ratios[name][kind]:.3f}" for kind in kinds)]
        cells += [f"{sizes[name]:.0f}" if name in sizes else "-", f"{threads[name]:.2f}x" if name in threads else "-"]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("\n| an evicting put, µs | mean | median | p99.9 | longest | fits so far |\n|---|---|---|---|---|---|")
    for name, row in latency.items():
        print(f"| {name} | " + " | ".join(f"{row[kind]:.1f}" for kind in list(row)[:-1]) + f" | {row['fits']:.0f} |")
    herd = stampedes()
    print("\n| loads by eight callers | threads | coroutines |\n|---|---|---|")
    for name, row in herd.items():
        print(f"| {name} | " + " | ".join("-" if row[kind] is None else str(row[kind]) for kind in row) + " |")
    if options.out:
        figures = {"versions": versions, "ns": times, "hit_ratio": ratios, "bytes": sizes, "threads": threads}
        figures["put_us"] = latency
        options.out.write_text(json.dumps({**figures, "stampede": herd}, indent=1) + "\n")


if __name__ == "__main__":
    main()
