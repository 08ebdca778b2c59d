"""The tables of README.md and plot.svg, from the csv files that the command writes.

A *cell* is a trace at a capacity. Misses are requests, or in cells measured in bytes the bytes missed. Guarded's figure
is the mean of its seeds; the best heuristic is the best of the cell in hindsight; 3L-Cache's figure is the better of
its two objectives in the cell. The oracle is Belady, in bytes the better of Belady and BeladySize.
"""

import csv
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from experiments.common import PUBLIC, into_readme, part_of, table
from experiments.learned_vs_heuristics import plot, speed

__all__ = ["HEADROOM", "Cell", "main", "read"]

HEADROOM = 0.02  # share of LRU's misses that the oracle must spare for a cell to count in the summary
ORACLES = ("belady", "beladysize")
PEERS = {"3L-Cache": "libcachesim:3lcache", "LRB": "libcachesim:lrb", "Cacheus, libcachesim": "libcachesim:cacheus"}
PARTS = ("all", "development", "validation", "test")


class Cell:
    """A trace at a capacity: the miss ratio of every policy, in what the cell counts."""

    def __init__(self, trace: str, unit: str, fraction: float) -> None:
        self.trace, self.unit, self.fraction = trace, unit, fraction
        self.part = part_of(trace)
        self.ratios: dict[str, list[float]] = defaultdict(list)  # of every seed; none where a replay did not end

    def of(self, name: str) -> float | None:
        """Return a policy's mean miss ratio."""
        return statistics.fmean(self.ratios[name]) if self.ratios.get(name) else None

    @property
    def heuristics(self) -> list[str]:
        return [n for n in self.ratios if n not in ("guarded", *ORACLES) and not n.startswith("libcachesim")]

    @property
    def best(self) -> str:
        return min(self.heuristics, key=lambda name: self.ratios[name][0])

    @property
    def oracle(self) -> float:
        return min(self.ratios[name][0] for name in (ORACLES if self.unit == "bytes" else ORACLES[:1]))

    @property
    def counts(self) -> bool:
        """Whether there is something to be had."""
        return self.oracle <= (1 - HEADROOM) * self.ratios["lru"][0]

    def against(self, name: str, other: str) -> float | None:
        """Return by which share more one policy misses than another; None where a figure is missing."""
        one, two = self.of(name), self.of(other)
        return None if one is None or two is None else one / two - 1 if two else 0.0


def read(folder: Path) -> list[Cell]:
    """Return the cells of which heuristics and guarded are there."""
    cells: dict[tuple[str, str, float], Cell] = {}
    for file in ("heuristics.csv", "guarded.csv", "peers.csv"):
        if not (folder / file).is_file():
            continue
        with open(folder / file, newline="") as text:
            for row in csv.DictReader(text):
                key = row["trace"], row["unit"], float(row["fraction"])
                cell = cells.setdefault(key, Cell(*key))
                ratio = row["object_miss_ratio" if row["unit"] == "objects" else "byte_miss_ratio"]
                if ratio:
                    cell.ratios[row["policy"]].append(float(ratio))
    for cell in cells.values():
        objectives = [cell.ratios.pop(n) for n in [n for n in cell.ratios if n.startswith("libcachesim:3lcache")]]
        if objectives:
            cell.ratios["libcachesim:3lcache"] = min(objectives)
    order = {name: at for at, name in enumerate(PUBLIC)}
    there = [c for c in cells.values() if {"lru", "guarded", "belady", "beladysize"} <= set(c.ratios)]
    return sorted(there, key=lambda c: (c.unit != "objects", order.get(c.trace, 99), c.trace, c.fraction))


def capacity(cell: Cell) -> str:
    return f"{cell.fraction:.1%} of {'keys' if cell.unit == 'objects' else 'bytes'}"


def percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:+.{digits}%}"


def mean(values: list[float | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{statistics.fmean(known):+.2%}" if known else "-"


def below(cells: list[Cell], other: str) -> str:
    """Say in how many cells guarded misses less than another, among those where the other ended."""
    known = [v for v in (c.against("guarded", other) for c in cells) if v is not None]
    return f"{sum(v < 0 for v in known)} of {len(known)}"


def versus_best(cells: list[Cell], name: str) -> list[str]:
    """Return mean, median, worst and cells over 1 % of a policy against the best heuristic of each cell."""
    known = [(v, c) for c in cells if (v := c.against(name, c.best)) is not None]
    worst, where = max(known, key=lambda pair: pair[0])
    values = [v for v, _ in known]
    return [
        f"{len(values)}", f"{statistics.fmean(values):+.2%}", f"{statistics.median(values):+.2%}",
        f"{worst:+.1%} ({where.trace}, {where.fraction:.1%})", f"{sum(v > 0.01 for v in values)}",
        f"{sum(v < 0 for v in values)}",
    ]  # fmt: skip


def summary(cells: list[Cell], unit: str) -> str:
    """Return guarded against the best heuristic of each cell, by part and capacity."""
    rows = []
    for part in PARTS:
        for fraction in (None, *sorted({c.fraction for c in cells})):
            chosen = [
                c for c in cells
                if c.unit == unit and c.counts and part in ("all", c.part) and fraction in (None, c.fraction)
            ]  # fmt: skip
            if chosen and (part == "all" or fraction is None):
                gdsf = [mean([c.against("guarded", "gdsf") for c in chosen])] if unit == "bytes" else []
                lru = mean([c.against("guarded", "lru") for c in chosen])
                peers = [f(chosen, name) for name in list(PEERS.values())[:2] for f in (below, mean_against)]
                rows.append([part, f"{fraction:.1%}" if fraction else "all", *versus_best(chosen, "guarded"), lru])
                rows[-1] += [*gdsf, *peers]
    head = "traces | capacity | cells | mean | median | worst | over 1 % worse | better | against LRU, mean"
    head += " | against GDSF, mean" if unit == "bytes" else ""
    return table(head + " | below 3L-Cache | against it, mean | below LRB | against it, mean", rows)


def mean_against(cells: list[Cell], other: str) -> str:
    return mean([c.against("guarded", other) for c in cells])


def contenders(cells: list[Cell], unit: str) -> str:
    """Return every policy against the best heuristic of each cell, best mean first."""
    chosen = [c for c in cells if c.unit == unit and c.counts]
    if not chosen:
        return ""
    labels = {name: name for name in ["guarded", *chosen[0].heuristics]} | {n: label for label, n in PEERS.items()}
    known = [name for name in labels if any(c.of(name) is not None for c in chosen)]
    known.sort(key=lambda n: statistics.fmean(v for c in chosen if (v := c.against(n, c.best)) is not None))
    rows = [[labels[n], *versus_best(chosen, n), mean([c.against(n, "lru") for c in chosen])] for n in known]
    return table("policy | cells | mean | median | worst | over 1 % worse | better | against LRU, mean", rows)


def full(cells: list[Cell], chosen: Callable[[Cell], bool]) -> str:
    """Return a row for each cell, misses against LRU."""
    rows = []
    for c in cells:
        if not chosen(c):
            continue
        peers = ["=" if c.of(n) == c.of("lru") else percent(c.against(n, "lru")) for n in PEERS.values()]
        seeds = c.ratios["guarded"]
        spread = (max(seeds) - min(seeds)) / c.ratios["lru"][0] / 2
        rows.append([
            c.trace, capacity(c), f"{c.ratios['lru'][0]:.4f}", f"{percent(c.against(c.best, 'lru'))} ({c.best})",
            percent(c.against("cacheus", "lru")), peers[2], peers[0], peers[1],
            f"{percent(c.against('guarded', 'lru'))} ± {spread:.1%}", percent(c.oracle / c.ratios["lru"][0] - 1),
            percent(c.against("guarded", c.best)),
        ])  # fmt: skip
    head = "trace | capacity | LRU's miss ratio | best heuristic | Cacheus | Cacheus, libcachesim | 3L-Cache | LRB"
    return table(head + " | guarded | oracle | guarded against the best heuristic", rows)


def answer(cells: list[Cell]) -> str:
    """Return the findings in sentences."""
    lines = []
    for unit in ("objects", "bytes"):
        chosen = [c for c in cells if c.unit == unit and c.counts]
        if not chosen:
            continue
        n, average, median, worst, over, better = versus_best(chosen, "guarded")
        own = [(c, c.of("guarded") or 0.0) for c in chosen]
        spread = [(max(c.ratios["guarded"]) - min(c.ratios["guarded"])) / ratio for c, ratio in own]
        closed = [(c.ratios["lru"][0] - ratio) / (c.ratios["lru"][0] - c.oracle) for c, ratio in own]
        what = "Objects of one size" if unit == "objects" else "Bytes"
        lines.append(
            f"- **{what}**, {n} cells with headroom: guarded's misses are {average} on average against the best "
            f"heuristic of each cell in hindsight (median {median}; fewer in {better} cells, over 1 % more in {over}, "
            f"worst {worst}), {mean_against(chosen, 'lru')} against LRU, {mean_against(chosen, 'gdsf')} against GDSF. "
            f"It closes {statistics.fmean(closed):.0%} of the gap between LRU and the oracle. Seeds differ by "
            f"{statistics.fmean(spread):.2%} of the misses on average, at most {max(spread):.2%}."
        )
        for label, name in list(PEERS.items())[:2]:
            ended = [c for c in chosen if c.of(name) is not None]
            trained = [c for c in ended if c.of(name) != c.of("lru")]
            lines.append(
                f"  - Against {label} {mean_against(ended, name)}, fewer in {below(ended, name)} cells. {label} equals "
                f"LRU to the last miss in {len(ended) - len(trained)} of them; in the others "
                f"{mean_against(trained, name)}, fewer in {below(trained, name)}."
            )
    idle = [c for c in cells if not c.counts]
    if idle:
        harm = max(idle, key=lambda c: c.against("guarded", "lru") or 0.0)
        lines.append(
            f"- **Do no harm**, {len(idle)} cells where the oracle spares less than {HEADROOM:.0%} of LRU's misses: "
            f"guarded against LRU {mean_against(idle, 'lru')}, at worst {percent(harm.against('guarded', 'lru'), 2)} "
            f"({harm.trace}, {capacity(harm)})."
        )
    checked = [c for c in cells if c.of("libcachesim:lru") is not None]
    differ = [c for c in checked if abs(c.against("libcachesim:lru", "lru") or 0.0) > 1e-7]
    where = "".join(f"; {c.trace}, {capacity(c)}: {percent(c.against('libcachesim:lru', 'lru'), 2)}" for c in differ)
    same = f"{len(checked) - len(differ)} of {len(checked)}"
    lines.append(f"- Check: libcachesim's LRU misses what ours misses in {same} cells{where}.")
    return "\n".join(lines)


def main(folder: Path) -> None:
    """Write the plot, and the tables into README.md."""
    cells = read(folder)
    into_readme(folder, "speed", speed.markdown(folder))
    if not cells:
        print("no cell has rows of both the heuristics and guarded yet: no tables")
        return
    plot.draw(cells, folder / "plot.svg")
    into_readme(folder, "answer", answer(cells))
    units = [unit for unit in ("objects", "bytes") if any(c.unit == unit and c.counts for c in cells)]
    title = {"objects": "Objects of one size, misses", "bytes": "Bytes missed"}
    into_readme(folder, "summary", "\n".join(f"{title[unit]}:\n\n{summary(cells, unit)}" for unit in units))
    into_readme(folder, "contenders", "\n".join(f"{title[unit]}:\n\n{contenders(cells, unit)}" for unit in units))
    text = f"With headroom:\n\n{full(cells, lambda c: c.counts)}\nWithout:\n\n{full(cells, lambda c: not c.counts)}"
    into_readme(folder, "cells", text)
