"""The plots of decode policies: added NLL over budgets, what is found by depth, and where the kept tokens are."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from kvpredict.report.plots import HEURISTICS, LEARNED, ORACLE, figure

__all__ = ["draw_decoding"]

PICTURES = 6  # policies whose kept tokens are drawn


def draw_decoding(result: Mapping[str, Any]) -> dict[str, str]:
    """Return the plots that a ``decode_evaluate`` result has figures for, SVG texts by name."""
    plots = {}
    for mode in ("once", "online"):
        if any(row[f"{mode}_added"] is not None for row in result["policies"]):
            plots[mode] = figure(mode, partial(_budgets, result=result, mode=mode))
    if result["depths"]:
        plots["depth"] = figure("depth", partial(_depths, result=result))
    if result["kept"]:
        plots["kept"] = figure("kept", partial(_kept, result=result), width=11.4, height=3.2)
    return plots


def _looks(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    names = sorted({row["policy"] for row in result["policies"]})
    oracles = {row["policy"] for row in result["policies"] if row["oracle"]}
    colours = iter(HEURISTICS * (1 + len(names) // len(HEURISTICS)))
    return {
        name: {"color": LEARNED, "linewidth": 2.6, "zorder": 5}
        if name == "learned"
        else {"color": ORACLE, "linestyle": ":"}
        if name in oracles
        else {"color": next(colours)}
        for name in names
    }


def _budgets(axes: Any, result: Mapping[str, Any], mode: str) -> None:
    for name, look in _looks(result).items():
        rows = [r for r in result["policies"] if r["policy"] == name and r[f"{mode}_added"] is not None]
        if not rows or name == "full":
            continue
        rows.sort(key=lambda r: r["capacity"])
        at = [r["capacity"] for r in rows]
        added = np.array([r[f"{mode}_added"] for r in rows])
        axes.plot(at, added, marker="o", markersize=3.5, label=name, **look)
        if all(r[f"{mode}_low"] is not None for r in rows):
            low, high = (np.array([r[f"{mode}_{end}"] for r in rows]) for end in ("low", "high"))
            axes.vlines(at, low, high, color=look["color"], linewidth=0.8, alpha=0.6)
    axes.set_xscale("log", base=2)
    budgets = sorted({r["capacity"] for r in result["policies"]})
    axes.set_xticks(budgets, [f"{b:,}" for b in budgets])
    axes.minorticks_off()
    axes.set_xlabel("budget, tokens a head on average")
    axes.set_ylabel("added NLL, nats a token")
    axes.legend(ncols=2)


def _depths(axes: Any, result: Mapping[str, Any]) -> None:
    least = min(d["capacity"] for d in result["depths"] if d["capacity"] is not None)
    for name, look in _looks(result).items():
        rows = [d for d in result["depths"] if d["policy"] == name and d["capacity"] in (least, None)]
        if rows:
            depths = sorted({d["depth"] for d in rows})
            found = [np.mean([d["found"] for d in rows if d["depth"] == depth]) for depth in depths]
            axes.plot(depths, found, marker="o", markersize=3.5, label=name, **look)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("depth in the text")
    axes.set_ylabel("share found")
    axes.legend(ncols=2)


def _kept(axes: Any, result: Mapping[str, Any]) -> None:
    """Draw one panel a policy side by side: a row a layer, a column a part of the prefix."""
    shown = result["kept"][:PICTURES]
    panels = [np.array(k["share"], float) for k in shown]  # [layers, parts]
    gap = np.full((panels[0].shape[0], 2), np.nan)
    whole = np.concatenate([x for p in panels for x in (p, gap)][:-1], 1)
    axes.imshow(whole, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    width = panels[0].shape[1] + 2
    axes.set_xticks([i * width + width / 2 - 1.5 for i in range(len(panels))], [k["policy"] for k in shown])
    axes.set_ylabel("layer")
    axes.grid(visible=False)
