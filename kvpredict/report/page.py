"""The report's page: a template that escapes every text it is given, and the views of a result that it shows."""

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from kvpredict.core.errors import MissingExtra
from kvpredict.report.plots import draw_training, is_prefix
from kvpredict.simulate.result import LOSSES

__all__ = ["render", "render_tables"]

MISSING = "\N{EN DASH}"

# By objective: the figure of a row, what it is called, and what less of it than LRU's is.
LOSS = {
    "objects": (LOSSES["objects"], "object miss ratio", "fewer misses than LRU"),
    "bytes": (LOSSES["bytes"], "byte miss ratio", "fewer bytes missed than LRU"),
    "cost": (LOSSES["cost"], "cost missed a request", "less cost than LRU"),
}
WIDE = ("windows", "guarded", "learned", "kept")
CAPTIONS = {
    "curves": "Object miss ratio over capacity. A learned policy was trained for the one at the thin line.",
    "curves_bytes": "Byte miss ratio over capacity.",
    "windows": "Object miss ratio over time, in windows of equal numbers of requests.",
    "guarded": "Guarded: lambda over time (at its highest the policy does what its leader does), and who led.",
    "learned": "The learned policy, which is a guarded one: lambda over time, and who led.",
    "calibration": "Reliability of the model's probabilities, on requests later than all it was trained on.",
    "importance": "What the model looks at.",
    "once": "Added NLL over budgets, once after the prefix; bars are 95 % intervals over sequences.",
    "online": "Added NLL over budgets, with the budget kept at all times.",
    "depth": "Share of passkeys and needles found, by where they were hidden (smallest budget), of all that were.",
    "kept": "Where in the prefix the kept tokens are, by layer (smallest budget): brighter is more.",
}
PREFIX_CAPTIONS = {
    "windows": "Prefix-hit ratio over time, in windows of equal numbers of requests.",
    "ttft": "Time to first token: P50, P90 and P99 of each policy.",
}


def render(result: Mapping[str, Any], plots: Mapping[str, str]) -> str:
    """Return the page as HTML.

    Parameters
    ----------
    result : mapping
        What ``result.json`` holds.
    plots : mapping of name to SVG text
        What ``draw`` returned; they are put in as they are.
    """
    rows = result["policies"]
    kind = "decode" if "depths" in result else "prefix" if is_prefix(result) else "page"
    loss, words, fewer = LOSS[result.get("objective", "objects")]
    figure = {"decode": "once_added", "prefix": "prefix_hit_ratio", "page": loss}[kind]
    finite = [row[figure] for row in rows if row[figure] is not None]
    return _template(f"{kind}.html").render(
        result=result,
        rows=rows,
        headline=None if kind == "decode" else _headline(result, loss),
        loss=loss,
        loss_in_words=words,
        less_than_lru=fewer,
        costs=any(row.get("mean_miss_cost") is not None for row in rows),
        several=len({row["capacity"] for row in rows}) > 1,
        host=any(row.get("host_hits") for row in rows),
        most=max(finite, default=1.0) or 1.0,
        plots=plots,
        wide=WIDE,
        captions=CAPTIONS | (PREFIX_CAPTIONS if kind == "prefix" else {}),
        config=json.dumps(result["config"], indent=2, ensure_ascii=False),
    )


def render_tables(result: Mapping[str, Any]) -> str:
    """Return the page of a result that brings its own ``tables``, each with ``title``, ``columns`` and ``rows``.

    Of a training the curves are drawn.
    """
    curves = (result.get("learned") or {}).get("curves") or {}
    return _template("tables.html").render(
        result=result,
        plots=draw_training(curves),
        wide=WIDE,
        captions={name: f"Training: {name.replace('_', ' ')} by step." for name in curves},
        config=json.dumps(result["config"], indent=2, ensure_ascii=False),
    )


def _template(name: str) -> Any:
    """Return a template of this folder."""
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtra(
            f"the report needs Jinja2: pip install 'kvpredict[train]', or set report.html=false ({error})"
        ) from error
    environment = Environment(
        loader=FunctionLoader(lambda name: (files(__package__) / name).read_text("utf-8")),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"ratio": _ratio, "share": _share, "fact": _fact, "rate": _rate, "number": _number}
    return environment.get_template(name)


def _headline(result: Mapping[str, Any], loss: str) -> dict[str, Any] | None:
    """Return the run's subject beside LRU: the sentence that a reader wants first."""
    rows = {row["policy"]: row for row in result["policies"] if row["capacity"] == result["capacity"]["count"]}
    subject, lru = rows.get(result["subject"]), rows.get("lru")
    if subject is None or lru is None or not lru[loss] or subject is lru:
        return None
    usable = [row for row in rows.values() if not row["oracle"] and row is not subject]
    return {
        "subject": subject,
        "lru": lru,
        "fewer": 1 - subject[loss] / lru[loss],
        "rank": 1 + sum(row[loss] < subject[loss] for row in usable),
        "of": 1 + len(usable),
    }


def _ratio(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4f}"


def _share(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1%}"


def _number(value: float | None, digits: int) -> str:
    return MISSING if value is None else f"{value:,.{digits}f}"


def _rate(value: float | None) -> str:
    return MISSING if value is None else f"{value / 1e6:.1f} M"


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {v}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if isinstance(value, float) else str(value)
