"""libcachesim's policies on our traces, counted as ours are: the second half, after the first has warmed the cache.

A cache object keeps its content between two calls of ``process_trace``, so the first call takes the warm-up and the
second one counts. Each replay is a process of its own, which ends when it has used up its seconds of processor time.
"""

import multiprocessing
import os
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np

from kvpredict.trace import Trace

__all__ = ["PEERS", "replay", "write"]

# Our name for it -> libcachesim's class and arguments. The learned ones have two objectives, which differ even where
# all objects have one size; "byte-miss-ratio" is the default of both.
PEERS: dict[str, tuple[str, dict[str, str]]] = {
    "libcachesim:lru": ("LRU", {}),  # checked against ours
    "libcachesim:cacheus": ("Cacheus", {}),
    "libcachesim:3lcache": ("ThreeLCache", {}),
    "libcachesim:3lcache-objects": ("ThreeLCache", {"objective": "object-miss-ratio"}),
    "libcachesim:lrb": ("LRB", {}),
}
RECORD = np.dtype([("time", "<u4"), ("key", "<u8"), ("size", "<u4"), ("next", "<i8")])  # oracleGeneral


def write(trace: Trace, path: Path, unit: str) -> None:
    """Write the trace in libcachesim's binary format; with unit "objects" every object has size 1."""
    made = np.zeros(len(trace), RECORD)
    made["time"] = np.arange(len(trace))
    made["key"] = trace.ids.astype(np.uint64) + 1
    made["size"] = 1 if unit == "objects" or trace.sizes is None else np.maximum(trace.sizes, 1)
    made["next"] = -2  # unknown; only oracles look at it
    made.tofile(path)


def replay(peer: str, path: Path, capacity: int, requests: int, warmup: int, limit: int) -> dict[str, Any]:
    """Replay the first ``requests`` of a file; return what was missed after ``warmup`` requests, and the seconds.

    Keys: ``misses``, ``object_miss_ratio``, ``byte_miss_ratio`` and ``seconds``, the processor time of the whole
    replay, reading the file included. All are empty when it took more than ``limit`` of these seconds, or died.
    """
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_replay, args=(peer, str(path), capacity, requests, warmup, limit, send))
    process.start()
    send.close()
    try:
        objects, sizes, seconds = receive.recv()
    except EOFError:
        return dict.fromkeys(("misses", "object_miss_ratio", "byte_miss_ratio", "seconds"), "")
    finally:
        process.join()
    return {
        "misses": round(objects * (requests - warmup)), "object_miss_ratio": f"{objects:.8f}",
        "byte_miss_ratio": f"{sizes:.8f}", "seconds": f"{seconds:.3f}",
    }  # fmt: skip


def _replay(peer: str, path: str, capacity: int, requests: int, warmup: int, limit: int, answer: Any) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    os.environ["OMP_NUM_THREADS"] = "1"  # one core for each side
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    import libcachesim

    name, arguments = PEERS[peer]
    reader = libcachesim.TraceReader(path, libcachesim.TraceType.ORACLE_GENERAL_TRACE)
    cache = getattr(libcachesim, name)(cache_size=capacity, **arguments)
    started = time.process_time()
    if warmup:
        cache.process_trace(reader, 0, warmup)
    objects, sizes = cache.process_trace(reader, warmup, requests - warmup)
    answer.send((objects, sizes, time.process_time() - started))
