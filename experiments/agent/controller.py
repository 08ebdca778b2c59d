"""The controller against the rule: ``guarded`` with lambda and leader steered by evolved weights, and by hand.

    python -m experiments.agent.controller --traces FOLDER [--train] [--seed 0]

With ``--train`` the weights are evolved anew, on synthetic workloads and the first halves of the development traces,
and written to controller.json with their curve. Then both are measured on all traces of run.py: controller.csv, and the
table in README.md.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np

from experiments.agent.run import FRACTIONS, HERE, fill, mean_line
from experiments.common import DEVELOPMENT, PUBLIC, VALIDATION
from kvpredict import Trace, policy, read_trace, simulate
from kvpredict.learn.controller import evolve_controller
from kvpredict.trace.workloads import workload

WEIGHTS = HERE / "controller.json"
LONGEST = 20_000  # requests of a cell to evolve on
WORKLOADS = ("drift", "online_shop", "scans", "diurnal")
COLUMNS = ["trace", "part", "fraction", "capacity", "seed", "rule", "controller"]


def cells(folder: Path) -> list[tuple[Trace, int]]:
    """Return what the weights are evolved on: a capacity of 5 % of the keys for workloads, 1 or 10 % for traces."""
    made = [workload(name, requests=LONGEST).generate(seed=1) for name in WORKLOADS]
    found = [(trace, trace.capacity(0.05)) for trace in made]
    for i, name in enumerate(DEVELOPMENT):
        past = read_trace(folder / PUBLIC[name]).head(0.5).head(LONGEST)
        found.append((past, past.capacity(FRACTIONS[i % 2])))
    return found


def train(folder: Path, seed: int) -> None:
    def progress(generation: int, figure: float) -> None:
        print(f"generation {generation}: misses {figure - 1:+.2%} against the rule", flush=True)

    weights, curves = evolve_controller(cells(folder), generations=5, pairs=4, sigma=1.0, seed=seed, progress=progress)
    curves = {name: {k: np.round(v, 5).tolist() for k, v in curve.items()} for name, curve in curves.items()}
    WEIGHTS.write_text(json.dumps({"weights": weights.round(4).tolist(), "curves": curves}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="The controller against the rule.")
    parser.add_argument("--traces", type=Path, required=True, help="folder of the public traces")
    parser.add_argument("--train", action="store_true", help="evolve the weights anew")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.train:
        train(options.traces, options.seed)
    weights = tuple(json.loads(WEIGHTS.read_text())["weights"])
    steered = {"rule": policy("guarded"), "controller": policy("guarded", controller=weights)}
    rows = []
    lines = ["| trace | capacity | misses, controller against rule |", "|---|---|---|"]
    for part, names in (("development", DEVELOPMENT), ("validation", VALIDATION)):
        found = []
        for name in names:
            trace = read_trace(options.traces / PUBLIC[name]).head(3_000_000)
            for fraction in FRACTIONS:
                capacity = trace.capacity(fraction)
                misses = {
                    who: simulate(trace, made, capacity, warmup=0.5, seed=options.seed).misses
                    for who, made in steered.items()
                }
                found.append(misses["controller"] / misses["rule"] - 1)
                row = (name, part, fraction, capacity, options.seed, *misses.values())
                rows.append(dict(zip(COLUMNS, row, strict=True)))
                lines.append(f"| {name} | {fraction:.0%} | {found[-1]:+.2%} |")
                print(lines[-1], flush=True)
        lines.append(mean_line(part, [found]))
    with open(HERE / "controller.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    fill("controller", "\n".join(lines))


if __name__ == "__main__":
    main()
