"""One run: a pipeline's result, written down, shown and tracked, in this order."""

import importlib
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kvpredict.pipelines.build import LEARNED, load_trace
from kvpredict.pipelines.config import Config
from kvpredict.pipelines.facts import machine, plain_config, versions
from kvpredict.pipelines.output import (
    as_json,
    print_comparison,
    print_decoding,
    print_facts,
    print_prefixes,
    print_tables,
    write_files,
)
from kvpredict.version import __version__

__all__ = ["TRACKED", "run_pipeline"]

TRACKED = (
    "train",
    "simulate",
    "prefix_train",
    "prefix_simulate",
    "decode_train",
    "decode_evaluate",
)  # pipelines whose results are figures


def run_pipeline(
    config: Config,
    *,
    folder: Path,
    start: Path,
    overrides: Sequence[str] = (),
    parent: str | None = None,
    started: float | None = None,
) -> dict[str, Any]:
    """Run the pipeline of ``config`` and return what ``result.json`` holds.

    Parameters
    ----------
    config : Config
    folder : Path
        Where results go; it exists.
    start : Path
        What relative paths count from, and where the default store lies.
    overrides : sequence of str
        The command line's settings, for the record.
    parent : str, optional
        The MLflow run of the sweep that this run is a cell of.
    started : float, optional
        Seconds since 1970; default: now.
    """
    started = time.time() if started is None else started
    store = None
    if config.tracking.name == "mlflow" and config.pipeline.name in TRACKED:
        from kvpredict import tracking

        store = tracking.store_uri(config.tracking.uri, start)
        tracking.expect(store)  # before any work is done
    pipeline = importlib.import_module(f"kvpredict.pipelines.{config.pipeline.name}")
    found = pipeline.run(config, folder, start)
    result = as_json(
        {
            "kvpredict": __version__,
            "pipeline": config.pipeline.name,
            "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
            "seconds": time.time() - started,
            "overrides": list(overrides),
            "seed": config.seed,
            "subject": subject(config, found.get("policies", [])),
            **found,
            "config": plain_config(config),
            "versions": versions(),
            "machine": machine(),
        }
    )
    written = write_files(result, folder, html=config.report.html)
    if config.pipeline.name.startswith("prefix_"):
        print_prefixes(result)
    elif config.pipeline.name == "decode_evaluate":
        print_decoding(result)
    elif result.get("policies"):
        print_comparison(result)
    elif result.get("tables"):
        print_tables(result)
    else:
        print_facts(result["trace"])
    if "written" in result:
        print(f"trace:   {result['written']['path']}")
    for what, path in written.items():
        print(f"{what + ':':8} {path}")
    if store is not None:
        _track(config, result, store, folder, start, parent, started)
    return result


def subject(config: Config, rows: Sequence[dict[str, Any]]) -> str | None:
    """Return the policy that a run is about: the chosen one, the learned one, or else the best that could be used."""
    if config.policy is not None:
        return str(config.policy["name"])
    names = [row["policy"] for row in rows if not row["oracle"]]
    return LEARNED if LEARNED in names else names[0] if names else None


def run_name(config: Config, result: dict[str, Any]) -> str:
    """Return what MLflow calls a run: pipeline, language model if there is one, policy, and capacity."""
    model = getattr(config.pipeline, "model", None)
    capacity = f"{result['capacity']['count']} {result['capacity']['unit']}"
    words = [config.pipeline.name, Path(model).name if model else None, result["subject"], capacity]
    return " ".join(word for word in words if word)


def _track(
    config: Config, result: dict[str, Any], uri: str, folder: Path, start: Path, parent: str | None, started: float
) -> None:
    from kvpredict import tracking

    registers = result["learned"] is not None and config.pipeline.register
    logged = tracking.log_run(
        uri,
        config.tracking.experiment or "kvpredict",
        config.tracking.run_name or run_name(config, result),
        result,
        folder,
        started=started,
        parent=parent,
        model_name=(config.tracking.model_name or result["trace"]["name"]) if registers else None,
        beats=lambda champion: beats(champion, config, result, start),
    )
    print(f"{'run:':8} {logged.run_id} in {logged.uri}")
    if logged.model is not None:
        kept = "champion" if logged.champion else "the champion before it misses less and stays"
        print(f"{'model:':8} models:/{logged.model}/{logged.version} ({kept})")


def beats(champion: Path, config: Config, result: dict[str, Any], start: Path) -> bool:
    """Tell whether the run's learned policy loses no more than ``champion`` on the part that it was compared on."""
    from kvpredict.load import load_policy
    from kvpredict.simulate import simulate
    from kvpredict.simulate.result import LOSSES

    mine = next(row for row in result["policies"] if row["policy"] == LEARNED)
    trace = load_trace(config, start)
    theirs = simulate(
        trace,
        load_policy(champion),
        result["capacity"]["count"],
        unit=result["capacity"]["unit"],
        warmup=result["split"]["at"],
        seed=config.seed,
    )
    return bool(mine[LOSSES[result["objective"]]] <= theirs.loss(result["objective"]))
