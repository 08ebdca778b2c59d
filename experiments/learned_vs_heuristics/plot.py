"""plot.svg: each cell's misses against its best heuristic in hindsight."""

from pathlib import Path
from typing import Any

__all__ = ["draw"]

LOWEST, HIGHEST = -10.0, 20.0  # percent; what lies beyond stands at the edge
COLOURS = {"development": "tab:gray", "validation": "tab:blue", "test": "tab:red"}
OTHERS = {"lru": "|", "libcachesim:3lcache": "x", "libcachesim:lrb": "+"}


def draw(cells: list[Any], path: Path) -> None:
    """A panel for each unit and capacity, a line for each trace; guarded is a dot, with the range of its seeds."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "learned_vs_heuristics"  # the same figures draw the same file
    from matplotlib import pyplot as plt

    units = sorted({c.unit for c in cells}, reverse=True)
    fractions = sorted({c.fraction for c in cells})
    names = {unit: list(dict.fromkeys(c.trace for c in cells if c.unit == unit))[::-1] for unit in units}
    heights = [len(names[unit]) + 2 for unit in units]
    figure, axes = plt.subplots(
        len(units), len(fractions), figsize=(4 * len(fractions), 0.24 * sum(heights) + 1), squeeze=False,
        sharex=True, layout="constrained", gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    for line, unit in zip(axes, units, strict=True):
        for axis, fraction in zip(line, fractions, strict=True):
            for cell in (c for c in cells if (c.unit, c.fraction) == (unit, fraction)):
                at, best = names[unit].index(cell.trace), cell.of(cell.best)
                for name, marker in OTHERS.items():
                    if cell.of(name) is not None:
                        axis.plot(percent(cell.of(name), best), at, marker, color="black", markersize=5, alpha=0.6)
                seeds = [percent(ratio, best) for ratio in cell.ratios["guarded"]]
                colour = COLOURS[cell.part] if cell.counts else "lightgray"
                axis.plot([min(seeds), max(seeds)], [at, at], "-", color=colour, linewidth=3, alpha=0.5)
                axis.plot(percent(cell.of("guarded"), best), at, "o", color=colour, markersize=5)
            axis.axvline(0, color="black", linewidth=0.7)
            axis.set_xlim(LOWEST - 1, HIGHEST + 1)
            axis.set_yticks(range(len(names[unit])), names[unit] if axis is line[0] else [], fontsize=8)
            axis.set_ylim(-1, len(names[unit]))
            axis.set_title(f"{fraction:.1%} of the {'keys' if unit == 'objects' else 'bytes'}", fontsize=9)
            axis.tick_params(axis="x", labelsize=8)
            axis.grid(axis="x", alpha=0.3)
    handles = [plt.Line2D([], [], marker="o", linestyle="", color=colour) for colour in COLOURS.values()]
    handles += [plt.Line2D([], [], marker=marker, linestyle="", color="black") for marker in OTHERS.values()]
    labels = [f"guarded, {part}" for part in COLOURS] + ["LRU", "3L-Cache", "LRB"]
    figure.legend(handles, labels, ncols=6, fontsize=8, loc="outside upper center")
    figure.supxlabel(
        "misses against the best heuristic in hindsight, percent (pale: cells without headroom)", fontsize=9
    )
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def percent(ratio: float, best: float) -> float:
    return min(max(100 * (ratio / best - 1) if best else 0.0, LOWEST), HIGHEST)
