"""Speed of the prefix cache: block uses a second in the simulator, and microseconds a call in the live index.

    python -m benchmarks.prefix --out benchmarks/prefix.json

A generated mix, seed 0, 4,000 requests of 126 blocks on average, a cache of 10 % of the distinct blocks, where most are
found; for the live index also blocks of 336 tokens, 24 a request as in Mooncake's conversations, and 1 %, where more is
stored and evicted. Each figure is the best of five runs in this process, compilation left out, processor time. Hits of
LRU through the live index are checked against the simulator's before anything is timed. The first decision of a fresh
process is timed with an empty folder of machine code and with a filled one.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np

from kvpredict.llm.prefix import fit_prefix, prefix_policy, simulate_prefix
from kvpredict.llm.prefix.index import PrefixIndex
from kvpredict.llm.prefix.policy import PrefixPolicy
from kvpredict.llm.requests import RequestTrace
from kvpredict.llm.workloads import generate_requests

RUNS = 5
EVICTED = 100  # at once
FIRST = """
import time
from kvpredict.llm.prefix.index import PrefixIndex
started = time.perf_counter()
index = PrefixIndex(1000, {policy!r})
index.used([1, 2, 3], 3, (48, 0), times=(0.0, 1.0))
print(time.perf_counter() - started)
"""


def best(run: Callable[[], Any]) -> float:
    """Return the least processor time of the runs, in seconds."""
    times = []
    for _ in range(RUNS):
        started = time.process_time()
        run()
        times.append(time.process_time() - started)
    return min(times)


def first_decision(policy: str) -> dict[str, float]:
    """Return the seconds until a fresh process has served a request, compiling everything and loading it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", FIRST.format(policy=policy)]
        environment = {**os.environ, "KVPREDICT_CODE_DIR": folder}
        seconds = [
            float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
            for _ in range(2)
        ]
    return {"cold": seconds[0], "warm": seconds[1]}


def serve(index: PrefixIndex, trace: RequestTrace) -> int:
    """Serve requests one after the other; return the blocks hit."""
    hits = 0
    for i in range(len(trace)):
        low, middle = int(trace.starts[i]), int(trace.starts[i] + trace.prompts[i])
        now = float(trace.times[i])
        ticket, found, _ = index.begin(trace.blocks[low:middle].tolist(), int(trace.input_tokens[i]), now=now)
        index.end(ticket, trace.blocks[middle : trace.starts[i + 1]].tolist(), int(trace.output_tokens[i]), now=now)
        hits += found
    return hits


def serial(trace: RequestTrace) -> RequestTrace:
    """Return the trace with one request at a time, as ``serve`` runs them."""
    return RequestTrace.from_lists(
        np.arange(len(trace)) * 1e4,
        [trace.blocks[a:b] for a, b in zip(trace.starts[:-1], trace.starts[1:], strict=True)],
        trace.block_size,
        prompt_blocks=trace.prompts,
    )


def evictions(index: PrefixIndex, now: float) -> Callable[[], None]:
    """Return what evicts some blocks and puts them back."""

    def run() -> None:
        gone = [index.pop(now) for _ in range(EVICTED)]
        for block in reversed(gone):
            index.put(block, now=now)  # type: ignore[arg-type]

    return run


def live(trace: RequestTrace, capacity: int, policy: PrefixPolicy) -> dict[str, float]:
    """Return the microseconds of a block use, and of an eviction and a store, and the share of hits."""
    seconds = best(lambda: serve(PrefixIndex(capacity, policy), trace))
    index = PrefixIndex(capacity, policy)
    hits = serve(index, trace)
    gone = best(evictions(index, float(trace.times[-1]))) / EVICTED
    return {
        "use": round(1e6 * seconds / len(trace.blocks), 2),
        "eviction and store": round(1e6 * gone, 2),
        "found": round(hits / int(trace.prompts.sum()), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="json file to write")
    options = parser.parse_args()
    trace = generate_requests("mixed", requests=4000, seed=0)
    capacity = trace.capacity(0.1)
    report: dict[str, Any] = {
        "python": platform.python_version(), "numba": numba.__version__, "numpy": np.__version__,
        "machine": platform.machine(), "requests": len(trace), "uses": len(trace.blocks), "blocks": capacity,
    }  # fmt: skip
    frozen = fit_prefix(trace.head(0.5), capacity, every=0.0)
    simple = (prefix_policy("lru"), prefix_policy("lfu"))
    expected = simulate_prefix(serial(trace), "lru", capacity, store="end").hits
    assert serve(PrefixIndex(capacity, "lru"), trace) == expected, "the index decides otherwise than the simulator"
    simulated = report["simulator, M block uses/s"] = {}
    for policy in (*simple, frozen, prefix_policy("belady")):
        speeds = [simulate_prefix(trace, policy, capacity).touches_per_second for _ in range(RUNS)]
        simulated[policy.name] = round(max(speeds) / 1e6, 2)
    long = generate_requests("mixed", requests=4000, seed=0, block_size=336)
    few = long.capacity(0.01)
    few_frozen = fit_prefix(long.head(0.5), few, every=0.0)
    report["live index, 126 blocks a request, µs"] = {p.name: live(trace, capacity, p) for p in (*simple, frozen)}
    report["live index, 24 blocks a request, µs"] = {p.name: live(long, few, p) for p in (*simple, few_frozen)}
    report["first decision of a process, s"] = {
        name: {k: round(v, 2) for k, v in first_decision(name).items()} for name in ("lru", "learned")
    }
    text = json.dumps(report, indent=1, ensure_ascii=False)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
