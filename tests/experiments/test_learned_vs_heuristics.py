"""The experiment on a generated trace: rows, what is kept, tables and plot."""

import csv
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.common import DEVELOPMENT, PUBLIC, VALIDATION, Rows, into_readme, part_of, table
from experiments.learned_vs_heuristics import peers, run, tables
from kvpredict.policies import policy
from kvpredict.simulate import simulate
from kvpredict.trace import Trace


@pytest.fixture
def trace() -> Trace:
    rng = np.random.default_rng(0)
    keys = rng.zipf(1.2, 3000) % 500
    return Trace(keys, sizes=keys % 7 + 1, name="made")


def test_the_traces_are_divided() -> None:
    assert set(DEVELOPMENT) | set(VALIDATION) < set(PUBLIC)
    assert not set(DEVELOPMENT) & set(VALIDATION)
    assert (part_of("wiki"), part_of("scarab"), part_of("orm_busy")) == ("development", "validation", "test")


def test_rows_are_kept_replaced_and_dropped(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.csv", ["name", "seed", "misses"], ["name", "seed"])
    rows.add([{"name": "a", "seed": 0, "misses": 1}, {"name": "b", "seed": 0, "misses": 2}])
    rows.add([{"name": "a", "seed": 0, "misses": 3}])
    again = Rows(tmp_path / "rows.csv", ["name", "seed", "misses"], ["name", "seed"])
    assert {"name": "a", "seed": 0} in again
    assert {"name": "a", "seed": 1} not in again
    assert [row["misses"] for row in again.rows.values()] == ["3", "2"]
    again.drop(lambda row: row["name"] == "a")
    assert list(again.rows.values()) == [{"name": "b", "seed": "0", "misses": "2"}]
    with pytest.raises(SystemExit, match="other columns"):
        Rows(tmp_path / "rows.csv", ["name"], ["name"])


def test_two_processes_add_to_one_file(tmp_path: Path) -> None:
    here, there = (Rows(tmp_path / "both.csv", ["name", "misses"], ["name"]) for _ in range(2))
    here.add([{"name": "a", "misses": 1}])
    there.add([{"name": "b", "misses": 2}])
    here.drop(lambda row: row["name"] == "b")  # which it has not seen
    here.add([{"name": "c", "misses": 3}])
    there.drop(lambda row: row["name"] == "b")
    there.add([{"name": "a", "misses": 4}])
    written = (tmp_path / "both.csv").read_text().splitlines()[1:]
    assert sorted(written) == ["a,4", "c,3"]


def test_text_goes_between_its_markers(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- x: written by the command -->\nold\n<!-- end of x -->\nb\n")
    into_readme(tmp_path, "x", table("p | q", [["1", "2"]]))
    assert readme.read_text() == (
        "a\n<!-- x: written by the command -->\n| p | q |\n|---|---|\n| 1 | 2 |\n<!-- end of x -->\nb\n"
    )


@pytest.mark.parametrize("unit", ["objects", "bytes"])
def test_peers_count_the_second_half_as_ours_do(trace: Trace, tmp_path: Path, unit: str) -> None:
    pytest.importorskip("libcachesim")
    capacity, cut = trace.capacity(0.1, unit), trace.position(0.5)
    peers.write(trace, tmp_path / "trace", unit)
    done = peers.replay("libcachesim:lru", tmp_path / "trace", capacity, len(trace), cut, 60)
    ours = simulate(trace, "lru", capacity, unit=unit, warmup=0.5)
    assert done["misses"] == ours.misses
    if unit == "bytes":
        assert float(done["byte_miss_ratio"]) == pytest.approx(ours.byte_miss_ratio, abs=1e-8)


def test_a_peer_that_does_not_end_is_given_up(trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("libcachesim")
    import libcachesim

    def spin(self: object, *_: object) -> None:
        while True:
            time.process_time()

    monkeypatch.setattr(libcachesim.LRU, "process_trace", spin)
    peers.write(trace, tmp_path / "trace", "objects")
    assert peers.replay("libcachesim:lru", tmp_path / "trace", 50, len(trace), 0, 1)["misses"] == ""


def test_rows_and_tables(trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("libcachesim")
    pytest.importorskip("matplotlib")
    path = tmp_path / "made.csv"
    path.write_text("key,size\n" + "".join(f"{k},{s}\n" for k, s in zip(trace.keys, trace.sizes, strict=True)))
    names = ["belady", "beladysize", "fifo", "lru"]
    monkeypatch.setattr(run, "policy_names", lambda: [*names, "learned", "guarded"])
    monkeypatch.setattr(run, "QUICK", ["libcachesim:lru", "libcachesim:3lcache"])
    (tmp_path / "README.md").write_text((Path(run.__file__).parent / "README.md").read_text())
    # Guarded compiles for half a minute; another policy with seeds stands in for it.
    monkeypatch.setattr(run, "policy", lambda name, **params: policy("random"))
    given = ["--traces", str(path), "--out", str(tmp_path), "--seeds", "2"]
    run.main([*given, "--only", "heuristics"])
    run.main([*given, "--only", "guarded"])
    before = (tmp_path / "guarded.csv").read_text()
    run.main([*given, "--only", "guarded"])  # nothing is missing
    assert (tmp_path / "guarded.csv").read_text() == before
    with open(tmp_path / "guarded.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    capacity = trace.capacity(0.1, "bytes")
    assert [(r["unit"], r["seed"]) for r in rows if r["fraction"] == "0.1"] == [
        ("objects", "0"), ("objects", "1"), ("bytes", "0"), ("bytes", "1"),
    ]  # fmt: skip
    (cell,) = [c for c in tables.read(tmp_path) if (c.unit, c.fraction) == ("bytes", 0.1)]
    lru = simulate(trace, "lru", capacity, unit="bytes", warmup=0.5)
    assert cell.of("lru") == pytest.approx(lru.byte_miss_ratio, abs=1e-7)
    assert set(cell.heuristics) == {"fifo", "lru"}
    text = (tmp_path / "README.md").read_text()
    assert "| made | 10.0% of bytes |" in text
    assert (tmp_path / "plot.svg").stat().st_size > 1000
