"""Published CSV formats that begin with a header line: columns are found by their names, in any order."""

from collections.abc import Callable, Iterator, Mapping

from kvpredict.core.errors import TraceError
from kvpredict.trace.readers._delimited import read_rows, split_row
from kvpredict.trace.readers._format import Chunk, Head
from kvpredict.trace.readers._source import Source

__all__ = ["header_of", "read_headed"]


def header_of(head: Head, delimiter: str) -> list[str]:
    """Return the names in the first line."""
    return [name.strip() for name in split_row(head.lines[0], delimiter, False)] if head.lines else []


def read_headed(
    source: Source,
    kinds: Mapping[str, str],
    required: set[str],
    delimiter: str,
    convert: Callable[[Chunk], Chunk],
) -> Iterator[Chunk]:
    """Yield the chunks of a file whose header names columns of ``kinds``; columns it does not know are left out."""
    names = header_of(source.head, delimiter)
    if missing := required - set(names):
        raise TraceError(
            f"{source.path}, line 1: expected a header with {', '.join(sorted(required))}; "
            f"there is no {', '.join(sorted(missing))} in {names[:20]}"
        )
    fields = {name: kinds.get(name, "") for name in names}
    optional = frozenset(set(names) - required)
    yield from read_rows(source, fields, delimiter, convert, skip=1, optional=optional)
