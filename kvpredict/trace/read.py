"""read_trace: one file of any known format, compressed or not, as a ``Trace``."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from kvpredict.core.errors import TraceError, unknown_name
from kvpredict.trace.readers import find_format, format_names, trace_format
from kvpredict.trace.readers._columns import Columns
from kvpredict.trace.readers._format import Options
from kvpredict.trace.readers._source import Source
from kvpredict.trace.trace import Trace

__all__ = ["format_names", "read_trace"]

log = logging.getLogger("kvpredict.trace")


def read_trace(
    path: str | os.PathLike[str],
    *,
    format: str = "auto",
    columns: Mapping[str, str | int] | None = None,
    delimiter: str | None = None,
    header: bool | None = None,
    time_unit: str | None = None,
    text_keys: bool = False,
    limit: int | None = None,
    order: str = "clamp",
    on_error: str = "raise",
    progress: bool | None = None,
    name: str | None = None,
) -> Trace:
    """Read a trace file, plain or compressed with gzip, xz, zstd or bzip2 (told by content, not by name).

    Files are read as streams: besides the columns of the trace, memory holds some blocks of a few megabytes.

    Parameters
    ----------
    path : str or path
    format : str, default "auto"
        One of ``format_names()``; by default recognised by content and name.
    columns : mapping, optional
        For CSV and Parquet: which column (its name, or its number from 0) is ``key``, ``time`` and ``size``, as in
        ``{"key": "url", "time": "ts", "size": "bytes"}``. Any other name renames an extra column; None keeps a
        column from being guessed. What is not named is guessed from common names.
    delimiter : str, optional
        For CSV: the character between fields.
    header : bool, optional
        For CSV: whether the first line names the columns.
    time_unit : {"s", "ms", "us", "ns"}, optional
        For CSV and Parquet: the unit of numeric times. Guessed from the column's name, else from the magnitude of
        its first values taken as time since 1970. For Mooncake and Bailian: where it is another than the format's.
    text_keys : bool, default False
        For CSV and Parquet: hash keys as texts even if the first ones are integers.
    limit : int, optional
        Read only that many requests.
    order : {"clamp", "sort"}, default "clamp"
        Real traces go back in time a little here and there. ``"clamp"`` keeps the order of the file, in which
        requests were served, and raises an earlier time to the latest one before it. ``"sort"`` sorts by time,
        stably. ``info["reordered"]`` counts the requests that were earlier than one before them.
    on_error : {"raise", "skip"}, default "raise"
        ``"skip"`` leaves out records that do not fit, logs once how many, and counts them in ``info["skipped"]``.
        A file most of whose records do not fit is refused all the same.
    progress : bool, optional
        Whether to show a progress bar: by default after a second and a half. Never when stderr is not a terminal.
    name : str, optional
        Name of the trace; default: the file's, without suffixes.

    Returns
    -------
    Trace
        ``info`` has ``path``, ``format``, ``compression``, ``skipped``, ``reordered``; for CSV and Parquet
        ``columns``: the file's name of each column; for traces of LLM requests ``requests``, and ``empty``: how many of
        them have no blocks, and so are not in the trace.

    Raises
    ------
    TraceError
        On a file that is missing, empty, damaged, cut short or of another format: names the file, the line or byte,
        and what was expected.
    UnknownName
        On a format or option value that does not exist.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "shop.csv"
    >>> _ = path.write_text("ts,url,bytes\\n1700000000,/a,10\\n1700000001,/b,20\\n1700000002,/a,10\\n")
    >>> trace = read_trace(path)
    >>> trace, trace.info["columns"]
    (Trace('shop', requests=3, unique=2), {'key': 'url', 'time': 'ts', 'size': 'bytes'})
    """
    for what, value, known in (("on_error", on_error, ("raise", "skip")), ("order", order, ("clamp", "sort"))):
        if value not in known:
            raise unknown_name(what, value, known)
    if limit is not None and limit < 1:
        raise TraceError(f"limit must be at least 1, got {limit}")
    options = Options(columns or {}, delimiter, header, time_unit, text_keys)
    chosen = None if format == "auto" else trace_format(format)
    if chosen and not chosen.named and options.describes_table:
        raise TraceError(
            f"format {format!r} fixes its columns: columns, delimiter, header, time_unit and text_keys are for "
            + ", ".join(n for n in format_names() if trace_format(n).named)
        )
    gathered = Columns()
    with Source(path, on_error, progress) as source:
        if chosen is None:
            chosen = find_format(source.head, options)
        for chunk in chosen.read(source, options):
            gathered.add(chunk, source.share)
            if limit is not None and gathered.size >= limit:
                break
        found, categories = gathered.finish(limit)
        if gathered.size == 0:
            first = f"; the first fault is at {source.faults.first}" if source.faults.first else ""
            raise TraceError(f"{source.path} holds no request (read as {chosen.name}: {chosen.description}){first}")
        source.faults.report(source.info.get("requests", gathered.size))
    times = found.pop("time", None)
    reordered = 0
    if times is not None and (times[1:] < times[:-1]).any():
        latest = np.maximum.accumulate(times)
        reordered = int(np.count_nonzero(times < latest))
        if order == "sort":
            by_time = np.argsort(times, kind="stable")
            times = times[by_time]
            found = {column: values[by_time] for column, values in found.items()}
        else:
            times = latest
    info: dict[str, Any] = {
        "path": source.path,
        "format": chosen.name,
        "compression": source.compression,
        "skipped": source.faults.skipped,
        "reordered": reordered,
        **source.info,
    }
    return Trace(
        found.pop("key"),
        times,
        found.pop("size", None),
        found,
        categories=categories,
        name=name or source.stem,
        info=info,
    )
