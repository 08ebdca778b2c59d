"""The traces behind golden.csv: generated ones, the same on every machine, and public ones.

Generated keys come from ``random.Random(seed).random()``, the one stream that Python promises never to change;
NumPy's generators may change between versions. ``golden_traces.csv`` holds a checksum of each.
"""

import random
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kvpredict.trace import Trace

__all__ = ["GENERATED", "PUBLIC", "checksum", "load"]


def _draws(n: int, seed: int) -> np.ndarray:
    stream = random.Random(seed).random
    return np.array([stream() for _ in range(n)])


def _zipf(n: int, keys: int, alpha: float, seed: int) -> np.ndarray:
    weights = np.arange(1, keys + 1) ** -alpha
    cumulated = np.cumsum(weights) / weights.sum()
    ranks = np.minimum(np.searchsorted(cumulated, _draws(n, seed)), keys - 1)
    return (ranks * 7919 + 13) % keys if keys % 7919 else ranks


def _sizes(keys: np.ndarray, seed: int) -> np.ndarray:
    """Heavy-tailed sizes, one for a key: from 1 to some 20,000 bytes."""
    return np.exp(_draws(int(keys.max()) + 1, seed) * 9.9).astype(np.int64)[keys] + 1


def zipf() -> Trace:
    keys = _zipf(40_000, 4_000, 0.9, 1)
    return Trace(keys, sizes=_sizes(keys, 11), name="zipf")


def mixed() -> Trace:
    """Zipf whose popular keys change four times, with scans in it."""
    n, keys = 40_000, 3_000
    made = (_zipf(n, keys, 1.0, 2) + np.arange(n) // 10_000 * 311) % keys
    for block in range(8):
        start = 2_500 + block * 5_000
        made[start : start + 800] = keys + (block % 5) * 800 + np.arange(800)
    return Trace(made, sizes=_sizes(made, 12), name="mixed")


def loops() -> Trace:
    """Two loops, one longer than the other, with random reads in between."""
    n = 30_000
    made = np.where(_draws(n, 3) < 0.3, (_draws(n, 4) * 500).astype(np.int64) + 2_000, np.arange(n) % 1_100)
    made[n // 2 :] = np.where(_draws(n // 2, 5) < 0.5, np.arange(n // 2) % 150, made[n // 2 :])
    return Trace(made, sizes=_sizes(made, 13), name="loops")


def wonders() -> Trace:
    """Half of the requests are for keys asked once."""
    n = 30_000
    made = np.where(_draws(n, 6) < 0.5, 10_000 + np.arange(n), _zipf(n, 2_000, 0.8, 7))
    return Trace(made, sizes=_sizes(made, 14), name="wonders")


GENERATED: dict[str, Callable[[], Trace]] = {"zipf": zipf, "mixed": mixed, "loops": loops, "wonders": wonders}

# Name in golden.csv -> file under the folder of public traces, and whether its sizes are compared too.
PUBLIC: dict[str, tuple[str, bool]] = {
    "oltp": ("arc/OLTP.lis.zst", False),
    "2_pools": ("lirs/2_pools.trace.gz", False),
    "loop": ("lirs/loop.trace.gz", False),
    "multi3": ("lirs/multi3.trace.gz", False),
    "sprite": ("lirs/sprite.trace.gz", False),
    "gcc": ("address/gcc.trace.gz", False),
    "scarab": ("scarab/scarab-recs.trace.xz", False),
    "web07": ("cache2k/web07.trace.xz", False),
    "mooncake": ("mooncake/conversation_trace.head60.jsonl", False),
    "cloudphysics": ("cloudphysics/cloudPhysicsIO.oracleGeneral.bin", True),
    "ns1326": ("tencent/tencentBlock.ns1326.sample.csv", True),
    "ns2706": ("tencent/tencentBlock.ns2706.sample.csv", True),
    "adaptsize": ("adaptsize/request.trace.xz", True),
    "wiki": ("wiki/wiki_sampled_train_trace.tsv", True),
}


def load(name: str, folder: Path | None = None) -> Trace:
    """Return a generated trace, or the public one called ``name`` under ``folder``."""
    if name in GENERATED:
        return GENERATED[name]()
    from kvpredict.trace import read_trace

    assert folder is not None, f"{name} is a public trace: give their folder"
    return read_trace(folder / PUBLIC[name][0])


def checksum(trace: Trace) -> int:
    """Return a CRC of the dense ids and sizes, whatever the keys are called."""
    crc = zlib.crc32(np.ascontiguousarray(trace.ids, np.int32).tobytes())
    return crc if trace.sizes is None else zlib.crc32(np.maximum(trace.sizes, 1).tobytes(), crc)
