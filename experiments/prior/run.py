"""A prior for guarded: its effect on a cold cache, and the one that is shipped.

    python -m experiments.prior.run --traces FOLDER [--requests 1_500_000] [--ship]

Writes results.csv and the tables in README.md beside this file; rows that are there are kept. ``--ship`` trains the
shipped prior on the development traces and writes it into the package.
"""

import argparse
import statistics
import sys
from pathlib import Path

import numpy as np

from experiments.common import DEVELOPMENT, PUBLIC, Rows, find_traces, into_readme, number, part_of, table
from kvpredict.artifact import Artifact
from kvpredict.learn.online import prior
from kvpredict.policies.guarded import SHIPPED, Guarded
from kvpredict.simulate import simulate
from kvpredict.trace import Trace, read_trace

HERE = Path(__file__).parent
FRACTIONS = (0.001, 0.01, 0.1)
FEWEST = 20  # objects that a cache must hold
COLD = 10  # capacities of requests that count as cold
KEY = ["trace", "fraction", "seed"]
COLUMNS = [*KEY, "capacity", "requests", "cold_misses", "cold_misses_prior", "misses", "misses_prior"]


def family(trace: str) -> str:
    """Return the first word of a name: traces of one collection resemble each other."""
    return trace.partition("_")[0]


def cells(traces: dict[str, Trace]) -> list[tuple[str, float, int]]:
    """Return name, fraction and capacity of each cache."""
    found = [(name, f, trace.capacity(f)) for name, trace in traces.items() for f in FRACTIONS]
    return [cell for cell in found if cell[2] >= FEWEST]


def trained_on(names: list[str], traces: dict[str, Trace]) -> Artifact:
    """Return a prior of the traces called ``names``."""
    return prior(
        [(traces[name], capacity) for name, _, capacity in cells(traces) if name in names],
        metadata={"prior": "shipped", "traces": sorted(names)},
    )


def misses(trace: Trace, policy: Guarded, capacity: int, seed: int) -> tuple[int, int]:
    """Return the misses in the first ``COLD`` capacities of requests, and in the second half."""
    missed = np.flatnonzero(simulate(trace, policy, capacity, seed=seed).hit == 0)
    return int((missed < COLD * capacity).sum()), int((missed >= len(trace) // 2).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, nargs="+", required=True)
    parser.add_argument("--requests", type=number, default=1_500_000, help="the first so many of each trace")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--ship", action="store_true")
    options = parser.parse_args()
    traces = {name: read_trace(path).head(options.requests) for name, path in find_traces(options.traces).items()}
    known = [name for name in traces if name in PUBLIC and name in DEVELOPMENT]
    if not known:
        sys.exit("a prior is trained on the development traces; none of them is among --traces")
    if options.ship:
        Guarded(prior=trained_on(known, traces)).save(SHIPPED)
        print(f"wrote {SHIPPED}")
    rows, priors = Rows(HERE / "results.csv", COLUMNS, KEY), {}
    for name, fraction, capacity in cells(traces):
        for seed in range(options.seeds):
            row = {"trace": name, "fraction": fraction, "seed": seed}
            if row in rows:
                continue
            others = [other for other in known if family(other) != family(name)]
            if tuple(others) not in priors:
                priors[tuple(others)] = trained_on(others, traces)
            cold = misses(traces[name], Guarded(), capacity, seed)
            taught = misses(traces[name], Guarded(prior=priors[tuple(others)]), capacity, seed)
            found = {
                "cold_misses": cold[0],
                "cold_misses_prior": taught[0],
                "misses": cold[1],
                "misses_prior": taught[1],
            }
            rows.add([row | found | {"capacity": capacity, "requests": len(traces[name])}])
            print(name, fraction, f"{taught[0] / max(cold[0], 1) - 1:+.2%}", flush=True)
    report(rows)


def report(rows: Rows) -> None:
    """Write the README's tables."""
    first, later, lines = [], [], []
    for row in rows.rows.values():
        first.append(int(row["cold_misses_prior"]) / max(int(row["cold_misses"]), 1) - 1)
        later.append(int(row["misses_prior"]) / max(int(row["misses"]), 1) - 1)
        part = part_of(row["trace"])
        lines.append(
            [
                row["trace"],
                part,
                f"{float(row['fraction']):g}",
                row["capacity"],
                f"{first[-1]:+.2%}",
                f"{later[-1]:+.2%}",
            ]
        )
    into_readme(
        HERE,
        "answer",
        f"Misses with the prior against none: in the first {COLD} capacities {statistics.mean(first):+.2%} on average, "
        f"at worst {max(first):+.2%}, at best {min(first):+.2%}, fewer in {sum(x < 0 for x in first)} and more in "
        f"{sum(x > 0 for x in first)} of {len(first)} caches; in the second half {statistics.mean(later):+.2%}, at "
        f"worst {max(later):+.2%}, at best {min(later):+.2%}.",
    )
    into_readme(HERE, "table", table("trace | part | fraction | capacity | first 10 capacities | second half", lines))


if __name__ == "__main__":
    main()
