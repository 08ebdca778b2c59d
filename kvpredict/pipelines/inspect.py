"""inspect: what a trace is, without replaying it."""

from pathlib import Path
from typing import Any

from kvpredict.pipelines.build import load_trace
from kvpredict.pipelines.config import Config
from kvpredict.pipelines.facts import trace_facts

__all__ = ["run"]


def run(config: Config, folder: Path, start: Path) -> dict[str, Any]:
    """Run the pipeline."""
    return {"trace": trace_facts(load_trace(config, start))}
