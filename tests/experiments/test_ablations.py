"""The experiment on a generated trace, with heuristics counted by the experiment that it reads them from."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.ablations import run
from experiments.learned_vs_heuristics import run as heuristics
from kvpredict.policies import policy
from kvpredict.simulate import simulate
from kvpredict.trace import Trace


def test_every_variant_differs_from_the_defaults() -> None:
    known = run.variants()
    assert known.pop("model of hindsight") == {"prior": "hindsight", "learn": False}
    usual = policy("guarded")
    assert [name for name, params in known.items() if policy("guarded", **params) == usual] == ["defaults"]
    assert {"no guard", "no learning", "only lru leads", "margin 0"} <= set(known)


def test_a_model_of_hindsight_knows_the_trace_and_learns_nothing_more(tmp_path: Path) -> None:
    trace = Trace(np.random.default_rng(0).zipf(1.2, 30_000) % 2000)
    made = run.make(run.variants()["model of hindsight"], trace, 0.1)
    assert made.prior is not None
    counts = simulate(trace, made, trace.capacity(0.1)).account["counts"]
    assert counts["fits"] == counts["samples"] == 0


def test_rows_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def quick(trace: Trace, made: Any, capacity: int, **given: Any) -> Any:
        seen.append(made)
        return simulate(trace, "random", capacity, **given)  # guarded compiles for half a minute

    monkeypatch.setattr(run, "simulate", quick)
    monkeypatch.setattr(heuristics, "policy_names", lambda: ["fifo", "lru", "belady", "guarded"])
    path = tmp_path / "made.csv"
    keys = np.random.default_rng(0).integers(0, 3000, 6000)
    path.write_text("key\n" + "".join(f"{key}\n" for key in keys))
    where = ["--traces", str(path), "--out", str(tmp_path)]
    heuristics.main([*where, "--only", "heuristics"])
    (tmp_path / "README.md").write_text((Path(run.__file__).parent / "README.md").read_text())
    given = [*where, "--heuristics", str(tmp_path / "heuristics.csv"), "--only", "defaults,no guard", "--seeds", "2"]
    run.main(given)
    run.main(given)  # nothing is missing
    assert len(seen) == 2 * 2 * 2
    assert {made.guard for made in seen} == {True, False}
    with open(tmp_path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    trace = Trace(keys.astype(np.int64))
    best = min(simulate(trace, name, trace.capacity(0.1), warmup=0.5).misses for name in ("fifo", "lru"))
    assert {int(r["best_misses"]) for r in rows if r["fraction"] == "0.1"} == {best}
    assert "| no guard | 2 |" in (tmp_path / "README.md").read_text()
    with pytest.raises(SystemExit, match="no variant 'nothing'"):
        run.main(["--only", "nothing"])


def test_heuristics_counted_on_another_trace_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "made.csv"
    path.write_text("key\n" + "".join(f"{key % 300}\n" for key in range(1000)))
    monkeypatch.setattr(run, "best_heuristics", lambda _: {("made", 0.01): ("lru", 5, 999)})
    with pytest.raises(SystemExit, match="999 requests, here are 1000"):
        run.main(["--traces", str(path), "--out", str(tmp_path), "--only", "defaults"])
