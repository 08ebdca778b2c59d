"""Speed of guarded beside libcachesim's learned policies, in one run, on one core each; training is in it.

The best of some rounds, taken in turns, of processor time: other work on the machine counts less in it. Ours is the
compiled replay of a trace in memory whose keys are numbered (numbering takes some 50 ns a request more); theirs reads a
binary file as it goes. LRB is timed once, and where it does not end within a minute, on the first requests only.
"""

import argparse
import csv
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.common import Rows, table
from experiments.learned_vs_heuristics import peers
from kvpredict.policies import policy
from kvpredict.simulate import simulate
from kvpredict.trace import Trace

__all__ = ["COLUMNS", "markdown", "run"]

FRACTIONS = (0.01, 0.1)
ROUNDS = 3
MINUTE = 60  # seconds of processor time
SHORTER = 200_000  # requests, for what does not end
COLUMNS = ["trace", "unique", "fraction", "capacity", "policy", "requests", "seconds", "requests_per_second"]


def run(traces: Iterable[Trace], options: argparse.Namespace) -> None:
    """Time guarded, 3L-Cache and LRB on every trace that is long enough, and write speed.csv."""
    rows = Rows(options.out / "speed.csv", COLUMNS, ["trace", "fraction", "policy"])
    for trace in traces:
        if len(trace) < options.least:
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "trace")
            peers.write(trace, path, "objects")
            for fraction in FRACTIONS:
                rows.add(time_cell(trace, path, fraction, options))


def time_cell(trace: Trace, path: Path, fraction: float, options: argparse.Namespace) -> list[dict[str, Any]]:
    capacity, n = trace.capacity(fraction), len(trace)
    ours, theirs = (
        simulate(trace, "lru", capacity).misses,
        peers.replay("libcachesim:lru", path, capacity, n, 0, 10 * MINUTE),
    )
    if ours != theirs["misses"]:
        raise SystemExit(f"{trace.name}: libcachesim's LRU misses {theirs['misses']}, ours {ours}: nothing is timed")
    made = policy("guarded", **options.params)
    best = {"guarded": float("inf"), "libcachesim:3lcache": float("inf")}
    simulate(trace.head(1000), made, capacity)  # compiles
    for _ in range(ROUNDS):
        started = time.process_time()
        simulate(trace, made, capacity)
        best["guarded"] = min(best["guarded"], time.process_time() - started)
        done = peers.replay("libcachesim:3lcache", path, capacity, n, 0, 10 * MINUTE)
        best["libcachesim:3lcache"] = min(best["libcachesim:3lcache"], float(done["seconds"] or "inf"))
    requests = dict.fromkeys(best, n)
    for used in (n, min(n, SHORTER)):
        done = peers.replay("libcachesim:lrb", path, capacity, used, 0, MINUTE)
        if done["seconds"]:
            best["libcachesim:lrb"], requests["libcachesim:lrb"] = float(done["seconds"]), used
            break
    cell = {"trace": trace.name, "unique": trace.unique, "fraction": fraction, "capacity": capacity}
    rows = []
    for name, seconds in best.items():
        speed = f"{requests[name] / seconds:.0f}"
        figures = {"policy": name, "requests": requests[name], "seconds": f"{seconds:.3f}"}
        rows.append(cell | figures | {"requests_per_second": speed})
        print(trace.name, fraction, name, speed, flush=True)
    return rows


def markdown(folder: Path) -> str:
    """Return speed.csv as a table."""
    rows: dict[tuple[str, str], dict[str, dict[str, str]]] = defaultdict(dict)
    if (folder / "speed.csv").is_file():
        with open(folder / "speed.csv", newline="") as file:
            for row in csv.DictReader(file):
                rows[row["trace"], row["fraction"]][row["policy"]] = row
    lines = []
    for (trace, fraction), of in rows.items():
        rate = {name: float(row["requests_per_second"]) for name, row in of.items()}
        lrb = of.get("libcachesim:lrb")
        part = "" if lrb is None or lrb["requests"] == of["guarded"]["requests"] else f" (first {lrb['requests']})"
        shown = f"{rate['libcachesim:lrb'] / 1e6:.3f}{part}" if lrb else "-"
        ratio = rate["guarded"] / rate["libcachesim:3lcache"]
        lines.append([
            trace, f"{float(fraction):.0%}", of["guarded"]["requests"], f"{rate['guarded'] / 1e6:.2f}",
            f"{rate['libcachesim:3lcache'] / 1e6:.2f}", shown, f"{ratio:.2f}x",
        ])  # fmt: skip
    head = "trace | capacity | requests | guarded, M requests/s | 3L-Cache | LRB | guarded over 3L-Cache"
    return table(head, lines)
