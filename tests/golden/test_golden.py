"""Miss counts against libcachesim 0.3.5 at its defaults (``golden.csv``, written by ``make_golden.py``).

Some policies must agree to the last miss, the others within 2 %. Where a rule differs so much that they cannot,
``different.py`` says which rule and how far apart the counts may be.
"""

import csv
import inspect
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pytest

from kvpredict.policies import policy_class, policy_names
from kvpredict.simulate import simulate
from kvpredict.trace import Trace
from tests.golden.different import DIFFERENT, Different
from tests.golden.traces import GENERATED, PUBLIC, checksum, load

HERE = Path(__file__).parent

# Policies that must have libcachesim's misses to the last one, and in which units.
EXACT = {
    "fifo": ("objects", "bytes"),
    "lru": ("objects", "bytes"),
    "clock": ("objects", "bytes"),
    "sieve": ("objects", "bytes"),
    "lfu": ("objects", "bytes"),
    "belady": ("objects", "bytes"),
    "arc": ("objects",),
    "twoq": ("objects",),
}
WITHIN = 0.02


class Row(NamedTuple):
    capacity: int
    unit: str
    misses: int


def _read() -> dict[tuple[str, str], list[Row]]:
    rows = defaultdict(list)
    with (HERE / "golden.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            rows[row["trace"], row["policy"]].append(Row(int(row["capacity"]), row["unit"], int(row["misses"])))
    return dict(rows)


GOLDEN = _read()
CELLS = [(trace, policy) for trace, policy in sorted(GOLDEN) if policy in policy_names()]


@lru_cache(maxsize=3)
def _load(name: str, folder: Path | None) -> Trace:
    return load(name, folder)


@pytest.fixture
def folder(request: pytest.FixtureRequest, trace: str) -> Path | None:
    return None if trace in GENERATED else request.getfixturevalue("shared_traces")


@pytest.mark.parametrize("trace", [*GENERATED, *PUBLIC])
def test_traces_are_those_of_the_golden_counts(trace: str, folder: Path | None) -> None:
    with (HERE / "golden_traces.csv").open(newline="") as file:
        facts = {row["trace"]: row for row in csv.DictReader(file)}[trace]
    made = _load(trace, folder)
    assert (len(made), made.unique) == (int(facts["requests"]), int(facts["unique"]))
    assert checksum(made) == int(facts["checksum"])


@pytest.mark.parametrize(("trace", "policy"), CELLS)
def test_misses(trace: str, policy: str, folder: Path | None) -> None:
    made = _load(trace, folder)
    for row in GOLDEN[trace, policy]:
        misses = simulate(made, policy, row.capacity, unit=row.unit).misses
        said = f"{policy} on {trace}, {row.capacity} {row.unit}: {misses} misses, libcachesim {row.misses}"
        if row.unit in EXACT.get(policy, ()):
            assert misses == row.misses, said
            continue
        low, high, _ = DIFFERENT.get((policy, row.unit), Different(-WITHIN, WITHIN, ""))
        assert low <= (misses - row.misses) / row.misses <= high, said


def test_exact_policies_are_compared_on_six_public_traces_and_all_generated_ones() -> None:
    for policy, units in EXACT.items():
        for unit in units:
            compared = {trace for trace, name in GOLDEN if name == policy}
            assert set(GENERATED) <= compared
            rows = [row for trace in PUBLIC for row in GOLDEN.get((trace, policy), []) if row.unit == unit]
            assert len(rows) >= 2 * (6 if unit == "objects" else 4), "two capacities each"


def test_no_row_is_excused_without_need() -> None:
    """Every entry of the table names a policy and unit that golden.csv compares, and is looser than the rule."""
    compared = {(policy, row.unit) for (_, policy), rows in GOLDEN.items() for row in rows}
    for (policy, unit), entry in DIFFERENT.items():
        assert (policy, unit) in compared
        assert unit not in EXACT.get(policy, ())
        assert entry.fewest < -WITHIN or entry.most > WITHIN
        assert len(entry.reason) > 20


@pytest.mark.parametrize("policy", sorted({policy for policy, _ in DIFFERENT}))
def test_a_policy_that_differs_says_so(policy: str) -> None:
    cls = policy_class(policy)
    said = f"{inspect.getdoc(inspect.getmodule(cls))} {inspect.getdoc(cls)}".lower()
    assert "libcachesim" in said, f"the docstring of {policy} names no difference"
