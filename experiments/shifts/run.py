"""Shifting workloads: what a shift costs guarded, and how soon it misses no more than the best heuristic after it.

    python -m experiments.shifts.run --traces FOLDER [--only guarded] [--all]

Writes results.csv, plot.svg and the table in README.md beside this file. A row holds the misses of one policy in each
window of one capacity after the shift. Rows that are there are kept; after a change of guarded, ``--only guarded
--all``.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import Rows, number
from experiments.shifts import tables
from experiments.shifts.scenarios import HALF, PUBLIC_SCENARIOS, SCENARIOS
from kvpredict.policies import policy, policy_class, policy_names
from kvpredict.simulate import Result, simulate
from kvpredict.trace import Trace

HERE = Path(__file__).parent
FRACTIONS = (0.01, 0.1)
WINDOWS = 100  # kept, of one capacity each
LEARNED = ("learned", "guarded")
KEY = ["scenario", "fraction", "policy", "seed"]
COLUMNS = ["scenario", "requests", "unique", "shift", "fraction", "capacity", "policy", "seed", "misses", "windows"]


def made(options: argparse.Namespace) -> Iterator[tuple[Trace, int]]:
    """Return the traces and where they shift."""
    for name, make in SCENARIOS.items():
        if options.scenarios is None or name in options.scenarios:
            yield make(options.half)
    for name, make_of in PUBLIC_SCENARIOS.items():
        if options.scenarios is None or name in options.scenarios:
            if options.traces is None:
                print(f"{name}: left out, it needs --traces")
                continue
            yield make_of(options.traces, options.half)


def windows(r: Result, shift: int) -> list[int]:
    """Return the misses in each whole window of one capacity after the shift."""
    after = r.hit[shift:] == 0
    count = min(WINDOWS, after.size // r.capacity)
    return after[: count * r.capacity].reshape(count, r.capacity).sum(axis=1, dtype=np.int64).tolist()


def run(trace: Trace, shift: int, rows: Rows, options: argparse.Namespace) -> None:
    """Replay what is missing of a scenario."""
    heuristics = [n for n in policy_names() if n not in LEARNED and not policy_class(n).traits.oracle]
    chosen = [(policy(n), n, 0) for n in heuristics] if options.only != "guarded" else []
    if options.only != "heuristics":
        chosen += [(policy("guarded", **options.params), "guarded", seed) for seed in range(options.seeds)]
    for fraction in FRACTIONS:
        cell: dict[str, Any] = {
            "scenario": trace.name, "requests": len(trace), "unique": trace.unique, "shift": shift,
            "fraction": fraction, "capacity": trace.capacity(fraction),
        }  # fmt: skip
        for one, name, seed in chosen:
            row = cell | {"policy": name, "seed": seed}
            if options.all or row not in rows:
                r = simulate(trace, one, cell["capacity"], warmup=shift, seed=seed)
                rows.add([row | {"misses": r.misses, "windows": " ".join(map(str, windows(r, shift)))}])
        print(f"{trace.name:<16}{fraction:>4.0%} of {trace.unique} keys, {len(trace) - shift} requests after the shift")


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Shifting workloads.")
    parser.add_argument("--traces", type=Path, help="the folder of public traces; without: generated scenarios only")
    parser.add_argument("--scenarios", type=lambda text: text.split(","), help="comma-separated; default: all")
    parser.add_argument("--only", choices=["guarded", "heuristics"], help="default: both")
    parser.add_argument("--all", action="store_true", help="compute again what is there already")
    parser.add_argument("--half", type=number, default=HALF, help="requests on each side of a shift")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of guarded: 0, 1, …")
    parser.add_argument("--params", type=json.loads, default={}, help="parameters of guarded, as JSON")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for what is written")
    options = parser.parse_args(given)
    rows = Rows(options.out / "results.csv", COLUMNS, KEY)
    for trace, shift in made(options):
        run(trace, shift, rows, options)
    tables.main(options.out, policy("guarded", **options.params).params()["leaders"].split("+"))


if __name__ == "__main__":
    main()
