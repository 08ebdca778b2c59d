"""The table of README.md and plot.svg, from results.csv.

The best heuristic is the one with the fewest misses from the shift to the end. *Regret* is guarded's misses less the
best heuristic's, summed from the shift on, in capacities. *Recovered after w*: w is the first window (of one capacity)
such that guarded's misses, summed from there over one window, two, and so on to the last, never exceed the best
heuristic's over the same windows by more than 1 %.
"""

import csv
import statistics
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.common import into_readme, table

__all__ = ["Run", "main", "read", "recovered"]

TOLERANCE = 0.01
SOON = 10  # capacities
SHOWN = 30  # capacities in the plot


class Run(NamedTuple):
    capacity: int
    requests: int  # after the shift
    misses: int  # after the shift
    windows: np.ndarray  # misses in each


Cell = dict[str, list[Run]]  # by policy, of each seed


def read(folder: Path) -> dict[tuple[str, str], Cell]:
    """Return the runs by scenario and fraction."""
    cells: dict[tuple[str, str], Cell] = defaultdict(lambda: defaultdict(list))
    with open(folder / "results.csv", newline="") as file:
        for row in csv.DictReader(file):
            windows = np.array(row["windows"].split(), np.int64)
            run = Run(int(row["capacity"]), int(row["requests"]) - int(row["shift"]), int(row["misses"]), windows)
            cells[row["scenario"], row["fraction"]][row["policy"]].append(run)
    return {key: cell for key, cell in cells.items() if "guarded" in cell and "lru" in cell}


def recovered(own: np.ndarray, best: np.ndarray) -> int | None:
    """Return the window from which on ``own`` misses stay within 1 % of the best's; None if only the last do."""
    for w in range(max(len(own) - 1, 0)):
        if (np.cumsum(own[w:]) <= (1 + TOLERANCE) * np.cumsum(best[w:])).all():
            return w
    return None


def best_of(cell: Cell, among: list[str] | None = None) -> str:
    names = [n for n in cell if n != "guarded" and (among is None or n in among)]
    return min(names, key=lambda n: cell[n][0].misses)


def regret(own: Run, best: Run, windows: int) -> float:
    return float((own.windows - best.windows)[:windows].sum()) / own.capacity


def line(scenario: str, fraction: str, cell: Cell, leaders: list[str]) -> list[str]:
    """Return a row of the table; figures of guarded are means of its seeds."""
    name, leader, own = best_of(cell), best_of(cell, leaders), cell["guarded"]
    best = cell[name][0]
    total = [r.misses / best.misses - 1 for r in own]
    soon = [r.windows[:SOON].sum() / best.windows[:SOON].sum() - 1 for r in own]
    back = [recovered(r.windows, best.windows) for r in own]
    leading = f"{leader} {cell[leader][0].misses / best.misses - 1:+.1%}"
    return [
        scenario, f"{float(fraction):.0%}", f"{len(best.windows)}", f"{name} {best.misses / best.requests:.4f}",
        leading, f"{cell['lru'][0].misses / best.misses - 1:+.1%}", f"{statistics.fmean(soon):+.1%}",
        f"{statistics.fmean(total):+.1%}", f"{statistics.fmean(regret(r, best, SOON) for r in own):+.2f}",
        f"{statistics.fmean(regret(r, best, len(r.windows)) for r in own):+.2f}",
        ", ".join("-" if w is None else str(w) for w in back),
    ]  # fmt: skip


def answer(cells: dict[tuple[str, str], Cell]) -> str:
    """Return the finding in sentences."""
    back, late = [], []
    for (scenario, fraction), cell in cells.items():
        best = cell[best_of(cell)][0]
        for run in cell["guarded"]:
            after = recovered(run.windows, best.windows)
            back.append(after is not None and after <= SOON)
            if not back[-1]:
                late.append(f"{scenario} {float(fraction):.0%}")
    totals = [statistics.fmean(r.misses for r in c["guarded"]) / c[best_of(c)][0].misses - 1 for c in cells.values()]
    where = f"; not in {', '.join(f'{n} ({late.count(n)})' for n in dict.fromkeys(late))}" if late else ""
    return (
        f"Within {SOON} capacities after the shift guarded is within {TOLERANCE:.0%} of the best heuristic, and stays "
        f"so, in {sum(back)} of {len(back)} runs{where}. From the shift to the end it has "
        f"{statistics.fmean(totals):+.1%} misses against that heuristic on average, at worst {max(totals):+.1%}."
    )


def draw(cells: dict[tuple[str, str], Cell], leaders: list[str], path: Path) -> None:
    """A panel for each scenario and capacity: regret since the shift, of guarded and of its leaders."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "shifts"  # the same figures draw the same file
    from matplotlib import pyplot as plt

    scenarios = list(dict.fromkeys(scenario for scenario, _ in cells))
    fractions = list(dict.fromkeys(fraction for _, fraction in cells))
    size = (5 * len(fractions), 2.1 * len(scenarios) + 0.6)
    figure, axes = plt.subplots(len(scenarios), len(fractions), figsize=size, squeeze=False, layout="constrained")
    colours = dict(zip(leaders, plt.get_cmap("tab10").colors, strict=False))
    for (scenario, fraction), cell in cells.items():
        axis = axes[scenarios.index(scenario)][fractions.index(fraction)]
        best = cell[best_of(cell)][0]
        for name in [n for n in leaders if n in cell] + ["guarded"]:
            own = name == "guarded"
            for run in cell[name]:
                since = np.concatenate([[0], np.cumsum(run.windows - best.windows)[:SHOWN]]) / run.capacity
                style = {"color": "black", "linewidth": 1.6} if own else {"color": colours.get(name), "linewidth": 0.9}
                axis.plot(since, label=name, **style)
        drawn = [np.cumsum(r.windows - best.windows)[:SHOWN] / r.capacity for r in cell["guarded"]]
        reach = max(0.2, *(float(np.abs(d).max(initial=0.0)) for d in drawn))
        axis.set_ylim(-1.2 * reach, 3 * reach)  # leaders far off leave the panel
        axis.axhline(0, color="black", linewidth=0.5)
        axis.set_title(f"{scenario}, {float(fraction):.0%}: against {best_of(cell)}", fontsize=8)
        axis.tick_params(labelsize=7)
    handles = [plt.Line2D([], [], color=colours[n]) for n in colours] + [plt.Line2D([], [], color="black")]
    figure.legend(handles, [*colours, "guarded"], ncols=7, fontsize=8, loc="outside upper center")
    figure.supxlabel("capacities of requests since the shift", fontsize=9)
    figure.supylabel("regret, in capacities", fontsize=9)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main(folder: Path, leaders: list[str]) -> None:
    """Write the plot, and the table into README.md."""
    cells = read(folder)
    if not cells:
        print("no scenario has rows of both the heuristics and guarded yet: no table")
        return
    draw(cells, leaders, folder / "plot.svg")
    head = (
        "scenario | capacity | windows | best heuristic, miss ratio | best leader | LRU | guarded, first 10 | "
        "guarded, to the end | regret at 10 | regret at the last window | recovered after"
    )
    rows = [line(scenario, fraction, cell, leaders) for (scenario, fraction), cell in cells.items()]
    into_readme(folder, "answer", answer(cells))
    into_readme(folder, "table", table(head, rows))
