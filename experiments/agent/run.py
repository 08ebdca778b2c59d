"""The agent against labels and heuristics: warm start, imitation of Belady, policy gradient, each on the same traces.

    python -m experiments.agent.run --traces FOLDER [--credit hits] [--only web07,wiki] [--seed 0]

Writes results.csv and the first table of README.md beside this file; with credit for hits, hits.csv and the second; of
only some traces, neither. Traces, capacities and the split are those of experiments/all_policies, whose results.csv
gives the best heuristic in hindsight.
"""

import argparse
import csv
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.common import DEVELOPMENT, PUBLIC, VALIDATION
from kvpredict import fit, read_trace, simulate
from kvpredict.artifact import Artifact
from kvpredict.core.errors import KvpredictError
from kvpredict.learn.agent import Agent
from kvpredict.learn.learner import Curves, Fitted, Game
from kvpredict.policies import policy_class
from kvpredict.policies.learned import Learned
from kvpredict.trace import Trace

HERE = Path(__file__).parent
ALL = HERE.parent / "all_policies"

FRACTIONS = (0.01, 0.1)
TRAINED = ("learned", "guarded", "fit")  # of the policies in all_policies/results.csv
NETS = ("warm start", "imitation", "gradient")
FILES = {"charged": ("results.csv", "scorer"), "hits": ("hits.csv", "hits")}  # and the table's place
COLUMNS = ["trace", "part", "fraction", "capacity", "policy", "misses", "relative_to_lru", "fit_seconds"]


class Stages(Agent):
    """The agent in two goes, so that one training gives the nets before, between and after them."""

    def play(self, fitted: Fitted, game: Game, seed: int = 0) -> tuple[Fitted, Curves]:
        copied, _ = replace(Agent(**self.params()), updates=0).play(fitted, game, seed)
        final, curves = replace(Agent(**self.params()), imitation=0).play(copied, game, seed)
        MET[:] = [fitted, copied, final]
        return final, curves


MET: list[Fitted] = []


def best_heuristic() -> dict[tuple[str, float], int]:
    """Return the fewest misses of any heuristic, by trace and fraction."""
    best: dict[tuple[str, float], int] = {}
    with open(ALL / "results.csv", newline="") as file:
        for row in csv.DictReader(file):
            name, cell = row["policy"], (row["trace"], float(row["fraction"]))
            if row["unit"] == "objects" and name not in TRAINED and not policy_class(name).traits.oracle:
                best[cell] = min(best.get(cell, int(row["misses"])), int(row["misses"]))
    return best


def measure(trace: Trace, capacity: int, seed: int, **params: Any) -> dict[str, tuple[int, float]]:
    """Return misses over the second half and seconds of training, for LightGBM and for each of the agent's nets."""
    past = trace.head(0.5)
    found = {}
    started = time.perf_counter()
    made = fit(past, capacity, learner="lightgbm", seed=seed)
    found["lightgbm"] = simulate(trace, made, capacity, warmup=0.5, seed=seed).misses, time.perf_counter() - started
    started = time.perf_counter()
    made = fit(past, capacity, learner=Stages(**params), seed=seed)
    seconds = time.perf_counter() - started
    for name, net in zip(NETS, MET, strict=True):
        served = Learned(Artifact(net.scorer, made.artifact.schema, net.link))
        found[name] = simulate(trace, served, capacity, warmup=0.5, seed=seed).misses, seconds
    return found


def run(folder: Path, names: Sequence[str], seed: int, **params: Any) -> list[dict[str, Any]]:
    heuristic = best_heuristic()
    rows = []
    for name in names:
        trace = read_trace(folder / PUBLIC[name]).head(3_000_000)
        for fraction in FRACTIONS:
            capacity = trace.capacity(fraction)
            lru = simulate(trace, "lru", capacity, warmup=0.5).misses
            found = {"best heuristic": (heuristic[name, fraction], 0.0)}
            try:
                found |= measure(trace, capacity, seed, **params)
            except KvpredictError as error:
                print(f"{name}, {fraction:.0%}: {error}", file=sys.stderr)
            for policy, (misses, seconds) in found.items():
                part = "validation" if name in VALIDATION else "development"
                figures = (name, part, fraction, capacity, policy, misses, f"{misses / lru:.5f}", f"{seconds:.1f}")
                rows.append(dict(zip(COLUMNS, figures, strict=True)))
            print(f"{name:<16}{fraction:>4.0%}  " + "  ".join(f"{p} {m / lru - 1:+.2%}" for p, (m, _) in found.items()))
            sys.stdout.flush()
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return misses against LRU as Markdown, a line a cell and the means of each part."""
    policies = ["best heuristic", "lightgbm", *NETS]
    lines = ["| trace | capacity | " + " | ".join(policies) + " |", "|---" * (2 + len(policies)) + "|"]
    for part in ("development", "validation"):
        cells: dict[tuple[str, float], dict[str, float]] = {}
        for row in rows:
            if row["part"] == part:
                cell = cells.setdefault((row["trace"], float(row["fraction"])), {})
                cell[row["policy"]] = float(row["relative_to_lru"]) - 1
        for (trace, fraction), cell in cells.items():
            lines.append(f"| {trace} | {fraction:.0%} | " + " | ".join(f"{cell[p]:+.1%}" for p in policies) + " |")
        if cells:
            lines.append(mean_line(part, [[cell[p] for cell in cells.values()] for p in policies]))
    return "\n".join(lines)


def mean_line(part: str, columns: list[list[float]]) -> str:
    """Return the line of a table that holds each column's mean."""
    return f"| **{part}, mean** | | " + " | ".join(f"**{sum(c) / len(c):+.2%}**" for c in columns) + " |"


def fill(name: str, table: str) -> None:
    """Put a table in its place in README.md."""
    readme = HERE / "README.md"
    before, mark, rest = readme.read_text().partition(f"<!-- {name}: written by its script -->")
    after = rest[rest.index("<!-- end -->") :]
    readme.write_text(f"{before}{mark}\n\n{table}\n\n{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description="The agent against labels and heuristics.")
    parser.add_argument("--traces", type=Path, required=True, help="folder of the public traces")
    parser.add_argument("--credit", choices=FILES, default="charged", help="what the gradient judges a decision by")
    parser.add_argument("--only", help="comma-separated names")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    names = options.only.split(",") if options.only else [*DEVELOPMENT, *VALIDATION]
    rows = run(options.traces, names, options.seed, credit=options.credit)
    if options.only:
        return
    name, place = FILES[options.credit]
    with open(HERE / name, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    fill(place, table(rows))


if __name__ == "__main__":
    main()
