"""The experiment on short traces: where they shift, what recovery means, rows, table and plot."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.shifts import run, tables
from experiments.shifts.scenarios import SCENARIOS, glued, with_scan
from kvpredict.simulate import simulate
from kvpredict.trace import Trace


def test_glued_traces_share_no_keys_unless_they_should() -> None:
    one = Trace(np.array([5, 6, 5]))
    both, shift = glued(one, one, "x")
    assert (both.keys.tolist(), shift) == ([0, 1, 0, 2, 3, 2], 3)
    assert glued(one, one, "x", disjoint=False)[0].unique == 2


def test_a_scan_passes_once() -> None:
    made, shift = with_scan(Trace(np.array([5, 6, 5, 6])), 3, "x")
    assert (made.keys.tolist(), shift) == ([0, 1, 2, 3, 4, 0, 1], 5)


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenarios_shift_inside(name: str) -> None:
    trace, shift = SCENARIOS[name](1000)
    assert trace.name == name
    assert len(trace) - shift == 1000
    assert shift in (1000, 1400)


@pytest.mark.parametrize(
    ("own", "best", "expected"),
    [
        ([10, 10, 10], [10, 10, 10], 0),
        ([20, 10, 10], [10, 10, 10], 1),  # what was lost in the first window is not held against the second
        ([9, 20, 10, 10], [10, 10, 10, 10], 2),  # the gain of the first window does not pay for the second
        ([10, 10, 20], [10, 10, 10], None),  # it does not stay so
        ([], [], None),
    ],
)
def test_recovered(own: list[int], best: list[int], expected: int | None) -> None:
    assert tables.recovered(np.array(own), np.array(best)) == expected


def test_windows_hold_the_misses_after_the_shift() -> None:
    trace = Trace(np.array([1, 2, 1, 2, 3, 4, 3, 4, 3]))
    r = simulate(trace, "lru", 2, warmup=4)
    assert run.windows(r, 4) == [2, 0]
    assert r.misses == 2


def test_rows_table_and_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    calls = []

    def quick(trace: Trace, made: Any, capacity: int, **given: Any) -> Any:
        calls.append(made.name)
        # Guarded compiles for half a minute; another policy with seeds stands in for it.
        return simulate(trace, "random" if made.name == "guarded" else made, capacity, **given)

    monkeypatch.setattr(run, "simulate", quick)
    monkeypatch.setattr(run, "policy_names", lambda: ["fifo", "lru", "belady", "guarded"])
    (tmp_path / "README.md").write_text((Path(run.__file__).parent / "README.md").read_text())
    given = ["--scenarios", "flip,drift,scarab_scan", "--half", "3000", "--seeds", "2", "--out", str(tmp_path)]
    run.main([*given, "--only", "heuristics"])
    assert len(calls) == 2 * 2 * 2
    run.main(given)
    run.main(given)  # nothing is missing
    assert calls.count("guarded") == 2 * 2 * 2
    cells = tables.read(tmp_path)
    assert set(cells) == {(name, fraction) for name in ("flip", "drift") for fraction in ("0.01", "0.1")}
    text = (tmp_path / "README.md").read_text()
    assert "| flip | 10% |" in text
    assert "Within 10 capacities" in text
    assert (tmp_path / "plot.svg").stat().st_size > 1000
