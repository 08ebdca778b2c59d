"""The pipelines train and simulate: their figures are the simulator's, and the saved policy is the measured one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvpredict
from kvpredict.core.errors import KvpredictError, UnknownName
from kvpredict.pipelines import compare
from kvpredict.pipelines.build import chosen, load_trace
from kvpredict.pipelines.run import beats, run_pipeline, subject
from kvpredict.simulate import simulate
from kvpredict.simulate.result import LOSSES
from tests.pipelines.composed import SMALL, config


def run(folder: Path, *overrides: str) -> dict[str, Any]:
    return run_pipeline(config(*SMALL, *overrides), folder=folder, start=folder, overrides=overrides)


def by_policy(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["policy"]: row for row in result["policies"]}


def test_a_heuristic_runs_beside_its_bounds_and_is_counted_after_the_split(tmp_path: Path) -> None:
    result = run(tmp_path, "policy=sieve", "pipeline.split=0.4", "capacity.fraction=0.05")
    rows = by_policy(result)
    assert set(rows) == {"sieve", "lru", "belady"}
    trace = load_trace(config(*SMALL), tmp_path)
    cut = int(0.4 * len(trace))
    assert result["split"] == {"at": cut, "trained_on": 0, "compared_on": len(trace) - cut}
    for name, row in rows.items():
        expected = simulate(trace, name, trace.capacity(0.05), warmup=cut)
        assert (row["hits"], row["requests"], row["capacity"]) == (expected.hits, len(trace) - cut, expected.capacity)
    assert (rows["lru"]["gap_closed"], rows["belady"]["gap_closed"]) == (0, 1)
    assert [row["policy"] for row in result["policies"]] == ["belady", "sieve", "lru"]
    assert result["subject"] == "sieve"
    assert result["learned"] is None
    assert not (tmp_path / "policy").exists()


def test_result_json_holds_every_figure_and_where_it_came_from(tmp_path: Path) -> None:
    result = run(tmp_path, "policy=lru", "seed=3")
    stored = json.loads((tmp_path / "result.json").read_text(), parse_constant=lambda c: pytest.fail(f"{c} in JSON"))
    assert stored == result
    trace = load_trace(config(*SMALL, "seed=3"), tmp_path)
    assert stored["trace"]["fingerprint"] == trace.fingerprint
    assert (stored["trace"]["requests"], stored["trace"]["unique"]) == (len(trace), trace.unique)
    assert stored["seed"] == 3
    assert stored["config"]["capacity"]["fraction"] == 0.1
    assert stored["versions"]["kvpredict"] == kvpredict.__version__
    assert stored["overrides"] == ["policy=lru", "seed=3"]
    page = (tmp_path / "report.html").read_text()
    assert f"{by_policy(result)['lru']['object_miss_ratio']:.4f}" in page
    assert not list(tmp_path.glob(".*")), "temporary files are gone"


def test_curves_and_windows_are_the_simulators(tmp_path: Path) -> None:
    result = run(tmp_path, "policy=fifo", "report.fractions=[0.02,0.2]", "report.windows=4")
    trace = load_trace(config(*SMALL), tmp_path)
    curve = next(c for c in result["curves"] if c["policy"] == "fifo")
    cut = result["split"]["at"]
    assert curve["fraction"] == [0.02, 0.2]
    assert curve["object_miss_ratio"] == [
        simulate(trace, "fifo", trace.capacity(f), warmup=cut).object_miss_ratio for f in (0.02, 0.2)
    ]
    windows = next(s for s in result["series"] if s["policy"] == "fifo")
    assert len(windows["start"]) == 4
    assert windows["start"][0] == cut


def test_without_report_no_page_and_no_curves(tmp_path: Path) -> None:
    result = run(tmp_path, "policy=fifo", "report.html=false")
    assert result["curves"] == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["result.json"]


def test_parameters_of_a_policy_reach_it(tmp_path: Path) -> None:
    few = by_policy(run(tmp_path, "policy=hyperbolic", "policy.samples=1", "report.html=false"))
    many = by_policy(run(tmp_path, "policy=hyperbolic", "policy.samples=64", "report.html=false"))
    assert few["hyperbolic"]["hits"] < many["hyperbolic"]["hits"]


def test_simulate_runs_policies_by_capacities(tmp_path: Path) -> None:
    result = run(tmp_path, "pipeline=simulate", "pipeline.policies=[fifo]", "pipeline.fractions=[0.01,0.1]")
    trace = load_trace(config(*SMALL), tmp_path)
    rows = {(row["policy"], row["capacity"]): row["hits"] for row in result["policies"]}
    capacities = [trace.capacity(f) for f in (0.01, 0.1)]
    assert rows == {(n, c): simulate(trace, n, c).hits for n in ("fifo", "lru", "belady") for c in capacities}
    assert result["split"]["compared_on"] == len(trace)


def test_simulate_does_not_train(tmp_path: Path) -> None:
    with pytest.raises(KvpredictError, match="pipeline=train"):
        run(tmp_path, "pipeline=simulate", "policy=learned")


def test_workers_give_the_same_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ("pipeline=simulate", "pipeline.policies=[fifo,clock,random]", "report.fractions=[0.1]")
    inline = run(tmp_path, *overrides)
    monkeypatch.setattr("kvpredict.pipelines.simulate.MANY", 2)
    workers = run(tmp_path, *overrides)
    counts = [{n: row["hits"] for n, row in by_policy(r).items()} for r in (inline, workers)]
    assert counts[0] == counts[1]
    assert inline["curves"] == workers["curves"]
    assert inline["series"] == workers["series"]


def test_workers_time_the_replay_and_not_the_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvpredict.pipelines.simulate.MANY", 2)
    result = run(tmp_path, "pipeline=simulate", "pipeline.policies=[fifo,clock]", "workload.requests=200000")
    slowest = min(row["requests_per_second"] for row in result["policies"])
    assert slowest > 1e6, "compiling takes a second; 200,000 requests take milliseconds"


def test_bad_splits_are_refused(tmp_path: Path) -> None:
    for split in ("0.0", "20000", "30000"):
        with pytest.raises(KvpredictError, match=r"pipeline\.split"):
            run(tmp_path, "policy=lru", f"pipeline.split={split}")


def test_split_by_time(tmp_path: Path) -> None:
    result = run(tmp_path, "policy=lru", "pipeline.split=5.0", "pipeline.split_by=time")
    trace = load_trace(config(*SMALL), tmp_path)
    assert result["split"]["at"] == trace.position(5.0, by="time")


def test_chosen_policies() -> None:
    trace = load_trace(config(*SMALL), Path())
    names = chosen(config(*SMALL), trace, learned=True)
    assert {"lru", "sieve", "s3fifo", "arc", "learned", "belady"} <= set(names)
    assert "beladysize" not in names, "sizes play no part in objects"
    assert len(names) == len(set(names))
    assert chosen(config(*SMALL, "policy=sieve"), trace, learned=True) == ["sieve", "lru", "belady"]
    assert "learned" not in chosen(config(*SMALL), trace, learned=False)
    sized = load_trace(config(*SMALL, "workload.size_median=1000"), Path())
    assert {"belady", "beladysize"} <= set(chosen(config(*SMALL, "capacity.unit=bytes"), sized, learned=False))
    with pytest.raises(UnknownName, match="Did you mean 'lru'"):
        chosen(config(*SMALL, "pipeline.policies=[lrru]"), trace, learned=True)


def test_subject() -> None:
    rows: list[dict[str, Any]] = [
        {"policy": "belady", "oracle": True},
        {"policy": "arc", "oracle": False},
        {"policy": "learned", "oracle": False},
    ]
    assert subject(config("policy=lru"), rows) == "lru"
    assert subject(config(), rows) == "learned"
    assert subject(config(), rows[:2]) == "arc"
    assert subject(config(), []) is None


@pytest.mark.parametrize("objective", ["objects", "bytes", "cost"])
def test_policies_are_told_the_objective_and_compared_by_it(tmp_path: Path, objective: str) -> None:
    keys = np.random.default_rng(0).zipf(1.2, 4000) % 500
    lines = [f"{key},{1 + key % 7 * 100},{0.1 if key % 3 else 5.0}" for key in keys]
    (tmp_path / "t.csv").write_text("\n".join(["key,size,cost", *lines]))
    settings = (
        f"trace.path={tmp_path / 't.csv'}",
        "tracking=none",
        "capacity.count=40",
        f"learned.objective={objective}",
    )
    given = config(*settings, "pipeline.policies=[guarded,lfu,fifo]")
    result = run_pipeline(given, folder=tmp_path, start=tmp_path, overrides=settings)
    trace, cut = load_trace(given, tmp_path), result["split"]["at"]
    rows, loss = by_policy(result), LOSSES[objective]
    assert result["objective"] == objective
    told = simulate(trace, kvpredict.policy("guarded", objective=objective), 40, warmup=cut)
    assert rows["guarded"]["hits"] == told.hits
    assert rows["guarded"]["miss_cost"] == told.miss_cost
    assert rows["guarded"]["mean_miss_cost"] == told.miss_cost / told.requests
    assert [row[loss] for row in result["policies"]] == sorted(row[loss] for row in rows.values())
    gap = rows["lru"][loss] - rows["belady"][loss]
    assert rows["lfu"]["gap_closed"] == pytest.approx((rows["lru"][loss] - rows["lfu"][loss]) / gap)
    assert f"{rows['lfu']['mean_miss_cost']:.4g}" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_the_saved_policy_is_the_measured_one(tmp_path: Path) -> None:
    result = run(
        tmp_path,
        "pipeline.policies=[learned,sieve]",
        "learner=logistic",
        "fit.rows=3000",
        "learned.candidates=16",
        "report.fractions=[0.05,0.1]",
    )
    row = by_policy(result)["learned"]
    policy = kvpredict.load_policy(tmp_path / "policy")
    assert policy.candidates == 16
    trace = load_trace(config(*SMALL), tmp_path)
    again = simulate(trace, policy, row["capacity"], warmup=result["split"]["at"])
    assert again.hits == row["hits"]
    assert result["learned"]["settings"]["learner"] == "logistic"
    # It is at least as good as itself as champion; a run that misses more would not replace it.
    assert beats(tmp_path / "policy", config(*SMALL), result, tmp_path)
    worse = result | {"policies": [row | {"object_miss_ratio": row["object_miss_ratio"] + 1e-6}]}
    assert not beats(tmp_path / "policy", config(*SMALL), worse, tmp_path)
    assert {"roc_auc", "average_precision", "log_loss"} <= set(result["learned"]["metrics"])
    assert {p.name for p in (tmp_path / "plots").iterdir()} == {
        "curves.svg",
        "windows.svg",
        "calibration.svg",
        "importance.svg",
    }
    # policy.… speaks of the learned policy when it is the chosen one.
    (tmp_path / "chosen").mkdir()
    chosen_one = run(
        tmp_path / "chosen", "policy=learned", "learner=logistic", "fit.rows=3000", "policy.candidates=16",
        "report.html=false",
    )  # fmt: skip
    assert by_policy(chosen_one)["learned"]["hits"] == row["hits"]


def test_this_process_takes_a_fair_share() -> None:
    names = [f"p{i}" for i in range(23)]
    for workers, meanwhile, theirs in ((1, 0, 12), (1, 13, 18), (1, 40, 23), (3, 0, 18), (7, 13, 23)):
        replay = compare.Replay(load_trace(config(*SMALL), Path()), "objects", 0, 0, 5, workers=True)
        shared = replay._share(names, workers, meanwhile)
        assert len(shared) == theirs
        assert replay._share([*shared[:2], "p0"], workers, 0) == [n for n in [*shared[:2], "p0"] if n in shared]


def test_long_traces_are_not_copied_to_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = load_trace(config(*SMALL), Path())
    monkeypatch.setattr(compare, "LONG", 10)
    replay = compare.Replay(trace, "objects", 0, 0, 5, workers=True)
    policies = {name: kvpredict.policy(name) for name in ("fifo", "lru")}
    monkeypatch.setitem(__import__("sys").modules, "joblib", None)  # would be needed for workers
    measured = dict(replay.begin(replay.measure, policies, 100))
    assert measured["lru"].result.hits == simulate(trace, "lru", 100).hits
