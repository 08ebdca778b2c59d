"""Tracking, in real SQLite stores: what a run logs, champions, sweeps, parallel jobs, and stores that fail."""

import multiprocessing
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvpredict import tracking
from kvpredict.artifact import Artifact
from kvpredict.core.errors import ArtifactError, KvpredictError
from kvpredict.features.schema import BASE_FEATURES, Schema
from kvpredict.policies.learned import Learned
from kvpredict.scorers.linear import Linear

# MLflow and what it stands on warn about their own future, and leave connections to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite store without runs: making one takes MLflow seconds, so tests start from copies."""
    folder = tmp_path_factory.mktemp("store")
    tracking.prepare(tracking.store_uri(None, folder))
    return folder / tracking.DATABASE


@pytest.fixture
def store(tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(migrated, tmp_path / tracking.DATABASE)
    return tracking.store_uri(None, tmp_path)


@pytest.fixture
def client(store: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(store, registry_uri=store)


def make_policy(candidates: int = 8) -> Learned:
    """A policy that ranks by recency: real, and made without training."""
    weight = np.zeros(Schema().width)
    weight[BASE_FEATURES.index("recency")] = -1.0
    return Learned(Artifact(Linear(weight, np.zeros(1)), Schema()), candidates=candidates, batch=1)


def make_run(
    folder: Path, *, name: str = "orders", windows: int = 3, candidates: int = 8
) -> tuple[dict[str, Any], Path]:
    folder.mkdir(parents=True)
    make_policy(candidates).save(folder / "policy")
    (folder / "report.html").write_text("<p>report</p>")
    row = {"object_miss_ratio": 0.25, "byte_miss_ratio": 0.5, "gap_closed": None, "requests_per_second": 2e6}
    result = {
        "subject": "learned",
        "trace": {"name": name, "fingerprint": "ab" * 16, "path": "/data/orders.csv", "format": "csv"},
        "capacity": {"count": 100, "unit": "objects"},
        "policies": [
            {"policy": "learned", "capacity": 100, **row},
            {"policy": "lru", "capacity": 100, **row, "object_miss_ratio": 0.5},
        ],
        "learned": {
            "metrics": {"roc_auc": 0.9, "log_loss": None},
            "curves": {"hit_ratio": {"step": [1, 2], "value": [0.1, 0.2]}},
        },
        "series": [
            {
                "policy": "lru",
                "start": list(range(windows)),
                "object_miss_ratio": [i / windows for i in range(windows)],
                "byte_miss_ratio": [None] * windows,
            }
        ],
        "accounts": [
            {
                "policy": "guarded",
                "counts": {"fits": 3, "led_lru": 7, "leader": "arc"},
                "series": {"request": [128, 256], "leader": ["lru", "arc"], "lambda": [3.0, 1.5]},
            }
        ],
        "curves": [{"policy": "lru", "capacity": [1, 2], "object_miss_ratio": [0.9, 0.8], "byte_miss_ratio": [1, 1]}],
        "config": {"seed": 7, "fit": {"extra": ["op"], "rows": 10}, "trace": {"path": "x" * 7000}},
    }
    return result, folder


def log(store: str, result: dict[str, Any], folder: Path, **options: Any) -> tracking.Logged:
    return tracking.log_run(store, "tests", "a run", result, folder, started=time.time() - 5, **options)


def test_a_run_holds_params_metrics_series_data_set_and_files(store: str, client: Any, tmp_path: Path) -> None:
    result, folder = make_run(tmp_path / "run", windows=2500)
    logged = log(store, result, folder)
    run = client.get_run(logged.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.end_time - run.info.start_time >= 5000
    assert run.data.params["fit.extra"] == '["op"]'
    assert (run.data.params["seed"], run.data.params["fit.rows"]) == ("7", "10")
    assert len(run.data.params["trace.path"]) == 6000
    metrics = run.data.metrics
    assert (metrics["object_miss_ratio"], metrics["lru/object_miss_ratio"], metrics["learned/roc_auc"]) == (
        0.25,
        0.5,
        0.9,
    )
    assert not {"gap_closed", "learned/log_loss", "windows/lru/byte_miss_ratio"} & set(metrics), "no value, no metric"
    history = client.get_metric_history(logged.run_id, "windows/lru/object_miss_ratio")
    assert [(m.step, m.value) for m in history] == [(i, i / 2500) for i in range(2500)]
    assert [m.step for m in client.get_metric_history(logged.run_id, "curve/lru/object_miss_ratio")] == [1, 2]
    learning = client.get_metric_history(logged.run_id, "training/hit_ratio")
    assert [(m.step, m.value) for m in learning] == [(1, 0.1), (2, 0.2)]
    assert (metrics["guarded/fits"], metrics["guarded/led_lru"]) == (3, 7)
    assert run.data.tags["guarded/leader"] == "arc"
    moved = client.get_metric_history(logged.run_id, "windows/guarded/lambda")
    assert [(m.step, m.value) for m in moved] == [(128, 3.0), (256, 1.5)]
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("orders", "ab" * 16)
    assert "/data/orders.csv" in data.dataset.source
    assert {f.path for f in client.list_artifacts(logged.run_id)} == {"policy", "report.html"}
    assert Path(run.info.artifact_uri.removeprefix("file://")).is_relative_to(tmp_path / tracking.ARTIFACTS)


def test_the_champion_changes_only_for_one_at_least_as_good(store: str, client: Any, tmp_path: Path) -> None:
    seen: list[Path] = []

    def challenge(wins: bool) -> Any:
        def beats(champion: Path) -> bool:
            seen.append(champion)
            return wins

        return beats

    def champion() -> str:
        return str(client.get_model_version_by_alias("orders", tracking.CHAMPION).version)

    first = log(store, *make_run(tmp_path / "1", candidates=1), model_name="orders", beats=challenge(False))
    assert (first.version, first.champion, seen) == ("1", True, [])
    worse = log(store, *make_run(tmp_path / "2", candidates=2), model_name="orders", beats=challenge(False))
    assert (worse.version, worse.champion, champion()) == ("2", False, "1")
    assert len(seen) == 1
    better = log(store, *make_run(tmp_path / "3", candidates=3), model_name="orders", beats=challenge(True))
    assert (better.version, better.champion, champion()) == ("3", True, "3")
    version = client.get_model_version("orders", "3")
    assert version.run_id == better.run_id
    assert version.tags == {"trace": "ab" * 16, "capacity": "100 objects"}


def test_policies_load_by_alias_version_and_run(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import kvpredict

    logged = log(store, *make_run(tmp_path / "run", candidates=5), model_name="my / orders@home")
    assert logged.model == "my-orders-home"
    monkeypatch.chdir(tmp_path)
    for uri in ("models:/my-orders-home@champion", "models:/my-orders-home/1", f"runs:/{logged.run_id}/policy"):
        policy = kvpredict.load_policy(uri)
        assert policy.candidates == 5
        assert isinstance(policy.artifact.scorer, Linear)
    monkeypatch.chdir("/")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert kvpredict.load_policy("models:/my-orders-home@champion").candidates == 5


def test_what_is_not_there_is_named(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    for uri in ("models:/absent@champion", "models:/absent/1", "runs:/absent/policy"):
        with pytest.raises(ArtifactError, match=f"no policy at {uri}"):
            tracking.download_policy(uri)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(tracking.TrackingError, match=r"no MLflow store at .*empty"):
        tracking.download_policy("models:/orders@champion")
    assert list((tmp_path / "empty").iterdir()) == [], "looking makes nothing"


@pytest.mark.slow
def test_the_registered_model_serves_through_mlflow_too(store: str, client: Any, tmp_path: Path) -> None:
    import mlflow
    import pandas as pd

    from kvpredict.simulate import simulate
    from kvpredict.trace import Trace

    log(store, *make_run(tmp_path / "run"), model_name="orders")
    keys = np.random.default_rng(0).integers(0, 300, 5000)
    model = mlflow.pyfunc.load_model(client.get_model_version("orders", "1").source)
    hits = model.predict(pd.DataFrame({"key": keys}))["hit"].to_numpy()
    expected = simulate(Trace.from_keys(keys), make_policy(), 100).hit
    np.testing.assert_array_equal(hits, expected.astype(bool))
    fewer = model.predict(pd.DataFrame({"key": keys}), params={"capacity": 10})["hit"]
    assert fewer.sum() < hits.sum()


def test_a_sweep_has_a_parent_with_children(store: str, client: Any, tmp_path: Path) -> None:
    parent = tracking.start_sweep(store, "tests", "sweep")
    children = {log(store, *make_run(tmp_path / f"{i}"), parent=parent).run_id for i in range(2)}
    sweep = tmp_path / "sweep"
    (sweep / "0").mkdir(parents=True)
    (sweep / "cells.csv").write_text("cell\n")
    tracking.end_sweep(store, parent, failed=False, folder=sweep)
    run = client.get_run(parent)
    assert run.info.status == "FINISHED"
    assert [f.path for f in client.list_artifacts(parent)] == ["cells.csv"]
    found = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert {r.info.run_id for r in found} == children
    tracking.end_sweep(store, parent, failed=True)
    assert client.get_run(parent).info.status == "FAILED"


def _log_in_process(uri: str, folder: Path, start: Any) -> None:
    """Body of a parallel job: at the same moment as the others, on a store that none of them has made."""
    result, folder = make_run(folder)
    start.wait()
    logged = log(uri, result, folder, model_name="orders", beats=lambda champion: False)
    (folder / "version").write_text(str(logged.version))


@pytest.mark.slow
def test_parallel_jobs_share_a_fresh_store(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = tracking.store_uri(f"sqlite:///{tmp_path / 'new.db'}", tmp_path)
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(4)
    jobs = [context.Process(target=_log_in_process, args=(uri, tmp_path / str(i), start)) for i in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(180)
    assert [job.exitcode for job in jobs] == [0, 0, 0, 0]
    assert sorted((tmp_path / str(i) / "version").read_text() for i in range(4)) == ["1", "2", "3", "4"]
    client = MlflowClient(uri, registry_uri=uri)
    experiment = client.get_experiment_by_name("tests")
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * 4
    assert client.get_model_version_by_alias("orders", tracking.CHAMPION).version in (1, "1")


# --- stores that fail -----------------------------------------------------------------------------------------------


def test_a_dead_server_is_named_quickly(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(tracking.TrackingError, match=r"no MLflow server answers at http://…@127\.0\.0\.1:9") as caught:
        log("http://me:secret@127.0.0.1:9", *make_run(tmp_path / "run"))
    assert time.monotonic() - started < 10
    assert "secret" not in str(caught.value)
    assert "tracking=none" in str(caught.value)


def test_a_store_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database, and longer than a header of a database would be" * 100)
    with pytest.raises(tracking.TrackingError, match="not a database") as caught:
        tracking.prepare(tracking.store_uri("sqlite:///mlflow.db", tmp_path))
    assert "\n" not in str(caught.value)


def test_a_store_of_another_mlflow(store: str) -> None:
    with sqlite3.connect(store.removeprefix("sqlite:///")) as connection:
        connection.execute("update alembic_version set version_num = 'ffffffffffff'")
    connection.close()
    with pytest.raises(tracking.TrackingError, match="failed"):
        tracking.prepare(store)


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "mlartifacts").write_text("")
    with pytest.raises(tracking.TrackingError, match="mlartifacts"):
        tracking.prepare(tracking.store_uri(None, tmp_path))


def test_a_deleted_experiment(store: str, client: Any, tmp_path: Path) -> None:
    client.delete_experiment(client.create_experiment("tests"))
    with pytest.raises(tracking.TrackingError, match=r"'tests' .*deleted"):
        log(store, *make_run(tmp_path / "run"))


def test_a_run_that_fails_half_way_is_marked(store: str, client: Any, tmp_path: Path) -> None:
    result, folder = make_run(tmp_path / "run")
    shutil.rmtree(folder / "policy")
    with pytest.raises(KvpredictError):
        log(store, result, folder, model_name="orders")
    (run,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert run.info.status == "FAILED"


def test_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking.store_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking.store_uri("sqlite:///a/b.db?timeout=9", tmp_path) == f"sqlite:///{tmp_path}/a/b.db?timeout=9"
    assert tracking.store_uri("sqlite:////abs/b.db", tmp_path) == "sqlite:////abs/b.db"
    assert tracking.store_uri("http://host:5000", tmp_path) == "http://host:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other")
    assert tracking.store_uri(None, tmp_path) == "http://other"
    assert tracking.store_uri("http://host", tmp_path) == "http://host"
    for wrong in ("./mlruns", "mlflow.db"):
        with pytest.raises(tracking.TrackingError, match="sqlite:///"):
            tracking.store_uri(wrong, tmp_path)


def test_without_mlflow_the_extra_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['mlflow'] = None\n"
        "from kvpredict import tracking\n"
        "try:\n    tracking.prepare('sqlite:////x/y.db')\n"
        "except Exception as error:\n    print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.startswith("MissingExtra")
    assert "kvpredict[train]" in done.stdout
    assert "tracking=none" in done.stdout
