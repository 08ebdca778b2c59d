"""Tracking: runs, their figures and policies in an MLflow store.

The default store is ``mlflow.db`` in the folder where the work was started, its artifacts beside it in
``mlartifacts``; any other is named by URI. A SQLite store is created and written under a file lock, so that parallel
jobs neither migrate it twice nor wait for each other in the middle of a run. All calls name their run and store:
MLflow's global "active run" is not used.

The alias ``champion`` of a registered model moves to a new version only if that one misses no more than the present
champion, both measured on the new run's own later part; a first version becomes champion at once.
"""

import atexit
import contextlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kvpredict.core.errors import ArtifactError, KvpredictError, MissingExtra

__all__ = [
    "CHAMPION",
    "Logged",
    "TrackingError",
    "download_policy",
    "end_sweep",
    "expect",
    "log_run",
    "prepare",
    "start_sweep",
    "store_uri",
]

CHAMPION = "champion"
DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
POLICY = "policy"  # the folder of a saved policy, in a run's folder and among its artifacts
WORK = "work"  # the folder, in a run's, of what training writes down to go on from: gigabytes, and no artifact
MODEL = "model"
METRICS_A_BATCH, PARAMS_A_BATCH, LONGEST_PARAM = 1000, 100, 6000  # limits of MLflow's stores
LOCK_SECONDS = 300


class TrackingError(KvpredictError):
    """A store that cannot be reached, read or written."""


@dataclass(frozen=True)
class Logged:
    """Where a run went: ``version`` of the registered model, None without one, and whether it became champion."""

    uri: str
    run_id: str
    model: str | None = None
    version: str | None = None
    champion: bool = False


def store_uri(uri: str | None, start: Path) -> str:
    """Return the absolute URI of the store: ``uri``, else MLFLOW_TRACKING_URI, else ``mlflow.db`` in ``start``."""
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{DATABASE}"
    if uri.startswith("sqlite:///"):
        path, _, query = uri.removeprefix("sqlite:///").partition("?")
        return f"sqlite:///{(start / Path(path).expanduser()).resolve()}{'?' + query if query else ''}"
    if not re.match(r"[a-z][a-z0-9+.-]*://|databricks", uri):
        raise TrackingError(
            f"tracking.uri={uri} is not a store's URI: give sqlite:///{DATABASE} or the http:// address of a server"
        )
    return uri


def expect(uri: str) -> None:
    """Raise ``TrackingError`` at once for a server that does not answer, or a database in a folder that is missing."""
    if not uri.startswith("sqlite:///"):
        _expect_server(uri)
    elif not _database(uri).parent.is_dir():
        raise TrackingError(f"{_database(uri).parent} does not exist: make that folder, or check tracking.uri")


def prepare(uri: str) -> None:
    """Create the tables of a new SQLite store, or see that the server answers; parallel jobs then find it ready."""
    with _store(uri) as client:
        client.search_experiments(max_results=1)
        client.search_registered_models(max_results=1)


def start_sweep(uri: str, experiment: str, name: str) -> str:
    """Create the run that the cells of a sweep become children of; return its id."""
    with _store(uri) as client:
        return str(client.create_run(_experiment(client, uri, experiment), run_name=name).info.run_id)


def end_sweep(uri: str, run_id: str, *, failed: bool, folder: Path | None = None) -> None:
    """Close a sweep's run, with the files in ``folder`` as artifacts."""
    with _store(uri) as client:
        for file in sorted(folder.glob("*.*")) if folder else []:
            if file.is_file():
                client.log_artifact(run_id, str(file))
        client.set_terminated(run_id, "FAILED" if failed else "FINISHED")


def log_run(
    uri: str,
    experiment: str,
    name: str,
    result: Mapping[str, Any],
    folder: Path,
    *,
    started: float,
    parent: str | None = None,
    model_name: str | None = None,
    beats: Callable[[Path], bool] | None = None,
) -> Logged:
    """Log a finished run.

    Parameters
    ----------
    uri, experiment, name : str
        Store, experiment and name of the run.
    result : mapping
        What ``result.json`` holds.
    folder : Path
        Where the run's files are; all but those in ``work`` become artifacts.
    started : float
        When the run began, seconds since 1970.
    parent : str, optional
        The sweep's run.
    model_name : str, optional
        Register ``folder / "policy"`` under this name.
    beats : callable, optional
        Tells of the folder of the present champion whether the new policy is at least as good.

    Raises
    ------
    TrackingError
        When the store cannot be reached or written.
    """
    with _store(uri) as client:
        tags = {"mlflow.parentRunId": parent} if parent else {}
        experiment_id = _experiment(client, uri, experiment)
        info = client.create_run(experiment_id, start_time=int(started * 1000), run_name=name, tags=tags).info
        run_id = str(info.run_id)
        try:
            _log_params(client, run_id, _flatten(result["config"]))
            _log_metrics(client, run_id, result)
            _log_dataset(client, run_id, result["trace"])
            for path in sorted(folder.iterdir()):
                if path.is_file():
                    client.log_artifact(run_id, str(path))
                elif path.name != WORK:
                    client.log_artifacts(run_id, str(path), path.name)
            logged = Logged(uri, run_id)
            if model_name is not None:
                logged = _register(client, logged, folder / POLICY, _model_name(model_name), result, beats)
        except BaseException:
            with contextlib.suppress(Exception):
                client.set_terminated(run_id, "FAILED")
            raise
        client.set_terminated(run_id)
        return logged


def download_policy(uri: str) -> Path:
    """Return the folder of the policy behind ``models:/name@alias``, ``models:/name/version`` or ``runs:/id/policy``.

    Raises
    ------
    ArtifactError
        When the store has no such model, run or policy.
    TrackingError
        When the store cannot be reached.
    """
    _need_mlflow()
    store = store_uri(None, Path.cwd())
    if store.startswith("sqlite:///") and not _database(store).exists():
        raise TrackingError(
            f"there is no MLflow store at {_database(store)}: set MLFLOW_TRACKING_URI, or go to its folder"
        )
    # Local artifacts are used where they lie; those of a server go to a folder that lives as long as the process.
    with _store(store, remedy="Check MLFLOW_TRACKING_URI") as client:
        return _download(client, uri)


def _download(client: Any, uri: str) -> Path:
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    store = client.tracking_uri
    target = None
    if not store.startswith("sqlite:///"):
        target = tempfile.mkdtemp(prefix="kvpredict-policy-")
        atexit.register(shutil.rmtree, target, ignore_errors=True)
    try:
        # MLflow looks models up in the store of the whole process, whatever store it is given: looked up here instead.
        source = _model_source(client, uri)
        root = Path(download_artifacts(source, dst_path=target, tracking_uri=store, registry_uri=store))
    except (MlflowException, OSError) as error:
        if isinstance(error, MlflowException) and error.error_code == "INTERNAL_ERROR":
            raise
        raise ArtifactError(f"no policy at {uri} in {_shown(store)}: {_first_line(error)}") from error
    return root / "data" / POLICY if (root / "MLmodel").is_file() else root


def _model_source(client: Any, uri: str) -> str:
    """Return where the artifacts of ``models:/name@alias`` or ``models:/name/version`` lie; other URIs as they are."""
    model = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if model is None:
        return uri
    name, alias, version = model.groups()
    if alias is not None:
        version = client.get_model_version_by_alias(name, alias).version
    return str(client.get_model_version_download_uri(name, str(version)))


# --- the store ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _store(uri: str, remedy: str = "Check tracking.uri, or set tracking=none") -> Iterator[Any]:
    """Yield a client of the store; what fails inside becomes one ``TrackingError``."""
    _set_defaults()
    _need_mlflow()
    import mlflow.exceptions
    import requests
    import sqlalchemy.exc
    from filelock import FileLock, Timeout
    from mlflow import MlflowClient

    for logger in ("mlflow", "alembic"):  # importing MLflow has set their levels
        logging.getLogger(logger).setLevel(logging.ERROR)
    failures = (
        mlflow.exceptions.MlflowException,
        requests.RequestException,
        sqlalchemy.exc.SQLAlchemyError,
        OSError,
        ImportError,  # a database's driver
    )
    try:
        with contextlib.ExitStack() as held:
            if uri.startswith("sqlite:///"):
                expect(uri)
                artifacts = _database(uri).parent / ARTIFACTS
                artifacts.mkdir(exist_ok=True)
                held.enter_context(FileLock(artifacts / ".lock", timeout=LOCK_SECONDS))
                _create_database(_database(uri), artifacts)
            else:
                _expect_server(uri)
            yield MlflowClient(uri, registry_uri=uri)
    except Timeout as error:
        raise TrackingError(
            f"the store {_shown(uri)} has been locked for {LOCK_SECONDS} s by another process ({error.lock_file})"
        ) from error
    except failures as error:
        raise TrackingError(f"tracking to {_shown(uri)} failed: {_first_line(error)}. {remedy}") from error


def _need_mlflow() -> None:
    try:
        import mlflow  # noqa: F401
    except ImportError as error:
        raise MissingExtra(
            f"tracking needs MLflow: pip install 'kvpredict[train]', or set tracking=none ({error})"
        ) from error


def _create_database(database: Path, artifacts: Path) -> None:
    """Make a new database elsewhere and move it into place: one half made, after Ctrl-C, could never be used."""
    from mlflow import MlflowClient

    if database.exists():
        return
    for left_over in artifacts.glob(".new-*"):  # of a process that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=artifacts) as folder:
        fresh = Path(folder) / DATABASE
        client = MlflowClient(f"sqlite:///{fresh}", registry_uri=f"sqlite:///{fresh}")
        client.search_experiments(max_results=1)
        client.search_registered_models(max_results=1)
        fresh.replace(database)


def _set_defaults() -> None:
    """Keep MLflow off the console and the network, and its retries short; what the user has set stays."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
        "GIT_PYTHON_REFRESH": "quiet",
    }.items():
        os.environ.setdefault(name, value)


def _expect_server(uri: str) -> None:
    """Ask a server once whether it is there: MLflow itself would try for minutes."""
    import requests

    if urlsplit(uri).scheme in ("http", "https"):
        try:
            requests.get(f"{uri.rstrip('/')}/health", timeout=5)
        except requests.RequestException as error:
            raise TrackingError(
                f"no MLflow server answers at {_shown(uri)} ({type(error).__name__}): check tracking.uri, or set "
                "tracking=none"
            ) from error


def _database(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0])


def _shown(uri: str) -> str:
    """Return the URI without the password that it may hold."""
    return re.sub(r"//[^/@]*@", "//…@", uri)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return _shown(text.splitlines()[0]) if text else type(error).__name__


def _experiment(client: Any, uri: str, name: str) -> str:
    """Return the id of the experiment, made when it is not there."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        local = uri.startswith("sqlite:///")
        location = (_database(uri).parent / ARTIFACTS).as_uri() if local else None
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another job was faster
                raise
            found = client.get_experiment_by_name(name)
    if found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"the experiment {name!r} of {_shown(uri)} has been deleted: restore it, or set tracking.experiment"
        )
    return str(found.experiment_id)


# --- what a run logs ------------------------------------------------------------------------------------------------


def _log_params(client: Any, run_id: str, params: Mapping[str, Any]) -> None:
    """Log parameters; long values are cut (the whole configuration is in the artifact ``result.json``)."""
    from mlflow.entities import Param

    entities = [Param(key, str(value)[:LONGEST_PARAM]) for key, value in params.items()]
    for at in range(0, len(entities), PARAMS_A_BATCH):
        client.log_batch(run_id, params=entities[at : at + PARAMS_A_BATCH])


def _log_metrics(client: Any, run_id: str, result: Mapping[str, Any]) -> None:
    """Log figures and series in batches; the run's subject also under plain names, which sweeps compare."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    points: list[Metric] = []

    def add(key: str, value: Any, step: int = 0) -> None:
        if isinstance(value, int | float) and value == value and abs(value) != float("inf"):
            points.append(Metric(key, float(value), now, step))

    figures = (
        "object_miss_ratio",
        "byte_miss_ratio",
        "gap_closed",
        "requests_per_second",
        "write_ratio",
        "mean_miss_cost",
    )
    for row in result.get("policies", []):
        of_prefixes = ("prefix_hit_ratio", "token_hit_ratio", "ttft_p50", "ttft_p90")
        of_decoding = [f"{mode}_{figure}" for mode in ("once", "online") for figure in ("nll", "added", "low", "high")]
        of_decoding += ["passkey", "needle", "same_tokens", "freed", "policy_us", "step_us"]
        for figure in (*figures, *of_prefixes, *of_decoding):
            add(f"{row['policy']}/{figure}", row.get(figure), row["capacity"])
            if row["policy"] == result.get("subject"):
                add(figure, row.get(figure))
    for key, value in ((result.get("learned") or {}).get("metrics") or {}).items():
        add(f"learned/{key}", value)
    for name, curve in ((result.get("learned") or {}).get("curves") or {}).items():
        for step, value in zip(curve["step"], curve["value"], strict=True):
            add(f"training/{name}", value, step)
    for series in result.get("series", []):
        for figure in figures[:2]:
            for start, value in zip(series["start"], series[figure], strict=True):
                add(f"windows/{series['policy']}/{figure}", value, start)
    for account in result.get("accounts", []):
        for key, value in account["counts"].items():
            if isinstance(value, str):
                client.set_tag(run_id, f"{account['policy']}/{key}", value)
            add(f"{account['policy']}/{key}", value)
        for key, values in account["series"].items():
            if key == "request":  # the step of all the others
                continue
            for request, value in zip(account["series"]["request"], values, strict=True):
                add(f"windows/{account['policy']}/{key}", value, request)
    for curve in result.get("curves", []):
        for figure in figures[:2]:
            for capacity, value in zip(curve["capacity"], curve[figure], strict=True):
                add(f"curve/{curve['policy']}/{figure}", value, capacity)
    for at in range(0, len(points), METRICS_A_BATCH):
        client.log_batch(run_id, metrics=points[at : at + METRICS_A_BATCH])


def _log_dataset(client: Any, run_id: str, trace: Mapping[str, Any]) -> None:
    """Log the trace as the run's data set; its digest is the trace's fingerprint."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    source = CodeDatasetSource(
        {k: str(trace[k]) for k in ("path", "format") if trace.get(k)} or {"generator": "kvpredict"}
    )
    dataset = MetaDataset(source, name=trace["name"], digest=trace["fingerprint"])  # type: ignore[abstract]
    client.log_inputs(
        run_id, [DatasetInput(dataset=dataset._to_mlflow_entity(), tags=[InputTag("mlflow.data.context", "trace")])]
    )


def _flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping with dotted names."""
    if not isinstance(node, Mapping):
        return {prefix: json.dumps(node) if isinstance(node, Sequence) and not isinstance(node, str) else node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


# --- the registered model -------------------------------------------------------------------------------------------


def _model_name(name: str) -> str:
    """Return ``name`` without the characters that separate the parts of a model's URI."""
    return re.sub(r"[/:@.%\"'\s]+", "-", name).strip("-") or "policy"


def _register(
    client: Any,
    logged: Logged,
    policy: Path,
    name: str,
    result: Mapping[str, Any],
    beats: Callable[[Path], bool] | None,
) -> Logged:
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory(prefix="kvpredict-model-") as scratch:
        _save_pyfunc(policy, Path(scratch) / MODEL, result["capacity"])
        client.log_artifacts(logged.run_id, scratch)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(logged.run_id).info.artifact_uri}/{MODEL}"
    tags = {
        "trace": result["trace"]["fingerprint"],
        "capacity": f"{result['capacity']['count']} {result['capacity']['unit']}",
    }
    version = str(client.create_model_version(name, source, logged.run_id, tags=tags).version)
    champion = _is_champion(client, name, beats)
    if champion:
        client.set_registered_model_alias(name, CHAMPION, version)
    return Logged(logged.uri, logged.run_id, name, version, champion)


def _is_champion(client: Any, name: str, beats: Callable[[Path], bool] | None) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return True  # the first one
    try:
        return beats is None or beats(_download(client, f"models:/{name}@{CHAMPION}"))
    except ArtifactError:
        return True  # a champion that cannot be loaded any more serves nobody


def _save_pyfunc(policy: Path, target: Path, capacity: Mapping[str, Any]) -> None:
    """Write an MLflow model around a saved policy: the folder as it is, and the name of this module as its loader."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow warns of its own type hints when this part of it is imported
        import mlflow.pyfunc
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    from kvpredict.version import __version__

    signature = ModelSignature(
        inputs=Schema(
            [
                ColSpec("long", "key"),
                ColSpec("long", "size", required=False),
                ColSpec("double", "time", required=False),
            ]
        ),
        outputs=Schema([ColSpec("boolean", "hit")]),
        params=ParamSchema(
            [ParamSpec("capacity", "long", capacity["count"]), ParamSpec("unit", "string", capacity["unit"])]
        ),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*An input example was not provided")
        mlflow.pyfunc.save_model(
            str(target),
            loader_module=__name__,
            data_path=str(policy),
            signature=signature,
            pip_requirements=[f"kvpredict=={__version__}"],  # said, not inferred: inferring takes seconds
        )


class _PyfuncPolicy:
    """What ``mlflow.pyfunc.load_model`` returns: requests in, hits out, by replaying them through the policy."""

    def __init__(self, folder: Path) -> None:
        from kvpredict.load import load_policy

        self.policy = load_policy(folder)

    def predict(self, frame: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Return a frame with the column ``hit`` for requests with ``key`` and perhaps ``size`` and ``time``."""
        import pandas as pd

        from kvpredict.simulate import simulate
        from kvpredict.trace import Trace

        columns = {name: frame[name].to_numpy() for name in ("size", "time") if name in frame}
        trace = Trace.from_keys(frame["key"].to_numpy(), columns.get("size"), columns.get("time"))
        given = dict(params or {})
        result = simulate(trace, self.policy, int(given["capacity"]), unit=given.get("unit", "objects"))
        return pd.DataFrame({"hit": result.hit.astype(bool)})


def _load_pyfunc(path: str) -> _PyfuncPolicy:
    """Load the model's data; MLflow finds this function by its name."""
    return _PyfuncPolicy(Path(path))
