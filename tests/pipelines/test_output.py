"""What a run writes and prints."""

from pathlib import Path

import numpy as np
import pytest

from kvpredict.core.place import atomic_path
from kvpredict.pipelines.files import write_text
from kvpredict.pipelines.output import as_json, print_comparison, print_sweep
from kvpredict.pipelines.progress import track


def test_as_json_leaves_what_json_can_hold() -> None:
    given = {"a": float("nan"), "b": [np.float64(1.5), np.int64(2), float("inf")], "c": (1, None, "x", True), 3: {}}
    assert as_json(given) == {"a": None, "b": [1.5, 2, None], "c": [1, None, "x", True], "3": {}}
    assert type(as_json(np.float64(1.5))) is float
    assert type(as_json(np.int64(2))) is int


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    write_text(path, "old")

    def fail_half_way() -> None:
        with atomic_path(path) as fresh:
            fresh.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


def row(policy: str, ratio: float | None, capacity: int = 10) -> dict[str, object]:
    return {
        "policy": policy,
        "oracle": policy == "belady",
        "capacity": capacity,
        "unit": "objects",
        "object_miss_ratio": ratio,
        "byte_miss_ratio": ratio,
        "gap_closed": None,
        "requests_per_second": 2.5e6,
    }


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    result = {
        "trace": {"name": "a [bold]trace"},
        "split": {"compared_on": 1234},
        "policies": [row("belady", 0.25), row("lru", None)],
    }
    print_comparison(result)
    out = capsys.readouterr().out
    assert "a [bold]trace: 1,234 requests compared, capacity 10 objects" in out
    assert "0.2500" in out
    assert "2.5 M" in out
    assert "\x1b" not in out, "no colours in a pipe"


def test_the_table_shows_what_misses_cost_where_that_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    result = {
        "trace": {"name": "t"},
        "split": {"compared_on": 10},
        "objective": "cost",
        "policies": [row("sieve", 0.5) | {"mean_miss_cost": 1.2345678}, row("lru", 0.25) | {"mean_miss_cost": 2.0}],
    }
    print_comparison(result)
    out = capsys.readouterr().out
    assert "cost missed" in out
    assert "1.235" in out
    assert "the objective is cost" in out


def test_the_table_of_a_sweep_says_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [
        (str(i), {"overrides": ["seed=1", f"policy={p}"], "subject": p, "policies": [row(p, 0.5), row("belady", 0.1)]})
        for i, p in enumerate(["lru", "sieve"])
    ]
    print_sweep(tmp_path, cells)
    out = capsys.readouterr().out
    assert "seed=1" not in out
    assert "policy=sieve" in out
    lines = (tmp_path / "cells.csv").read_text().splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("0,policy=lru,0.5,")


def test_progress_passes_everything_through_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(iter([1, 2, 3]), "counting", 3)) == [1, 2, 3]
    assert capsys.readouterr() == ("", "")
