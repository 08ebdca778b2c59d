"""What a policy of the in-process cache costs before it serves: time until the first eviction, and memory.

    python -m benchmarks.start [--policies guarded,s3fifo] [--rounds 3] [--out FILE]

**Time**: wall time from before ``import kvpredict`` to the first eviction of a ``Cache``, and until it is ready: until
the policy asked for decides, where a stand-in served at first. In processes of their own: *cold* with an empty folder
for machine code, *warm* with what the one before left there. The median of the rounds.
**Memory**: bytes of the arrays of a policy's state, for each slot; what does not grow with the slots is put apart.
``guarded/8`` is ``Guarded(sample=1/8)``.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kvpredict.core.policy import Policy
from kvpredict.policies import policy

SLOTS = (1_000, 10_000, 100_000)
SAMPLED = "guarded/8"
TIMES = ("cold", "cold_until_ready", "warm", "warm_until_ready")
FIRST_EVICTION = """
import time
begun = time.perf_counter()
import kvpredict
cache = kvpredict.Cache(1_000, {name!r})
for key in range(1_001):
    cache.put(key, key)
assert cache.stats().evictions == 1
print(time.perf_counter() - begun)
assert cache.ready()
print(time.perf_counter() - begun)
"""


def seconds_to_first_eviction(name: str) -> dict[str, float]:
    """Return wall seconds, by ``TIMES``, of a process that finds no machine code, and of the next one."""
    command = [sys.executable, "-c", FIRST_EVICTION.format(name=name)]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "KVPREDICT_CODE_DIR": folder}
        cold, warm = (
            subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
            for _ in range(2)
        )
    return dict(zip(TIMES, map(float, (*cold, *warm)), strict=True))


def arrays(state: Any, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Yield the arrays of a state and what they are called."""
    if isinstance(state, np.ndarray):
        yield path, state
    elif isinstance(state, tuple):
        for name, part in zip(getattr(state, "_fields", map(str, range(len(state)))), state, strict=True):
            yield from arrays(part, f"{path}.{name}")


def state_bytes(made: Policy) -> dict[str, float]:
    """Return the bytes for each slot by number of slots, and those that are the same for all."""
    sizes = {slots: {name: array.nbytes for name, array in arrays(made.state(slots))} for slots in SLOTS}
    fixed = {name for name, size in sizes[SLOTS[0]].items() if size == sizes[SLOTS[-1]][name]}
    found = {
        str(slots): sum(size for name, size in of.items() if name not in fixed) / slots for slots, of in sizes.items()
    }
    return found | {"fixed": float(sum(sizes[SLOTS[0]][name] for name in fixed))}


def main() -> None:
    parser = argparse.ArgumentParser(description="What a policy costs before it serves.")
    parser.add_argument("--policies", default="lru,s3fifo,popularity,guarded")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    times, memory = {}, {}
    for name in options.policies.split(","):
        memory[name] = state_bytes(policy(name))
        rounds = [seconds_to_first_eviction(name) for _ in range(options.rounds)]
        times[name] = {kind: statistics.median(r[kind] for r in rounds) for kind in TIMES}
        print(f"{name:<12} " + "   ".join(f"{kind} {times[name][kind]:.2f} s" for kind in TIMES), flush=True)
    if "guarded" in memory:
        memory[SAMPLED] = state_bytes(policy("guarded", sample=1 / 8))
    for name, found in memory.items():
        a_slot = ", ".join(f"{found[str(slots)]:,.0f} at {slots:,}" for slots in SLOTS)
        print(f"{name:<12} bytes a slot: {a_slot}; and {found['fixed'] / 1e6:.1f} MB")
    result = {"seconds": times, "bytes": memory, "load": os.getloadavg(), "cpus": os.cpu_count(),
              "machine": platform.processor() or platform.machine(), "python": platform.python_version()}  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
