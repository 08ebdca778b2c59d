"""Trace formats, one a file; a format is found by its module's name.

A format says how it recognises a file and how it turns a stream of bytes into chunks of columns (see ``_format``).
``_source`` decompresses and cuts the stream, ``_delimited`` parses rows of text, ``_columns`` gathers the chunks.
"""

import importlib
import pkgutil
from functools import cache

from kvpredict.core.errors import TraceError, UnknownName, unknown_name
from kvpredict.trace.readers._format import Format, Head, Options

__all__ = ["find_format", "format_names", "trace_format"]


@cache
def format_names() -> list[str]:
    """Return the names of all trace formats, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


@cache
def trace_format(name: str) -> Format:
    """Return the format called ``name``; raises ``UnknownName`` with the nearest right name."""
    if name not in format_names():
        raise unknown_name("trace format", name, ["auto", *format_names()])
    module = importlib.import_module(f"{__name__}.{name}")
    for candidate in vars(module).values():
        if isinstance(candidate, type) and issubclass(candidate, Format) and candidate.__dict__.get("name") == name:
            return candidate()
    raise UnknownName(f"module {module.__name__} defines no Format whose name is {name!r}")


def find_format(head: Head, options: Options) -> Format:
    """Return the format that recognises ``head`` with most confidence.

    Raises
    ------
    TraceError
        When none does; says what the file looks like instead.
    """
    candidates = [trace_format(name) for name in format_names()]
    if options.describes_table:
        candidates = [f for f in candidates if f.named]
    best = max(candidates, key=lambda f: f.sniff(head))
    if best.sniff(head) > 0:
        return best
    if head.foreign:
        raise TraceError(f"{head.path}: this is {head.foreign}, not a trace")
    raise TraceError(
        f"{head.path}: the format is not recognised (the file begins with {head.data[:24]!r}); "
        f"give format=, one of {', '.join(f.name for f in candidates)}"
    )
