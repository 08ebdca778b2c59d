"""ingest: read a trace of any known format and write it as Parquet or CSV, which then read faster.

Columns are ``time``, ``key``, ``size`` and the extra ones, categories as text. Keys are written as the integers that
the trace holds, so the written file gives the same dense ids and the same miss ratios.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from kvpredict.core.errors import KvpredictError, MissingExtra
from kvpredict.core.place import atomic_path
from kvpredict.pipelines.build import load_trace
from kvpredict.pipelines.config import Config, ConfigError
from kvpredict.pipelines.facts import trace_facts
from kvpredict.trace import Trace

__all__ = ["run", "write_trace"]

ROWS = 1 << 20  # of one chunk, so that text columns never exist in whole
SUFFIXES = (".parquet", ".csv", ".csv.gz", ".csv.zst")


def run(config: Config, folder: Path, start: Path) -> dict[str, Any]:
    """Run the pipeline."""
    out = config.pipeline.out
    if out is not None and not out.endswith(SUFFIXES):
        raise ConfigError(f"pipeline.out={out}: expected a name that ends in {', '.join(SUFFIXES)}")
    trace = load_trace(config, start)
    path = folder / f"{Path(trace.name).name}.parquet" if out is None else start / Path(out).expanduser()
    write_trace(trace, path)
    return {"trace": trace_facts(trace), "written": {"path": str(path), "bytes": path.stat().st_size}}


def write_trace(trace: Trace, path: Path) -> None:
    """Write the trace to ``path``, whole or not at all; its suffix chooses the format.

    Raises
    ------
    KvpredictError
        When the file cannot be written (no such folder, no permission, disk full).
    """
    try:
        import pyarrow as pa
        from pyarrow import csv, parquet
    except ImportError as error:
        raise MissingExtra(f"writing a trace needs pyarrow: pip install 'kvpredict[train]' ({error})") from error
    schema = _table(trace, slice(0, 0)).schema
    try:
        with atomic_path(path) as fresh:
            if path.name.endswith(".parquet"):
                writer = parquet.ParquetWriter(fresh, schema, compression="zstd")
            else:
                packed = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
                sink = pa.CompressedOutputStream(fresh, packed) if packed else pa.OSFile(os.fspath(fresh), "wb")
                writer = csv.CSVWriter(sink, schema)
            with writer:
                for at in range(0, len(trace), ROWS):
                    writer.write_table(_table(trace, slice(at, at + ROWS)))
            if not path.name.endswith(".parquet"):
                sink.close()
    except OSError as error:
        raise KvpredictError(f"cannot write {path}: {error.strerror or error}") from error


def _table(trace: Trace, part: slice) -> Any:
    import pyarrow as pa

    columns: dict[str, Any] = {}
    if trace.times is not None:
        columns["time"] = trace.times[part]
    columns["key"] = trace.keys[part]
    if trace.sizes is not None:
        columns["size"] = trace.sizes[part]
    for name, values in trace.columns.items():
        if name in trace.categories:
            texts = pa.array(trace.categories[name], pa.string())
            columns[name] = texts.take(pa.array(np.asarray(values[part], np.int64)))
        else:
            columns[name] = values[part]
    return pa.table(columns)
