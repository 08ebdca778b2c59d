"""Replay speed, side by side with libCacheSim: from keys in memory to a miss ratio.

    python benchmarks/replay.py [--requests 10_000_000] [--trace P3.lis.zst] [--keys numbers|hashed]

One run, one trace, one core for each side, CPU time, the best of three, taken in turns. Ours numbers the keys inside
the timing, from a fresh ``Trace`` each time; theirs reads a file in its own binary format, written beforehand. Machine
code is compiled before, and libCacheSim's tables are allocated before. Miss counts are compared before anything is
timed. The learned policy is trained on the first 30 % beforehand and has no counterpart.

Peak memory is a fresh process's, beyond what the interpreter with kvpredict imported and compiled takes.
"""

import argparse
import importlib.metadata
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

import numpy as np

from kvpredict.core.errors import MissingExtra
from kvpredict.core.policy import Policy
from kvpredict.policies import policy, policy_names
from kvpredict.simulate import simulate
from kvpredict.trace import Trace

PEERS = {
    "lru": "LRU",
    "sieve": "Sieve",
    "s3fifo": "S3FIFO",
    "arc": "ARC",
    "lirs": "LIRS",
    "wtinylfu": "WTinyLFU",
    "lhd": "LHD",
}
TARGETS = {"lru": 5.0, "sieve": 5.0, "s3fifo": 5.0, "arc": 3.0, "lirs": 3.0, "wtinylfu": 3.0, "lhd": 3.0}
LEARNED_TARGET = 1e6  # requests a second
FRACTIONS = (0.01, 0.1)
TOLERANCE = 0.02  # of the miss count; FIFO-like policies are equal, tests/golden holds them to it
SEED = 0
MEMORY_LIMIT = "64 bytes a unique key + 32 a request"


def zipf_keys(requests: int, keys: int, alpha: float, seed: int, hashed: bool) -> np.ndarray:
    """Return int64 keys drawn by Zipf's law; ranks are shuffled, or replaced by random 64-bit numbers."""
    rng = np.random.default_rng(seed)
    cumulated = np.cumsum(np.arange(1, keys + 1, dtype=np.float64) ** -alpha)
    names = rng.integers(-(2**63), 2**63 - 1, keys) if hashed else rng.permutation(keys)
    parts = [rng.random(min(1_000_000, requests - at)) for at in range(0, requests, 1_000_000)]
    return np.concatenate([names[np.searchsorted(cumulated, part * cumulated[-1])] for part in parts])


def write_oracle_general(keys: np.ndarray, path: Path) -> None:
    """Write ``keys`` in libCacheSim's binary format, every object of size 1."""
    rows = np.zeros(keys.size, [("time", "<u4"), ("key", "<u8"), ("size", "<u4"), ("next", "<i8")])
    rows["time"] = np.arange(keys.size, dtype=np.int64).astype(np.uint32)
    rows["key"] = keys.view(np.uint64)
    rows["size"] = 1
    rows["next"] = -2  # not known; only oracles look at it
    rows.tofile(path)


def peer_run(path: Path, name: str, capacity: int) -> tuple[int, float]:
    """Return libCacheSim's misses and CPU seconds."""
    import libcachesim

    reader = libcachesim.TraceReader(trace=str(path), trace_type=libcachesim.TraceType.ORACLE_GENERAL_TRACE)
    cache = getattr(libcachesim, PEERS[name])(cache_size=capacity)
    started = time.process_time()
    ratio, _ = cache.process_trace(reader)
    seconds = time.process_time() - started
    return round(ratio * reader.get_num_of_req()), seconds


def own_run(keys: np.ndarray, made: Policy, capacity: int) -> tuple[int, float]:
    """Return our misses and CPU seconds, keys to result."""
    started = time.process_time()
    result = simulate(Trace(keys), made, capacity)
    return result.misses, time.process_time() - started


def split_of(keys: np.ndarray, made: Policy, capacity: int) -> dict[str, float]:
    """Return where the time goes: numbering the keys, and the rest."""
    started = time.process_time()
    trace = Trace(keys)
    _ = trace.ids
    numbered = time.process_time()
    simulate(trace, made, capacity)
    return {"ids_seconds": numbered - started, "replay_seconds": time.process_time() - numbered}


def learned_policy(trace: Trace, capacity: int) -> Policy | None:
    """Return a policy trained on the start of the trace, or None where there is none to train."""
    if "learned" not in policy_names():
        return None
    try:
        from kvpredict import fit

        made: Policy = fit(trace.head(0.3), capacity)
    except (ImportError, MissingExtra) as error:
        print(f"learned: left out ({error})", file=sys.stderr)
        return None
    return made


def compare(keys: np.ndarray, path: Path, names: list[str], rounds: int) -> list[dict[str, Any]]:
    """Check misses, then time every policy at every capacity."""
    trace = Trace(keys)
    rows = []
    for fraction in FRACTIONS:
        capacity = trace.capacity(fraction)
        for name in names:
            made = learned_policy(trace, capacity) if name == "learned" else policy(name)
            if made is None:
                continue
            own_run(keys[:1000], made, capacity)  # compiles
            ours, _ = own_run(keys, made, capacity)
            row: dict[str, Any] = {"policy": name, "fraction": fraction, "capacity": capacity, "misses": ours}
            contenders: dict[str, Callable[[], tuple[int, float]]] = {
                "ours": lambda made=made, capacity=capacity: own_run(keys, made, capacity)  # type: ignore[misc]
            }
            if name in PEERS:
                theirs, _ = peer_run(path, name, capacity)
                row |= {"peer_misses": theirs, "difference": ours / theirs - 1}
                row["misses_agree"] = abs(row["difference"]) <= TOLERANCE
                contenders["peer"] = lambda name=name, capacity=capacity: peer_run(path, name, capacity)  # type: ignore[misc]
            best = dict.fromkeys(contenders, float("inf"))
            for _ in range(rounds):
                for side, run in contenders.items():
                    best[side] = min(best[side], run()[1])
            row["requests_per_second"] = keys.size / best["ours"]
            row |= split_of(keys, made, capacity)
            if "peer" in best:
                row["peer_requests_per_second"] = keys.size / best["peer"]
                row["ratio"] = best["peer"] / best["ours"]
                row["target"] = TARGETS[name]
                row["met"] = row["ratio"] >= row["target"]
            else:
                row["target"] = LEARNED_TARGET
                row["met"] = row["requests_per_second"] >= LEARNED_TARGET
            rows.append(row)
            print(line(row), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    own = f"{row['policy']:<10}{row['fraction']:>6.0%}{row['requests_per_second'] / 1e6:>10.1f} M/s"
    ids = f"{row['ids_seconds'] / (row['ids_seconds'] + row['replay_seconds']):>6.0%}"
    met = "met" if row["met"] else "MISSED"
    if "ratio" not in row:
        return f"{own}{'':>12}{'':>8}{'1 M/s':>9} {met:<7}{ids}{row['misses']:>12,}"
    agree = f"{row['difference']:+.2%}" + ("" if row["misses_agree"] else " DIFFERS")
    peer = f"{row['peer_requests_per_second'] / 1e6:>8.1f} M/s{row['ratio']:>7.1f}x{row['target']:>8.0f}x {met:<7}"
    return f"{own}{peer}{ids}{row['misses']:>12,} {agree}"


MEASURE = """
import json, resource, sys
import numpy as np
from kvpredict.policies import policy
from kvpredict.simulate import simulate
from kvpredict.trace import Trace
path, name, fraction = sys.argv[1], sys.argv[2], float(sys.argv[3])
for keys in (np.arange(100) % 7, np.arange(-100, 100) << 40):
    simulate(Trace(keys), name, 5)
before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
trace = Trace(np.load(path))
result = simulate(trace, name, trace.capacity(fraction))
# ru_maxrss would count the parent, whose memory a forked child shares until it executes; VmHWM begins at the execution.
status = open("/proc/self/status").read()
peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
json.dump({"bytes": peak - before, "requests": len(trace), "unique": trace.unique}, sys.stdout)
"""


def memory(keys: np.ndarray, folder: Path, names: list[str]) -> list[dict[str, Any]]:
    """Measure the peak memory of replays in processes of their own."""
    path = folder / "keys.npy"
    np.save(path, keys)
    rows = []
    for name in names:
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(path), name, str(FRACTIONS[-1])],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"measuring the memory of {name} failed:\n{done.stderr}")
        row = {"policy": name, "fraction": FRACTIONS[-1], **json.loads(done.stdout)}
        row["limit"] = 64 * row["unique"] + 32 * row["requests"]
        row["met"] = row["bytes"] <= row["limit"]
        rows.append(row)
        share = row["bytes"] / row["limit"]
        print(f"{name:<10}{row['bytes'] / 2**20:>8.0f} MiB, {share:.0%} of {MEMORY_LIMIT}", flush=True)
    return rows


def machine() -> dict[str, Any]:
    """Name what the figures depend on."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        named = [text.partition(":")[2].strip() for text in info.read_text().splitlines() if "model name" in text]
        model = named[0] if named else model
    versions = {name: importlib.metadata.version(name) for name in ("kvpredict", "numba", "numpy", "libcachesim")}
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), "versions": versions}


def main() -> None:
    parser = argparse.ArgumentParser(description="Replay speed, side by side with libCacheSim.")
    parser.add_argument("--requests", type=lambda text: int(text.replace("_", "")), default=10_000_000)
    parser.add_argument("--unique", type=lambda text: int(text.replace("_", "")), default=1_000_000)
    parser.add_argument("--trace", type=Path, help="a trace file to use besides the generated one")
    parser.add_argument("--keys", choices=["numbers", "hashed"], default="numbers", help="kind of generated keys")
    parser.add_argument("--policies", default=",".join([*PEERS, "learned"]), help="comma-separated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    names = [name for name in options.policies.split(",") if name in policy_names()]
    for name in sorted(set(options.policies.split(",")) - set(names)):
        print(f"{name}: left out, there is no such policy", file=sys.stderr)
    generated = f"zipf 1.0, {options.unique:,} ranks, {options.keys} as keys, seed {SEED}"
    traces = {generated: zipf_keys(options.requests, options.unique, 1.0, SEED, options.keys == "hashed")}
    if options.trace is not None:
        from kvpredict.trace import read_trace

        traces[options.trace.name] = np.ascontiguousarray(read_trace(options.trace).keys)
    report: dict[str, Any] = {"machine": machine(), "rounds": options.rounds, "seed": SEED, "traces": {}}
    print(json.dumps(report["machine"]))
    for title, keys in traces.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "trace.oracleGeneral")
            write_oracle_general(keys, path)
            print(f"\n{title}: {keys.size:,} requests, {Trace(keys).unique:,} keys")
            print("policy      size      ours     libCacheSim   ratio   target        ids      misses against theirs")
            rows = compare(keys, path, names, options.rounds)
            held = memory(keys, Path(folder), [name for name in names if name in PEERS])
        report["traces"][title] = {"requests": int(keys.size), "speed": rows, "memory": held}
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nwritten: {options.out}")


if __name__ == "__main__":
    main()
