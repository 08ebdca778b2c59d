"""inspect: what a trace is, without replaying it; a file of LLM requests as the prefix pipelines read it."""

from pathlib import Path
from typing import Any

from kvpredict.llm.request_files import request_format
from kvpredict.pipelines.build import load_trace
from kvpredict.pipelines.config import Config, ConfigError
from kvpredict.pipelines.facts import trace_facts
from kvpredict.pipelines.prefix import read_file, request_facts
from kvpredict.trace.readers._source import Source

__all__ = ["run"]


def run(config: Config, folder: Path, start: Path) -> dict[str, Any]:
    """Run the pipeline."""
    if _holds_requests(config, start):
        trace = read_file(config, start)
        return {"trace": request_facts(trace if config.trace.limit is None else trace.head(config.trace.limit))}
    for name in ("tokenizer", "block_size"):
        if getattr(config.pipeline, name) is not None:
            raise ConfigError(f"pipeline.{name} has no effect: it is for files of LLM requests; leave it out")
    return {"trace": trace_facts(load_trace(config, start))}


def _holds_requests(config: Config, start: Path) -> bool:
    """Tell whether the run's file holds LLM requests, and nothing is said that reads it as keys."""
    given = config.trace
    if getattr(given, "path", None) is None or given.format != "auto" or given.text_keys:
        return False
    if any(column is not None for column in (*vars(given.columns).values(), given.delimiter, given.header)):
        return False
    with Source((start / Path(given.path).expanduser()).resolve(), given.on_error, progress=False) as source:
        return request_format(source.head) is not None
