"""Speed of the prefix cache: block uses a second in the simulator, and microseconds a call in the live index.

    python -m benchmarks.prefix

A generated mix, seed 0; each figure is the best of three runs in this process, compilation left out, processor time.
Hits of LRU through the live index are checked against the simulator's before anything is timed.
"""

import platform
import time
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from kvpredict.llm.prefix import fit_prefix, prefix_policy, prefix_policy_names, simulate_prefix
from kvpredict.llm.prefix.index import PrefixIndex
from kvpredict.llm.requests import RequestTrace
from kvpredict.llm.workloads import generate_requests


def best(run: Callable[[], Any]) -> float:
    """Return the least processor time of three runs, in seconds."""
    times = []
    for _ in range(3):
        started = time.process_time()
        run()
        times.append(time.process_time() - started)
    return min(times)


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


def main() -> None:
    trace = generate_requests("mixed", requests=4000, seed=0)
    capacity = trace.capacity(0.1)
    print(
        f"python {platform.python_version()}, numba {numba.__version__}, numpy {np.__version__}, {platform.machine()}"
    )
    print(f"{trace}, {capacity} blocks")
    frozen = fit_prefix(trace.head(0.5), capacity, every=0.0)
    print("simulator, M block uses/s:")
    for name in prefix_policy_names():
        policy = frozen if name == "learned" else prefix_policy(name)
        touches = max(simulate_prefix(trace, policy, capacity).touches_per_second for _ in range(3))
        print(f"  {name:<10}{touches / 1e6:8.2f}")
    serial = RequestTrace.from_lists(  # one request at a time, as ``serve`` runs them
        np.arange(len(trace)) * 1e4,
        [trace.blocks[a:b] for a, b in zip(trace.starts[:-1], trace.starts[1:], strict=True)],
        trace.block_size,
        prompt_blocks=trace.prompts,
    )
    expected = simulate_prefix(serial, "lru", capacity, store="end").hits
    assert serve(PrefixIndex(capacity, "lru"), trace) == expected, "the index decides otherwise than the simulator"
    print("live index, µs a block use (numbering in Python and all calls included):")
    for policy in (prefix_policy("lru"), prefix_policy("lfu"), frozen):
        seconds = best(lambda p=policy: serve(PrefixIndex(capacity, p), trace))  # type: ignore[misc]
        print(f"  {policy.name:<10}{1e6 * seconds / len(trace.blocks):8.2f}")
    print("live index, µs an eviction (pop and put):")
    for policy in (prefix_policy("lru"), frozen):
        index = PrefixIndex(capacity, policy)
        serve(index, trace)
        now = float(trace.times[-1])

        def evict(index: PrefixIndex = index, now: float = now) -> None:
            gone = [index.pop(now) for _ in range(200)]
            for block in reversed(gone):
                index.put(block, now=now)  # type: ignore[arg-type]

        print(f"  {policy.name:<10}{1e6 * best(evict) / 200:8.2f}")


if __name__ == "__main__":
    main()
