"""Output: the tables on the console and the files of a run's folder."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvpredict.pipelines.files import write_text

__all__ = [
    "as_json",
    "print_comparison",
    "print_decoding",
    "print_facts",
    "print_prefixes",
    "print_sweep",
    "print_tables",
    "write_files",
]


def as_json(value: Any) -> Any:
    """Return ``value`` with numbers that JSON lacks (nan, infinity) as None and NumPy's numbers as plain ones."""
    if isinstance(value, Mapping):
        return {str(k): as_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(v) for v in value]
    if isinstance(value, float):  # np.float64 is one
        return float(value) if math.isfinite(value) else None
    return value.item() if hasattr(value, "item") else value


def write_files(result: Mapping[str, Any], folder: Path, *, html: bool) -> dict[str, Path]:
    """Write ``result.json`` and, for a comparison, ``report.html`` and ``plots/``; return what is where."""
    written = {"result": folder / "result.json"}
    write_text(written["result"], json.dumps(result, indent=1, allow_nan=False))
    if html and result.get("policies"):
        from kvpredict.report import draw, draw_decoding, render

        plots = draw_decoding(result) if "depths" in result else draw(result)
        (folder / "plots").mkdir(exist_ok=True)
        for name, svg in plots.items():
            write_text(folder / "plots" / f"{name}.svg", svg)
        written["report"] = folder / "report.html"
        write_text(written["report"], render(result, plots))
    elif html and "tables" in result:
        from kvpredict.report import render_tables

        written["report"] = folder / "report.html"
        write_text(written["report"], render_tables(result))
    if (folder / "policy").is_dir():
        written["policy"] = folder / "policy"
    return written


def print_comparison(result: Mapping[str, Any]) -> None:
    """Print the table of policies."""
    trace, rows = result["trace"], result["policies"]
    capacities = {row["capacity"] for row in rows}
    table = _table(
        f"{trace['name']}: {result['split']['compared_on']:,} requests compared"
        + (f", capacity {rows[0]['capacity']:,} {rows[0]['unit']}" if len(capacities) == 1 else "")
    )
    if len(capacities) > 1:
        table.add_column("capacity", justify="right")
    table.add_column("policy")
    costs = _have_costs(rows)
    for heading in _headings(costs):
        table.add_column(heading, justify="right")
    for row in rows:
        cells = [f"{row['capacity']:,}"] if len(capacities) > 1 else []
        style = "bold green" if row["policy"] == "learned" else "dim" if row["oracle"] else None
        table.add_row(*cells, *_cells(row, costs), style=style)
    _print(table)
    if result.get("objective", "objects") != "objects":
        print(f"the objective is {result['objective']}: the gap closed and the order are by it")
    settings = (result.get("learned") or {}).get("settings", {})
    if "chosen" in settings:
        found = ", ".join(f"{name} {loss:.4f}" for name, loss in settings["compared"].items())
        print(f"learned is {settings['chosen']!r}, chosen on the last part of the training part: {found}")
    if "nothing_learned" in settings:
        print(f"no frozen model to compare with: {settings['nothing_learned']}")


def print_prefixes(result: Mapping[str, Any]) -> None:
    """Print the table of prefix policies."""
    trace, rows = result["trace"], result["policies"]
    table = _table(
        f"{trace['name']}: {result['split']['compared_on']:,} requests compared, "
        f"{rows[0]['capacity']:,} blocks of {trace['block_size']} tokens"
    )
    table.add_column("policy")
    headings = ("prefix-hit\nratio", "prefill tokens\nsaved", "LRU-Belady\ngap closed", "TTFT\nP50, s", "P90", "P99")
    for heading in (*headings, "requests/s"):
        table.add_column(heading, justify="right")
    for row in rows:
        style = "bold green" if row["policy"] == "learned" else "dim" if row["oracle"] else None
        table.add_row(
            row["policy"],
            _ratio(row["prefix_hit_ratio"]),
            f"{row['token_hit_ratio']:.1%}",
            "" if row["gap_closed"] is None else f"{row['gap_closed']:.1%}",
            *(f"{row[name]:.3f}" for name in ("ttft_p50", "ttft_p90", "ttft_p99")),
            f"{row['requests_per_second']:,.0f}",
            style=style,
        )
    _print(table)
    if found := result.get("continuation"):
        print(
            f"hints from text: learned from {found['taught']:,} requests"
            + ("" if found["auc"] is None else f"; AUC of those after {found['auc']:.3f} (0.5 tells nothing)")
        )


def print_decoding(result: Mapping[str, Any]) -> None:
    """Print the table of decode policies, one line for each budget."""
    table = _table(
        f"{result['trace']['name']}: {result['trace']['sequences']} sequences of {result['trace']['tokens']}"
    )
    table.add_column("policy")
    scored = [h for mode in ("once", "online") for h in (f"added NLL\n{mode}", "95 %\ninterval")]
    headings = ("budget", *scored, "passkey", "needle", "same greedy\ntokens", "KV bytes\nfreed", "policy µs\na step")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in result["policies"]:
        style = "bold green" if row["policy"] == "learned" else "dim" if row["oracle"] else None
        spans = [
            "" if row[f"{mode}_low"] is None else f"{row[f'{mode}_low']:+.4f} … {row[f'{mode}_high']:+.4f}"
            for mode in ("once", "online")
        ]
        table.add_row(
            row["policy"],
            f"{row['capacity']:,}",
            _added(row["once_added"]),
            spans[0],
            _added(row["online_added"]),
            spans[1],
            *("" if row[k] is None else f"{row[k]:.0%}" for k in ("passkey", "needle", "same_tokens", "freed")),
            "" if row["policy_us"] is None else f"{row['policy_us']:,.0f}",
            style=style,
        )
    _print(table)
    if lost := not_found(result):
        print(lost)


def not_found(result: Mapping[str, Any]) -> str:
    """Return which of passkey and needle the full cache finds nowhere, so that there is no share of them to give."""
    full = [found for found in result["depths"] if found["policy"] == "full"]
    kinds = dict.fromkeys(found["kind"] for found in full)
    lost = [kind for kind in kinds if not any(found["found"] for found in full if found["kind"] == kind)]
    return f"{' and '.join(lost)}: the full cache finds none, so no share is given" if lost else ""


def _added(value: float | None) -> str:
    return "" if value is None else f"{value:+.4f}"


def print_sweep(folder: Path, results: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Print one line for each cell of a sweep, and write ``cells.csv`` beside them."""
    given = [set(result["overrides"]) for _, result in results]
    common = set.intersection(*given) if len(given) > 1 else set()
    lines = []
    for cell, result in results:
        differs = " ".join(o for o in result["overrides"] if o not in common)
        if "depths" in result:  # figures of their own, of several budgets
            print(f"cell {cell}: {differs}")
            print_decoding(result)
            continue
        lines += [(cell, differs, row) for row in result.get("policies", []) if row["policy"] == result["subject"]]
    if not lines:
        return
    table = _table(f"{len(lines)} cells")
    for heading in ("cell", "overrides", "capacity", "policy"):
        table.add_column(heading, justify="right" if heading == "capacity" else "left")
    costs = _have_costs([row for _, _, row in lines])
    for heading in _headings(costs):
        table.add_column(heading, justify="right")
    for cell, overrides, row in lines:
        table.add_row(cell, overrides, f"{row['capacity']:,}", *_cells(row, costs))
    _print(table)
    text = io.StringIO()
    columns = [
        "object_miss_ratio",
        "byte_miss_ratio",
        "mean_miss_cost",
        "gap_closed",
        "requests_per_second",
        "capacity",
        "unit",
        "policy",
    ]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["cell", "overrides", *columns])
    writer.writerows([cell, overrides, *(row.get(c) for c in columns)] for cell, overrides, row in lines)
    write_text(folder / "cells.csv", text.getvalue())
    print(f"cells:   {folder / 'cells.csv'}")


def print_tables(result: Mapping[str, Any]) -> None:
    """Print the tables of a result that brings its own."""
    for given in result["tables"]:
        table = _table(given["title"])
        for column, example in zip(given["columns"], given["rows"][0], strict=True):
            table.add_column(column, justify="left" if isinstance(example, str) else "right")
        for row in given["rows"]:
            table.add_row(*map(_shown, row))
        _print(table)


def print_facts(trace: Mapping[str, Any]) -> None:
    """Print what a trace is."""
    table = _table(trace["name"])
    table.add_column("")
    table.add_column("")
    for name, value in trace.items():
        if name != "name" and value not in (None, [], {}):
            table.add_row(name.replace("_", " "), _shown(value))
    _print(table)


def _have_costs(rows: Sequence[Mapping[str, Any]]) -> bool:
    return any(row.get("mean_miss_cost") is not None for row in rows)


def _headings(costs: bool) -> list[str]:
    cost = ["cost missed\na request"] if costs else []
    return ["object\nmiss ratio", "byte\nmiss ratio", *cost, "LRU-Belady\ngap closed", "requests/s"]


def _cells(row: Mapping[str, Any], costs: bool) -> list[str]:
    cost = row.get("mean_miss_cost")
    return [
        row["policy"],
        _ratio(row["object_miss_ratio"]),
        _ratio(row["byte_miss_ratio"]),
        *(["" if cost is None else f"{cost:.4g}"] if costs else []),
        "" if row["gap_closed"] is None else f"{row['gap_closed']:.1%}",
        "" if row["requests_per_second"] is None else f"{row['requests_per_second'] / 1e6:.1f} M",
    ]


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {v}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if isinstance(value, float) else str(value)


def _table(title: str) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    return Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)


def _print(table: Any) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a pipe has no width: eighty columns would wrap the cells
    console.print(table)
