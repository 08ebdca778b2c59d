"""All policies on all traces: misses, and how much of the gap between LRU and the oracle each closes.

    python -m experiments.all_policies.run --traces FOLDER_OR_FILES [--policies lru,arc] [--limit 3_000_000]

Writes results.csv, plot.svg and the table in README.md beside this file. A folder is searched for the public traces
named in ``experiments.common``; files may be of any format that ``kvpredict.read_trace`` knows. The learned policy is
trained on the first half, for each capacity anew; every policy replays the whole trace and is counted over the second
half.
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
TRAINED = ("learned",)  # made by kvpredict.fit and not from the name alone

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


def trained(trace: Trace, capacity: int, unit: str) -> tuple[Policy | None, float]:
    """Return the learned policy fitted to the first half, and the seconds that took; None where it cannot be."""
    from kvpredict import fit

    started = time.perf_counter()
    try:
        made: Policy = fit(trace.head(WARMUP), capacity, unit=unit)
    except KvpredictError as error:
        print(f"{trace.name}, {unit}, capacity {capacity}: no learned policy: {error}", file=sys.stderr)
        return None, 0.0
    return made, time.perf_counter() - started


def run_trace(name: str, trace: Trace, names: list[str], seed: int) -> list[dict[str, Any]]:
    """Return the rows of one trace: every policy, in objects, and in bytes where the trace has sizes."""
    rows = []
    for unit in ("objects",) if trace.sizes is None else ("objects", "bytes"):
        for fraction in FRACTIONS:
            capacity = trace.capacity(fraction, unit)
            plain = [policy(n) for n in names if n not in TRAINED]
            results = {r.policy: r for r in sweep(trace, plain, capacity, unit=unit, warmup=WARMUP, seed=seed)}
            seconds = dict.fromkeys(results, 0.0)
            for learned in (n for n in names if n in TRAINED):
                made, seconds[learned] = trained(trace, capacity, unit)
                if made is not None:
                    results[learned] = simulate(trace, made, capacity, unit=unit, warmup=WARMUP, seed=seed).summary()
            oracle = results["belady" if unit == "objects" else "beladysize"]
            for result in results.values():
                rows.append(row(name, trace, unit, fraction, result, results["lru"], oracle, seconds[result.policy]))
            print(f"{name:<16}{unit:<9}{fraction:>4.0%}  " + best_of(results), flush=True)
    return rows


def row(
    name: str, trace: Trace, unit: str, fraction: float, r: Result, lru: Result, oracle: Result, fit_seconds: float
) -> dict[str, Any]:
    figures = (
        name, len(trace), trace.unique, unit, fraction, r.capacity, r.policy, r.misses,
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
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE, help="folder for results.csv, plot.svg and README.md's table")
    options = parser.parse_args()
    names = options.policies.split(",") if options.policies else policy_names()
    for name in names:
        policy_class(name)  # an unknown name fails now
    names = list(dict.fromkeys([*names, "lru", "belady", "beladysize"]))  # what all others are measured against
    rows: list[dict[str, Any]] = []
    for name, path in find_traces(options.traces).items():
        rows += run_trace(name, read_trace(path).head(options.limit), names, options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    with open(options.out / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    plot.main(options.out)


if __name__ == "__main__":
    main()
