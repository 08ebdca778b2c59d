"""Draw results.csv as plot.svg, and put its table into README.md.

python -m experiments.all_policies.plot [FOLDER]
"""

import csv
import statistics
import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
ORACLES = ("belady", "beladysize")
LEARNED = ("learned", "guarded", "fit")
LOWEST, HIGHEST = 0.3, 1.8  # misses relative to LRU that the plot shows
BEGIN, END = "<!-- table: written by plot.py -->", "<!-- end of table -->"

Cell = dict[str, dict[str, tuple[float, float]]]  # policy -> trace -> (misses relative to LRU, gap closed)


def read(folder: Path) -> dict[tuple[str, str], Cell]:
    """Return the figures by (unit, fraction); the gap is nan where LRU is as good as the oracle."""
    cells: dict[tuple[str, str], Cell] = defaultdict(lambda: defaultdict(dict))
    with open(folder / "results.csv", newline="") as file:
        for r in csv.DictReader(file):
            figures = float(r["relative_to_lru"]), float(r["gap_closed"])
            cells[r["unit"], r["fraction"]][r["policy"]][r["trace"]] = figures
    return cells


def ranked(cell: Cell) -> list[str]:
    """Return policies, fewest misses relative to LRU first."""
    return sorted(cell, key=lambda name: statistics.fmean(misses_of(cell[name])))


def misses_of(figures: dict[str, tuple[float, float]]) -> list[float]:
    return [misses for misses, _ in figures.values()]


def gaps(figures: dict[str, tuple[float, float]]) -> list[float]:
    return [gap for _, gap in figures.values() if gap == gap]


def draw(cells: dict[tuple[str, str], Cell], path: Path) -> None:
    """A row of panels for each unit and capacity: misses relative to LRU, and the gap closed; a dot is a trace."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "all_policies"  # the same figures draw the same file
    from matplotlib import pyplot as plt

    rows = max(len(cell) for cell in cells.values())
    figure, axes = plt.subplots(
        len(cells), 2, figsize=(11, 0.26 * rows * len(cells) + 1.5), squeeze=False, layout="constrained"
    )
    for (left, right), ((unit, fraction), cell) in zip(axes, cells.items(), strict=True):
        names = ranked(cell)[::-1]
        title = f"capacity {float(fraction):.0%} of " + ("keys" if unit == "objects" else "bytes")
        for at, name in enumerate(names):
            colour = "tab:gray" if name in ORACLES else "tab:red" if name in LEARNED else "tab:blue"
            misses = misses_of(cell[name])
            shown = [min(max(m, LOWEST), HIGHEST) for m in misses]  # dots beyond the axis stand at its edge
            left.plot(shown, [at] * len(shown), ".", color=colour, alpha=0.4, markersize=5)
            left.plot([statistics.fmean(misses)], [at], "|", color=colour, markersize=12, markeredgewidth=2)
            closed = gaps(cell[name])
            if closed:
                right.barh(at, statistics.fmean(closed), color=colour, height=0.7)
        left.axvline(1, color="black", linewidth=0.7)
        left.set_xlim(LOWEST - 0.02, HIGHEST + 0.02)
        left.set_title(f"misses relative to LRU, {title}", fontsize=9)
        right.axvline(0, color="black", linewidth=0.7)
        right.set_xlim(-1, 1)  # LFU's bar would need five times that
        right.set_title(f"mean gap LRU to oracle closed, {title}", fontsize=9)
        for axis in (left, right):
            axis.set_yticks(range(len(names)), names, fontsize=8)
            axis.tick_params(axis="x", labelsize=8)
            axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def table(cells: dict[tuple[str, str], Cell]) -> str:
    """Return the figures as Markdown, a table for each unit and capacity."""
    parts = []
    for (unit, fraction), cell in cells.items():
        count = max(len(values) for values in cell.values())
        size = f"{float(fraction):.0%} of the {'keys' if unit == 'objects' else 'bytes'}"
        parts += [
            f"\nCapacity {size}, {count} traces:\n",
            "| policy | misses against LRU, mean | best trace | worst trace | gap closed, mean |",
            "|---|---|---|---|---|",
        ]
        for name in ranked(cell):
            misses = [m - 1 for m in misses_of(cell[name])]
            closed = gaps(cell[name])
            share = f"{statistics.fmean(closed):.1%}" if closed else "-"
            note = "" if len(misses) == count else f" ({len(misses)} traces)"
            figures = f"{statistics.fmean(misses):+.1%} | {min(misses):+.1%} | {max(misses):+.1%} | {share}"
            parts.append(f"| {name}{note} | {figures} |")
    return "\n".join(parts) + "\n"


def hindsight(cells: dict[tuple[str, str], Cell]) -> str:
    """Return, as Markdown, each policy against the heuristic that turned out best on each trace."""
    parts = [
        "\nAgainst the best heuristic of each trace in hindsight:\n",
        "| capacity | policy | misses, mean | median | best trace | worst trace | better | over 1 % worse |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (unit, fraction), cell in cells.items():
        heuristics = [name for name in cell if name not in (*ORACLES, *LEARNED)]
        best = {trace: min(cell[name][trace][0] for name in heuristics) for trace in cell["lru"]}
        for name in [*LEARNED, *[name for name in ranked(cell) if name in heuristics][:3]]:
            if name not in cell:
                continue
            ratios = [misses / best[trace] - 1 for trace, (misses, _) in cell[name].items()]
            spread = f"{min(ratios):+.1%} ({low(cell[name], best)}) | {max(ratios):+.1%} ({high(cell[name], best)})"
            parts.append(
                f"| {float(fraction):.0%} of {'keys' if unit == 'objects' else 'bytes'} | {name} "
                f"| {statistics.fmean(ratios):+.1%} | {statistics.median(ratios):+.1%} | {spread} "
                f"| {sum(r < 0 for r in ratios)} of {len(ratios)} | {sum(r > 0.01 for r in ratios)} |"
            )
    return "\n".join(parts) + "\n"


def low(figures: dict[str, tuple[float, float]], best: dict[str, float]) -> str:
    return min(figures, key=lambda trace: figures[trace][0] / best[trace])


def high(figures: dict[str, tuple[float, float]], best: dict[str, float]) -> str:
    return max(figures, key=lambda trace: figures[trace][0] / best[trace])


def main(folder: Path) -> None:
    """Write plot.svg, and the tables into README.md where the folder has one."""
    cells = read(folder)
    draw(cells, folder / "plot.svg")
    text = hindsight(cells) + table(cells)
    readme = folder / "README.md"
    if readme.is_file():
        before, _, rest = readme.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        readme.write_text(f"{before}{BEGIN}\n{text}{END}{after}")
    else:
        print(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
