"""All policies on all traces: misses, and how much of the gap between LRU and the oracle each closes.

    python -m experiments.all_policies.run --traces FOLDER_OR_FILES [--policies lru,arc] [--limit 3_000_000] [--add]

Writes results.csv, plot.svg and the table in README.md beside this file. A folder is searched for the public traces
named in ``experiments.common``; files may be of any format that ``kvpredict.read_trace`` knows. "learned" is a model
trained on the first half, for each capacity anew, and frozen; "fit" is what ``kvpredict.fit`` chooses there by default.
Every policy replays the whole trace and is counted over the second half. ``--add`` keeps the rows of other policies.
"""

import argparse
import csv
import sys
import time
from pathlib import Path
from typing import Any

from experiments.all_policies import plot
from experiments.common import find_traces, number
from kvpredict.core.errors import KvpredictError
from kvpredict.core.policy import Policy
from kvpredict.policies import policy, policy_class, policy_names
from kvpredict.simulate import Result, gap_closed, simulate, sweep
from kvpredict.trace import Trace, read_trace

HERE = Path(__file__).parent
FRACTIONS = (0.01, 0.1)
WARMUP = 0.5
TRAINED = {"learned": "lightgbm", "fit": "best"}  # made by kvpredict.fit with this learner

COLUMNS = [
    "trace",
    "requests",
    "unique",
    "unit",
    "fraction",
    "capacity",
    "policy",
    "misses",
    "object_miss_ratio",
    "byte_miss_ratio",
    "relative_to_lru",
    "gap_closed",
    "requests_per_second",
    "fit_seconds",
]


def trained(trace: Trace, capacity: int, unit: str, learner: str) -> tuple[Policy | None, float]:
    """Return the policy fitted to the first half, and the seconds that took; None where it cannot be."""
    from kvpredict import fit

    started = time.perf_counter()
    try:
        made: Policy = fit(trace.head(WARMUP), capacity, unit=unit, learner=learner)
    except KvpredictError as error:
        print(f"{trace.name}, {unit}, capacity {capacity}: no learned policy: {error}", file=sys.stderr)
        return None, 0.0
    return made, time.perf_counter() - started


def run_trace(trace: Trace, names: list[str], seed: int) -> list[dict[str, Any]]:
    """Return the rows of one trace: every policy, in objects, and in bytes where the trace has sizes."""
    rows = []
    for unit in ("objects",) if trace.sizes is None else ("objects", "bytes"):
        for fraction in FRACTIONS:
            capacity = trace.capacity(fraction, unit)
            plain = [policy(n) for n in names if n not in TRAINED]
            results = {r.policy: r for r in sweep(trace, plain, capacity, unit=unit, warmup=WARMUP, seed=seed)}
            seconds = dict.fromkeys(results, 0.0)
            for name in (n for n in names if n in TRAINED):
                made, seconds[name] = trained(trace, capacity, unit, TRAINED[name])
                if made is not None:
                    results[name] = simulate(trace, made, capacity, unit=unit, warmup=WARMUP, seed=seed).summary()
            oracle = results["belady" if unit == "objects" else "beladysize"]
            for name, result in results.items():
                rows.append(row(trace, unit, fraction, name, result, results["lru"], oracle, seconds[name]))
            print(f"{trace.name:<16}{unit:<9}{fraction:>4.0%}  " + best_of(results), flush=True)
    return rows


def row(
    trace: Trace, unit: str, fraction: float, name: str, r: Result, lru: Result, oracle: Result, fit_seconds: float
) -> dict[str, Any]:
    figures = (
        trace.name, len(trace), trace.unique, unit, fraction, r.capacity, name, r.misses,
        f"{r.object_miss_ratio:.6f}", f"{r.byte_miss_ratio:.6f}", f"{r.misses / lru.misses:.5f}",
        f"{gap_closed(lru, r, oracle):.5f}", f"{r.requests_per_second:.0f}", f"{fit_seconds:.1f}",
    )  # fmt: skip
    return dict(zip(COLUMNS, figures, strict=True))


def best_of(results: dict[str, Result]) -> str:
    """Say which policy that does not know the future missed least."""
    online = [r for n, r in results.items() if n in TRAINED or not policy_class(n).traits.oracle]
    best = min(online, key=lambda r: r.misses)
    return f"LRU {results['lru'].object_miss_ratio:.4f}, best {best.policy} {best.object_miss_ratio:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="All policies on all traces.")
    parser.add_argument("--traces", type=Path, nargs="+", required=True, help="a folder of public traces, or files")
    parser.add_argument("--policies", help="comma-separated; default: all")
    parser.add_argument("--limit", type=number, default=3_000_000, help="requests used")
    parser.add_argument("--add", action="store_true", help="keep the rows of other policies and traces")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE, help="folder for results.csv, plot.svg and README.md's table")
    options = parser.parse_args()
    names = options.policies.split(",") if options.policies else list(dict.fromkeys([*policy_names(), *TRAINED]))
    for name in names:
        if name not in TRAINED:
            policy_class(name)  # an unknown name fails now
    names = list(dict.fromkeys([*names, "lru", "belady", "beladysize"]))  # what all others are measured against
    rows: list[dict[str, Any]] = []
    for name, path in find_traces(options.traces).items():
        trace = read_trace(path).head(options.limit)
        trace.name = name
        rows += run_trace(trace, names, options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.add:
        with open(options.out / "results.csv", newline="") as file:
            made = {(r["trace"], r["policy"]) for r in rows}
            rows += [r for r in csv.DictReader(file) if (r["trace"], r["policy"]) not in made]
    with open(options.out / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    plot.main(options.out)


if __name__ == "__main__":
    main()
