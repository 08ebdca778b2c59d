"""Learned online against heuristics: misses of guarded, of all heuristics and of learned peers, on all public traces.

    python -m experiments.learned_vs_heuristics.run --traces FOLDER_OR_FILES [--only guarded] [--all]

Writes heuristics.csv, guarded.csv, peers.csv, speed.csv, plot.svg and the tables in README.md beside this file. Rows
that are there already are kept: a run that was interrupted is taken up, and after a change of guarded
``--only guarded --all`` is enough.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from experiments.common import Rows, find_traces, number
from experiments.learned_vs_heuristics import peers, speed, tables
from kvpredict.policies import policy, policy_names
from kvpredict.simulate import Result, simulate, sweep
from kvpredict.trace import Trace, read_trace

HERE = Path(__file__).parent
FRACTIONS = (0.001, 0.01, 0.1)
FEWEST = 16  # objects; smaller caches are left out
WARMUP = 0.5
LEARNED = ("learned", "guarded")
GROUPS = ("heuristics", "guarded", "peers", "speed")
SLOW = ["libcachesim:lrb"]
QUICK = [name for name in peers.PEERS if name not in SLOW]

KEY = ["trace", "unit", "fraction", "policy", "seed"]
COLUMNS = [
    "trace", "requests", "unique", "unit", "fraction", "capacity", "policy", "seed",
    "misses", "object_miss_ratio", "byte_miss_ratio", "seconds",
]  # fmt: skip


def cells(trace: Trace) -> Iterator[dict[str, Any]]:
    """Return what is measured on a trace: objects at each capacity, and bytes where it has sizes."""
    for unit in ("objects",) if trace.sizes is None else ("objects", "bytes"):
        for fraction in FRACTIONS:
            if trace.unique * fraction < FEWEST:
                print(f"{trace.name}, {fraction:.1%} of the {unit}: left out, fewer than {FEWEST} objects", flush=True)
                continue
            yield {
                "trace": trace.name, "requests": len(trace), "unique": trace.unique,
                "unit": unit, "fraction": fraction, "capacity": trace.capacity(fraction, unit),
            }  # fmt: skip


def figures(cell: dict[str, Any], r: Result) -> dict[str, Any]:
    return cell | {
        "policy": r.policy, "seed": r.seed, "misses": r.misses, "object_miss_ratio": f"{r.object_miss_ratio:.8f}",
        "byte_miss_ratio": f"{r.byte_miss_ratio:.8f}", "seconds": f"{r.seconds:.3f}",
    }  # fmt: skip


def run_heuristics(trace: Trace, rows: Rows, options: argparse.Namespace) -> None:
    """All heuristics and the oracles."""
    for cell in cells(trace):
        names = [n for n in policy_names() if n not in LEARNED and cell | {"policy": n, "seed": 0} not in rows]
        setting = {"unit": cell["unit"], "warmup": WARMUP, "jobs": options.jobs}
        rows.add(figures(cell, r) for r in sweep(trace, names, cell["capacity"], **setting))


def run_guarded(trace: Trace, rows: Rows, options: argparse.Namespace) -> None:
    """Guarded with several seeds; in bytes it is told that bytes count."""
    for cell in cells(trace):
        made = policy("guarded", **{"objective": cell["unit"]} | options.params)
        for seed in range(options.seeds):
            if cell | {"policy": "guarded", "seed": seed} not in rows:
                r = simulate(trace, made, cell["capacity"], unit=cell["unit"], warmup=WARMUP, seed=seed)
                rows.add([figures(cell, r) | {"policy": "guarded"}])


def run_peers(trace: Trace, rows: Rows, options: argparse.Namespace, names: list[str]) -> None:
    """libcachesim's policies; a row without figures says that it did not end within the limit."""
    with tempfile.TemporaryDirectory() as folder:
        for cell in cells(trace):
            path = Path(folder, cell["unit"])
            if not path.exists():
                peers.write(trace, path, cell["unit"])
            for name in names:
                row = cell | {"policy": name, "seed": 0}
                if row not in rows:
                    cut = trace.position(WARMUP)
                    done = peers.replay(name, path, cell["capacity"], len(trace), cut, options.limit_seconds)
                    rows.add([row | done])
                    print(*row.values(), *done.values(), flush=True)


STEPS = {
    "heuristics": [run_heuristics],
    "guarded": [run_guarded],
    "peers": [partial(run_peers, names=names) for names in (QUICK, SLOW)],  # what takes an hour comes last
}


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Learned online against heuristics.")
    parser.add_argument("--traces", type=Path, nargs="+", help="a folder of public traces, or files; none: tables only")
    parser.add_argument("--only", choices=GROUPS, help="compute one group; default: all")
    parser.add_argument("--all", action="store_true", help="compute again what is there already")
    parser.add_argument("--limit", type=number, default=3_000_000, help="requests used of a trace")
    parser.add_argument("--limit-seconds", type=int, default=300, help="processor time for a peer's cell")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of guarded: 0, 1, …")
    parser.add_argument("--params", type=json.loads, default={}, help="parameters of guarded, as JSON")
    parser.add_argument("--least", type=number, default=900_000, help="requests of a trace whose replay is timed")
    parser.add_argument("--jobs", type=int, default=1, help="threads for the heuristics")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for what is written")
    options = parser.parse_args(given)
    policy("guarded", **options.params)  # a wrong parameter fails now
    groups = [options.only] if options.only else list(GROUPS)
    found = find_traces(options.traces or [])

    def traces() -> Iterator[Trace]:
        for name, path in found.items():
            trace = read_trace(path).head(options.limit)
            trace.name = name
            yield trace

    for group in groups:
        if group == "speed":
            speed.run(traces(), options)
            continue
        rows = Rows(options.out / f"{group}.csv", COLUMNS, KEY)
        if options.all:
            rows.drop(lambda row: row["trace"] in found)
        for step in STEPS[group]:
            for trace in traces():
                step(trace, rows, options)
    tables.main(options.out)


if __name__ == "__main__":
    main()
