"""The report's plots, each a pure function from a result to an SVG text.

Matplotlib's object interface is used without pyplot: no global state, no display. Texts stay texts, so that a reader
can search and copy them; names of elements are salted by the plot's name, since several share one page.
"""

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from kvpredict.core.errors import MissingExtra

__all__ = ["HEURISTICS", "LEARNED", "ORACLE", "draw", "draw_training", "figure", "is_prefix"]

LEARNED, LRU, ORACLE = "#c2410c", "#475569", "#94a3b8"
HEURISTICS = ("#0f766e", "#1d4ed8", "#7c3aed", "#a16207", "#be185d", "#15803d")
INK, GRID = "#334155", "#e2e8f0"
FEATURES_SHOWN = 16


def draw(result: Mapping[str, Any]) -> dict[str, str]:
    """Return the plots that ``result`` has figures for, SVG texts by name."""
    learned = result.get("learned") or {}
    bytes_differ = any(row["byte_miss_ratio"] != row["object_miss_ratio"] for row in result["policies"])
    plots: dict[str, str] = {}
    if any(len(curve["capacity"]) > 1 for curve in result["curves"]):
        plots["curves"] = figure("curves", lambda axes: _curves(axes, result, "object_miss_ratio"))
        if bytes_differ:
            plots["curves_bytes"] = figure("curves_bytes", lambda axes: _curves(axes, result, "byte_miss_ratio"))
    if any(len(series["start"]) > 1 for series in result["series"]):
        plots["windows"] = figure("windows", lambda axes: _windows(axes, result), width=11.4)
    if is_prefix(result):
        plots["ttft"] = figure("ttft", lambda axes: _first_tokens(axes, result))
    for account in result.get("accounts", []):
        if len(account["series"]["request"]) > 1:
            plots[account["policy"]] = figure(account["policy"], partial(_guard, account=account), width=11.4)
    if learned.get("calibration"):
        plots["calibration"] = figure("calibration", lambda axes: _calibration(axes, learned["calibration"]))
    if learned.get("importance"):
        plots["importance"] = figure("importance", lambda axes: _importance(axes, learned["importance"]))
    return plots


def is_prefix(result: Mapping[str, Any]) -> bool:
    """Tell whether a result's figures are those of prefix caches."""
    return any("prefix_hit_ratio" in row for row in result["policies"])


def draw_training(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, str]:
    """Return a plot of each curve that a training logged, SVG texts by name."""

    def paint(axes: Any, name: str) -> None:
        step, value = curves[name]["step"], _numbers(curves[name]["value"])
        axes.plot(step, value, color=LEARNED, marker="o" if len(step) < 30 else None, markersize=3.5)
        axes.set_xlabel("step")
        axes.set_ylabel(name.replace("_", " "))

    return {name: figure(name, partial(paint, name=name)) for name in curves}


def figure(name: str, paint: Callable[[Any], None], width: float = 5.6, height: float = 3.7) -> str:
    """Return the SVG text of what ``paint`` draws on its axes."""
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra(
            f"the report needs matplotlib: pip install 'kvpredict[train]', or set report.html=false ({error})"
        ) from error
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans", "sans-serif"],
        "font.size": 9.5,
        "text.color": INK,
        "axes.edgecolor": ORACLE,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "xtick.color": INK,
        "ytick.color": INK,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
        "text.parse_math": False,
    }
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's browser has other fonts
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure.add_subplot())
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{name.replace("_", " ")}" ', 1)


def _look(policies: Sequence[str], result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return how the line of each policy looks; the same policy looks the same in every plot."""
    oracles = {row["policy"] for row in result["policies"] if row["oracle"]}
    looks: dict[str, dict[str, Any]] = {}
    colours = iter(HEURISTICS * (1 + len(policies) // len(HEURISTICS)))
    for name in policies:
        if name == "learned":
            looks[name] = {"color": LEARNED, "linewidth": 2.6, "zorder": 5}
        elif name == "lru":
            looks[name] = {"color": LRU, "linestyle": "--"}
        elif name in oracles:
            looks[name] = {"color": ORACLE, "linestyle": ":"}
        else:
            looks[name] = {"color": next(colours)}
    return looks


def _curves(axes: Any, result: Mapping[str, Any], ratio: str) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    looks = _look([curve["policy"] for curve in result["curves"]], result)
    for curve in result["curves"]:
        axes.plot(
            curve["fraction"],
            curve[ratio],
            marker="o",
            markersize=3.5,
            label=_printable(curve["policy"]),
            **looks[curve["policy"]],
        )
    whole = result["trace"]["unique"] if result["capacity"]["unit"] == "objects" else result["trace"]["footprint_bytes"]
    if result["learned"] and whole:
        axes.axvline(result["capacity"]["count"] / whole, color=LEARNED, linewidth=0.8, alpha=0.5)
    ticks = sorted({f for curve in result["curves"] for f in curve["fraction"]})
    axes.set_xscale("log")
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g}%"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    what = "distinct keys" if result["capacity"]["unit"] == "objects" else "distinct bytes"
    axes.set_xlabel(f"capacity, share of the {what}")
    axes.set_ylabel(ratio.replace("_", " "))
    axes.legend()


def _windows(axes: Any, result: Mapping[str, Any]) -> None:
    from matplotlib.ticker import EngFormatter

    looks = _look([series["policy"] for series in result["series"]], result)
    hits = is_prefix(result)
    for series in result["series"]:
        misses = _numbers(series["object_miss_ratio"])
        axes.plot(
            series["start"],
            1 - misses if hits else misses,
            label=_printable(series["policy"]),
            **looks[series["policy"]],
        )
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_xlabel("request")
    axes.set_ylabel("prefix-hit ratio" if hits else "object miss ratio")
    axes.set_ylim(bottom=0)
    axes.legend(ncols=3)


def _first_tokens(axes: Any, result: Mapping[str, Any]) -> None:
    """Draw a line a policy from the P50 to the P99 of its times to first token."""
    rows = result["policies"][::-1]
    looks = _look([row["policy"] for row in rows], result)
    for i, row in enumerate(rows):
        times = _numbers([row[f"ttft_{p}"] for p in ("p50", "p90", "p99")])
        axes.plot(times, [i] * 3, color=looks[row["policy"]]["color"], linewidth=0.8)
        for time, marker in zip(times, "osD", strict=True):
            axes.plot(time, i, marker=marker, markersize=4.5, color=looks[row["policy"]]["color"])
    for name, marker in zip(("P50", "P90", "P99"), "osD", strict=True):
        axes.plot([], [], marker=marker, markersize=4.5, linestyle="", color=INK, label=name)
    axes.set_yticks(range(len(rows)), [_printable(row["policy"]) for row in rows])
    axes.set_xlabel("seconds to the first token")
    axes.set_xlim(left=0)
    axes.grid(axis="y", visible=False)
    axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _guard(axes: Any, account: Mapping[str, Any]) -> None:
    """Draw lambda over time, above bands that tell who led."""
    from matplotlib.ticker import EngFormatter

    series = account["series"]
    request, leader = np.array(series["request"]), np.array(series["leader"])
    edges = np.append(request, 2 * request[-1] - request[-2])
    top = max(*_numbers(series["lambda"]), 1.0)
    for name, colour in zip(sorted(set(series["leader"])), HEURISTICS * 2, strict=False):
        spans = [(edges[i], edges[i + 1] - edges[i]) for i in np.flatnonzero(leader == name)]
        axes.broken_barh(spans, (-0.16 * top, 0.1 * top), color=colour, label=_printable(f"{name} led"))
    axes.step(request, _numbers(series["lambda"]), where="post", color=LEARNED, label="lambda")
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_xlabel("request")
    axes.set_ylabel("lambda")
    axes.legend(ncols=6, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _calibration(axes: Any, calibration: Mapping[str, Any]) -> None:
    predicted, observed = _numbers(calibration["predicted"]), _numbers(calibration["observed"])
    axes.plot([0, 1], [0, 1], color=ORACLE, linestyle=":", label="perfect")
    axes.plot(predicted, observed, color=LEARNED, marker="o", markersize=4, label="learned")
    axes.set_xlabel("predicted probability of reuse")
    axes.set_ylabel("observed share")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.legend(loc="upper left")


def _importance(axes: Any, importance: Mapping[str, float]) -> None:
    shown = sorted(importance.items(), key=lambda item: item[1], reverse=True)[:FEATURES_SHOWN][::-1]
    names = [_printable(name.replace("_", " ")) for name, _ in shown]
    axes.barh(range(len(shown)), _numbers([value for _, value in shown]), color=LEARNED, height=0.7)
    axes.set_yticks(range(len(shown)), names)
    axes.set_xlabel("share of the model's importance")
    axes.grid(axis="y", visible=False)


def _printable(text: str) -> str:
    """Return ``text`` without the characters that XML forbids."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]", "\N{REPLACEMENT CHARACTER}", text)


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in values], np.float64)
