"""Ablations: guarded's misses with each ingredient switched off, and with other settings.

    python -m experiments.ablations.run --traces FOLDER_OR_FILES [--only "no guard,batch 1"] [--all]

Writes results.csv and the table in README.md beside this file. Misses are compared with those of the best heuristic of
each cell in hindsight, which experiments/learned_vs_heuristics has counted (its heuristics.csv). A variant that has the
defaults' settings is left out; rows that are there are kept. "model of hindsight" learns from the whole trace, what is
counted included, before it is replayed: how much better models of this form could do at all.
"""

import argparse
import csv
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from experiments.common import PUBLIC, Rows, find_traces, into_readme, number, part_of, table
from kvpredict.learn.online import prior
from kvpredict.policies.guarded import Guarded
from kvpredict.simulate import simulate
from kvpredict.trace import Trace, read_trace

HERE = Path(__file__).parent
HEURISTICS = HERE.parent / "learned_vs_heuristics" / "heuristics.csv"
FRACTIONS = (0.01, 0.1)
WARMUP = 0.5
HINDSIGHT = 200_000  # decisions that a model of hindsight learns from
ORACLES = ("belady", "beladysize")
KEY = ["variant", "trace", "fraction", "seed"]
COLUMNS = [*KEY, "params", "capacity", "misses", "writes", "best", "best_misses", "requests", "seconds"]


def variants() -> dict[str, dict[str, Any]]:
    """Return the settings of each variant, by name."""
    leaders = Guarded().leaders.split("+")
    made: dict[str, dict[str, Any]] = {"defaults": {}, "no guard": {"guard": False}, "no learning": {"learn": False}}
    if len(leaders) > 1:
        made |= {f"without {one}": {"leaders": "+".join(n for n in leaders if n != one)} for one in leaders}
    made |= {
        "only lru leads": {"leaders": "lru"},
        "with clock2qplus": {"leaders": "+".join([*leaders, "clock2qplus"])},
        "no regions": {"regions": False},
        "with a prior": {"prior": "shipped"},
    }
    made |= {"bypass": {"bypass": True}}
    others = {
        "batch": (1, 4, 8), "candidates": (32, 64, 256), "reprieves": (0, 3), "history": (2.0, 4.0, 8.0, 16.0, 64.0),
        "samples": (3000, 10_000, 60_000), "horizon": (1.0, 2.0, 4.0, 8.0), "near": (0.0, 0.1, 0.5),
        "margin": (0.0, 0.01), "memory": (1.0, 2.0, 8.0, 16.0),
        "patience": (0.25, 1.0, 2.0, 4.0), "swing": (1.0, 4.0), "most": (2.0, 3.0, 6.0),
    }  # fmt: skip
    made |= {f"{field} {value:g}": {field: value} for field, values in others.items() for value in values}
    usual = Guarded()
    made = {name: params for name, params in made.items() if name == "defaults" or Guarded(**params) != usual}
    return made | {"model of hindsight": {"prior": "hindsight", "learn": False}}


def make(params: dict[str, Any], trace: Trace, fraction: float) -> Guarded:
    """Return the policy of a variant."""
    if params.get("prior") == "hindsight":
        known = prior([(trace, trace.capacity(fraction))], Guarded(samples=HINDSIGHT), rows=HINDSIGHT)
        params = params | {"prior": known}
    return Guarded(**params)


def best_heuristics(path: Path) -> dict[tuple[str, float], tuple[str, int, int]]:
    """Return the best heuristic of each trace and fraction of its keys: name, misses, and the trace's requests."""
    best: dict[tuple[str, float], tuple[str, int, int]] = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            if row["unit"] == "objects" and row["policy"] not in ORACLES:
                key, found = (row["trace"], float(row["fraction"])), (row["policy"], int(row["misses"]))
                if key not in best or found[1] < best[key][1]:
                    best[key] = (*found, int(row["requests"]))
    return best


def run(name: str, params: dict[str, Any], traces: list[Trace], best: Any, rows: Rows, options: Any) -> None:
    """Replay what is missing of a variant; one process compiles each set of leaders once."""
    for trace in traces:
        for fraction in FRACTIONS:
            if (trace.name, fraction) not in best:
                print(f"{trace.name}, {fraction:.0%}: left out, no heuristic was counted there", file=sys.stderr)
                continue
            heuristic, misses, requests = best[trace.name, fraction]
            if requests != len(trace):
                sys.exit(f"{trace.name}: the heuristics were counted on {requests} requests, here are {len(trace)}")
            made = None
            for seed in range(options.seeds):
                row = {"variant": name, "trace": trace.name, "fraction": fraction, "seed": seed}
                if options.all or row not in rows:
                    made = made or make(params, trace, fraction)
                    r = simulate(trace, made, trace.capacity(fraction), warmup=WARMUP, seed=seed)
                    rows.add([row | {
                        "params": json.dumps(params), "capacity": r.capacity, "misses": r.misses, "writes": r.writes,
                        "best": heuristic, "best_misses": misses, "requests": r.total_requests,
                        "seconds": f"{r.seconds:.3f}",
                    }])  # fmt: skip
    print(name, flush=True)


def tables(rows: Rows, folder: Path) -> None:
    """Put the table into README.md."""
    against: dict[str, dict[tuple[str, str], dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    replayed: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    writes: dict[str, list[float]] = defaultdict(list)
    for row in rows.rows.values():
        ratio = int(row["misses"]) / int(row["best_misses"]) - 1 if int(row["best_misses"]) else 0.0
        against[row["variant"]][row["trace"], row["fraction"]][row["seed"]] = ratio
        writes[row["variant"]].append(int(row["writes"]) / max(int(row["misses"]), 1))
        replayed[row["variant"]][0] += int(row["requests"])
        replayed[row["variant"]][1] += float(row["seconds"])
    if "defaults" not in against:
        print("the defaults have no rows yet: no table")
        return
    usual = against["defaults"]
    lines = []
    for name in filter(against.__contains__, variants()):
        cells = against[name]
        means = {cell: statistics.fmean(seeds.values()) for cell, seeds in cells.items()}
        worst = max(means, key=lambda cell: means[cell])
        same = [cell for cell in cells if cell in usual]
        each = by_seed(cells, usual, same)
        difference = f"{statistics.fmean(each):+.2%} ({min(each):+.2%} to {max(each):+.2%})" if each else "-"
        requests, seconds = replayed[name]
        lines.append([
            name, f"{len(cells)}", f"{statistics.fmean(means.values()):+.2%}", f"{means[worst]:+.1%} ({worst[0]}, "
            f"{float(worst[1]):.0%})", f"{sum(m > 0.01 for m in means.values())}",
            "" if name == "defaults" else difference, f"{statistics.fmean(writes[name]):.2f}",
            f"{requests / seconds / 1e6:.2f}" if seconds else "-",
        ])  # fmt: skip
    spread = [max(seeds.values()) - min(seeds.values()) for seeds in usual.values()]
    overall = by_seed(usual, None, list(usual))
    noise = (
        f"Noise of the defaults: over {len(overall)} seeds the mean of all cells lies between {min(overall):+.2%} and "
        f"{max(overall):+.2%}; in a single cell seeds differ by {statistics.fmean(spread):.2%} on average and by "
        f"{max(spread):.2%} at most.\n\n"
    )
    head = "variant | cells | mean | worst | over 1 % worse | mean against the defaults (seeds) | writes a miss"
    head += " | M requests/s"
    into_readme(folder, "table", noise + table(head, lines))


def by_seed(cells: Any, less: Any, chosen: list[tuple[str, str]]) -> list[float]:
    """Return, for each seed that all chosen cells have, their mean, less that of the same cells of ``less``."""
    sides = [cells, less] if less is not None else [cells]
    seeds = set.intersection(*({*side[cell]} for side in sides for cell in chosen)) if chosen else set()
    means = [[statistics.fmean(side[cell][seed] for cell in chosen) for side in sides] for seed in sorted(seeds)]
    return [pair[0] - (pair[1] if len(pair) > 1 else 0.0) for pair in means]


def main(given: list[str] | None = None) -> None:
    known = variants()
    parser = argparse.ArgumentParser(description="Ablations of guarded.")
    parser.add_argument("--traces", type=Path, nargs="+", help="a folder of public traces, or files; none: table only")
    parser.add_argument("--part", choices=["development", "validation", "test"], default="development")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(known), help="variants, by name")
    parser.add_argument("--all", action="store_true", help="compute again what is there already")
    parser.add_argument("--limit", type=number, default=3_000_000, help="requests used of a trace")
    parser.add_argument("--seeds", type=int, default=3, help="seeds: 0, 1, …")
    parser.add_argument("--heuristics", type=Path, default=HEURISTICS, help="heuristics.csv of learned_vs_heuristics")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for what is written")
    options = parser.parse_args(given)
    for name in options.only:
        if name not in known:
            sys.exit(f"there is no variant {name!r}; there are: {', '.join(known)}")
    rows = Rows(options.out / "results.csv", COLUMNS, KEY)
    traces = []
    for name, path in find_traces(options.traces or []).items():
        if name not in PUBLIC or part_of(name) == options.part:
            traces.append(read_trace(path).head(options.limit))
            traces[-1].name = name
    for name in options.only if traces else ():
        run(name, known[name], traces, best_heuristics(options.heuristics), rows, options)
    tables(rows, options.out)


if __name__ == "__main__":
    main()
