"""What the in-process cache costs a caller, beside a plain dict and functools.lru_cache.

    python benchmarks/cache.py [--policies lru,sieve,s3fifo] [--capacity 10_000] [--repeats 5]

One run, one process; CPU time of a call, less that of an empty loop, the best of the repeats, taken in turns. Hits walk
through all keys of a full cache; evicting puts bring keys never seen; the mix is ``get``, and ``put`` on a miss, over
Zipf keys (exponent 0.9, ten times as many as fit), whose hit counts are compared with the simulator's first. Recording
is on: the policy is told of every hit, and its share of the batch is in the figure. The last column is the wall time
of the mix in four threads over that in one, for the same number of calls in all.
"""

import argparse
import functools
import os
import platform
import threading
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kvpredict.cache import Cache
from kvpredict.policies import policy_names
from kvpredict.simulate import simulate
from kvpredict.trace import Trace

SEED = 0


class Subject:
    """Something with ``get`` and ``put`` to be timed, ``None`` where it has no such call."""

    def __init__(self, name: str, get: Callable[[Any], Any], put: Callable[[Any, Any], Any] | None) -> None:
        self.name, self.get, self.put = name, get, put


def subjects(policies: Sequence[str], capacity: int) -> list[Subject]:
    """Return the subjects, each filled with the keys 0 … capacity - 1."""
    plain = {key: key for key in range(capacity)}
    cached = functools.lru_cache(capacity)(lambda key: key)
    for key in range(capacity):
        cached(key)
    made = [Subject("dict", plain.get, plain.__setitem__), Subject("functools.lru_cache", cached, None)]
    for name in policies:
        cache: Cache[int, int] = Cache(capacity, name)
        for key in range(capacity):
            cache.put(key, key)
        made.append(Subject(name, cache.get, cache.put))
    return made


def per_call(loop: Callable[[Sequence[int]], None], keys: Sequence[int], empty: float) -> float:
    """Return the CPU time of one turn of ``loop``, ns."""
    started = time.process_time_ns()
    loop(keys)
    return (time.process_time_ns() - started) / len(keys) - empty


def empty_loop(keys: Sequence[int]) -> None:
    for _key in keys:
        pass


def get_loop(get: Callable[[Any], Any]) -> Callable[[Sequence[int]], None]:
    def loop(keys: Sequence[int]) -> None:
        for key in keys:
            get(key)

    return loop


def put_loop(put: Callable[[Any, Any], Any]) -> Callable[[Sequence[int]], None]:
    def loop(keys: Sequence[int]) -> None:
        for key in keys:
            put(key, key)

    return loop


def mix_loop(cache: Cache[int, int]) -> Callable[[Sequence[int]], None]:
    get, put = cache.get, cache.put

    def loop(keys: Sequence[int]) -> None:
        for key in keys:
            if get(key) is None:
                put(key, key)

    return loop


def zipf_keys(n: int, keys: int, alpha: float = 0.9) -> list[int]:
    weights = np.arange(1, keys + 1, dtype=np.float64) ** -alpha
    ranks = np.random.default_rng(SEED).choice(keys, n, p=weights / weights.sum())
    return (ranks + 1).tolist()


def bytes_an_entry(name: str, capacity: int) -> float:
    """Return the memory of a full cache beyond its keys and values, a slot."""
    keys = list(range(10**6, 10**6 + capacity))
    tracemalloc.start()
    try:
        if name == "dict":
            made: Any = dict.fromkeys(keys)
        elif name == "functools.lru_cache":
            made = functools.lru_cache(capacity)(lambda key: None)
            for key in keys:
                made(key)
        else:
            made = Cache(capacity, name)
            for key in keys:
                made.put(key, None)
        return tracemalloc.get_traced_memory()[0] / capacity
    finally:
        tracemalloc.stop()


def threads_over_one(name: str, capacity: int, keys: list[int]) -> float:
    """Return the wall time of the mix in four threads over that in one."""

    def wall(count: int) -> float:
        cache: Cache[int, int] = Cache(capacity, name)
        mix_loop(cache)(keys[: len(keys) // 2])  # full before the clock starts
        share = len(keys) // count
        parts = [keys[i * share : (i + 1) * share] for i in range(count)]
        threads = [threading.Thread(target=mix_loop(cache), args=(part,)) for part in parts]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        taken = time.perf_counter() - started
        cache.validate()
        return taken

    pairs = [(wall(1), wall(4)) for _ in range(3)]
    return min(four for _, four in pairs) / min(one for one, _ in pairs)


def check(name: str, capacity: int, keys: list[int]) -> float:
    """Return the hit ratio of the mix, having asserted that it is the simulator's."""
    now = [0.0]
    cache: Cache[int, int] = Cache(capacity, name, read_buffer=1, seed=SEED, clock=lambda: now[0])
    for key, now[0] in zip(keys, range(len(keys)), strict=True):  # a trace without times counts requests
        if cache.get(key) is None:
            cache.put(key, key)
    hits, expected = cache.stats().hits, simulate(Trace.from_keys(keys), name, capacity, seed=SEED).hits
    assert hits == expected, f"{name}: {hits} hits, the simulator has {expected}"
    return hits / len(keys)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policies", default="lru,sieve,s3fifo", help=f"of {', '.join(policy_names())}")
    parser.add_argument("--capacity", type=int, default=10_000)
    parser.add_argument("--calls", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    policies, capacity = arguments.policies.split(","), arguments.capacity
    mixed = zipf_keys(arguments.calls, 10 * capacity)
    print(
        f"Python {platform.python_version()}, NumPy {np.__version__}, {platform.machine()}, {os.cpu_count()} cores; "
        f"{capacity} entries, seed {SEED}"
    )
    ratios = {name: check(name, capacity, mixed) for name in policies}
    compared = subjects(policies, capacity)
    hits = [key % capacity for key in range(arguments.calls)]
    times: dict[tuple[str, str], float] = {}

    def note(subject: Subject, what: str, taken: float) -> None:
        times[subject.name, what] = min(taken, times.get((subject.name, what), float("inf")))

    fresh = 10**9
    for _ in range(arguments.repeats):
        empty = min(per_call(empty_loop, hits, 0.0) for _ in range(3))
        for subject in compared:
            note(subject, "hit", per_call(get_loop(subject.get), hits, empty))
            if subject.put is not None:
                note(subject, "overwrite", per_call(put_loop(subject.put), hits, empty))
        for name in policies:
            cache: Cache[int, int] = Cache(capacity, name)
            put_loop(cache.put)(range(capacity))
            subject = Subject(name, cache.get, cache.put)
            note(subject, "evicting", per_call(put_loop(cache.put), range(fresh, fresh + arguments.calls), empty))
            note(subject, "missing", per_call(get_loop(cache.get), range(-arguments.calls, 0), empty))
            note(subject, "mix", per_call(mix_loop(cache), mixed, empty))
            fresh += arguments.calls
    head = ("hit", "missing", "overwrite", "evicting", "mix")
    print(
        f"\n{'ns a call':22}"
        + "".join(f"{what:>11}" for what in head)
        + f"{'hit ratio':>11}{'B/entry':>9}{'4 threads':>11}"
    )
    for subject in compared:
        cells = "".join(f"{times[subject.name, w]:11.0f}" if (subject.name, w) in times else f"{'-':>11}" for w in head)
        ratio = f"{ratios[subject.name]:11.3f}" if subject.name in ratios else f"{'-':>11}"
        memory = f"{bytes_an_entry(subject.name, capacity):9.0f}"
        threads = (
            f"{threads_over_one(subject.name, capacity, mixed):10.2f}x" if subject.name in ratios else f"{'-':>11}"
        )
        print(f"{subject.name:22}{cells}{ratio}{memory}{threads}")


if __name__ == "__main__":
    main()
