"""Everything at once for a while: threads and coroutines, expiry, tags, resizes, exchanges, listeners, tiers.

KVPREDICT_SOAK gives the seconds for each configuration; by default six.
"""

import asyncio
import gc
import os
import random
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from kvpredict.cache import Cache, Cause, DiskTier, Expiry, Loads, Shadow, TieredCache, TooManyLoads, UnknownKey

SECONDS = float(os.environ.get("KVPREDICT_SOAK", "6"))


class Refused(LookupError):
    """What the source says of a key that it does not have."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lru", "s3fifo", "sieve", "arc", "gdsf"])
def test_soak(name: str) -> None:
    source = {key: [key, 0] for key in range(600)}
    removed: dict[Cause, int] = dict.fromkeys(Cause, 0)
    counting = threading.Lock()

    def on_removal(key: int, value: Any, cause: Cause) -> None:
        assert value[0] == key
        with counting:
            removed[cause] += 1

    def load(key: int) -> list[int]:
        if key % 50 == 7:
            raise Refused(key)
        if random.random() < 0.01:
            raise OSError("the source hiccups")
        return list(source[key])

    async def aload(key: int) -> list[int]:
        await asyncio.sleep(0)
        return load(key)

    cache: Cache[int, list[int]] = Cache(
        20, name, loader=load, on_removal=on_removal,
        expiry=Expiry(ttl=0.05, jitter=0.3, idle=0.04, refresh=0.7, stale=0.02, retry=0.01, sweep=0.1),
        loads=Loads(limit=6, negative_ttl=0.02, timeout=5.0, negative=(Refused,)),
    )  # fmt: skip
    shadow = Shadow(cache, ["lru", "sieve"], window=5000)
    for other in ("sieve", "lru", "s3fifo", name):
        cache.swap_policy(other)
    cache.resize(21)
    started = time.monotonic()
    errors: list[BaseException] = []

    def going() -> bool:
        """Tell whether to go on: a busy machine may need longer until each cause of removal has been seen."""
        limit = SECONDS if min(removed.values()) else 5 * SECONDS
        return time.monotonic() < started + limit and not errors

    operations = [0]

    def quiet() -> bool:
        """Tell whether nobody asks for anything, for a tenth of each second: longer than what is held lives."""
        return (time.monotonic() - started) % 1.0 > 0.9

    def check(key: int, value: Any, least: int) -> None:
        assert value[0] == key
        assert value[1] >= least

    def work(seed: int) -> None:
        rng = random.Random(seed)
        while going():
            if quiet():
                time.sleep(0.01)
                continue
            operations[0] += 1
            key = min(int(rng.paretovariate(0.6)), 599)
            draw = rng.random()
            try:
                if draw < 0.70:
                    check(key, cache.get_or_load(key), -1)
                elif draw < 0.80:
                    value = cache.get(key)
                    assert value is None or value[0] == key
                elif draw < 0.88:
                    source[key][1] += 1
                    cache.put(key, list(source[key]), tags=(f"t{key % 9}",), cost=rng.random(), version=time.time_ns())
                elif draw < 0.92:
                    cache.invalidate(key)
                elif draw < 0.94:
                    cache.invalidate_tags(f"t{key % 9}")
                elif draw < 0.96:
                    value, token = cache.read(key)
                    if value is not None:
                        cache.put_if(key, [key, value[1] + 1], token)
                elif draw < 0.97:
                    cache.get_many(range(key, key + 5))
                elif draw < 0.975:
                    cache.resize(rng.randrange(10, 40))
                elif draw < 0.98:
                    cache.swap_policy(rng.choice(["sieve", "lru", "s3fifo", name]))
                elif draw < 0.985:
                    cache.stats()
                    cache.items()
                elif draw < 0.987:
                    cache.clear()
                elif draw < 0.99:
                    cache.sweep()
            except (Refused, OSError, TooManyLoads, UnknownKey):
                pass  # the loader's own
            except BaseException as error:
                errors.append(error)

    async def coroutines(seed: int) -> None:
        async def one(which: int) -> None:
            rng = random.Random(1000 * seed + which)
            while going():
                if quiet():
                    await asyncio.sleep(0.01)
                    continue
                key = min(int(rng.paretovariate(0.6)), 599)
                try:
                    check(key, await cache.aget_or_load(key, aload), -1)
                except (Refused, OSError):
                    pass
                except BaseException as error:
                    errors.append(error)

        await asyncio.gather(*(one(which) for which in range(5)))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(5)]
    threads += [threading.Thread(target=lambda seed=seed: asyncio.run(coroutines(seed))) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5 * SECONDS + 60)
        assert not thread.is_alive(), "a thread hangs"
    assert errors == []
    cache._background.join()
    cache.validate()
    assert operations[0] > 1000
    stats = cache.stats()
    assert stats.entries <= 40
    assert not cache._flights.by_key
    assert not cache._flights._waiting
    assert cache._gate is not None
    assert cache._gate.running == 0
    assert min(removed[cause] for cause in Cause) > 0
    assert all(0 <= one.hit_ratio <= 1 for one in shadow.evaluate())
    cache.clear()
    assert cache._tagged == {}


@pytest.mark.slow
def test_memory_does_not_grow_with_time(tmp_path: Path) -> None:
    """Bounded by the capacity, whatever the number of keys, tags, failures and deletions seen.

    What the disk tier knows of its objects is far less than the bound, as a slow disk may fill it late.
    """
    with TieredCache[int, Any](
        200, "s3fifo", tiers=[DiskTier(tmp_path / "t.db", 20_000)], expiry=Expiry(ttl=30.0, jitter=0.1),
        loads=Loads(negative_ttl=0.001),
    ) as cache:  # fmt: skip

        def round_(start: int) -> None:
            for key in range(start, start + 4000):
                if key % 3 == 0:
                    cache.put(key, "x" * 50, tags=(f"tag {key}",), version=key)
                elif key % 3 == 1:
                    cache.get_or_load(key, lambda key: [key])
                else:
                    with pytest.raises(KeyError):
                        cache.get_or_load(key, {}.__getitem__)
                if key % 5 == 0:
                    cache.delete(key - 10)

        round_(0)
        tracemalloc.start()
        sizes = []
        for n in range(1, 5):
            round_(10_000 * n)
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    assert sizes[-1] - sizes[1] < 200_000  # 8,000 keys were seen meanwhile
