"""Writes what ``make test-vllm`` measured: ``results.csv``, and the table in the README."""

import csv
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import vllm

from experiments.common import into_readme, table
from kvpredict.version import __version__

__all__ = ["write"]

HERE = Path(__file__).parent
MEASURED = ("cache", "policy", "tier_hit_ratio", "hit_ratio", "preemptions", "requests")
VERSIONS = ("kvpredict", "vllm", "numba", "python")


def write(rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows, which have the columns ``MEASURED``."""
    found = (__version__, vllm.__version__, version("numba"), platform.python_version())
    versions = dict(zip(VERSIONS, found, strict=True))
    with open(HERE / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, [*MEASURED, *VERSIONS], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **versions} for row in rows)
    lines = [
        [row["cache"], row["policy"], f"{row['tier_hit_ratio']:.3f}" if "tier" in row["cache"] else "",
         f"{row['hit_ratio']:.3f}"]
        for row in rows
    ]  # fmt: skip
    into_readme(HERE, "table", table("cache | policy | found in the tier | found in all", lines))
    named = ", ".join(f"{name} {number}" for name, number in versions.items())
    into_readme(HERE, "versions", named)
