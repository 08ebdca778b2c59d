"""Which column is the key, which the time, which the size: as the caller names them, or guessed from common names.

A column of the file that plays no part becomes an extra column of the trace. What was chosen stands in
``trace.info["columns"]``.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kvpredict.core.errors import TraceError
from kvpredict.trace.readers._format import (
    BadRecord,
    Chunk,
    Options,
    Text,
    expect_finite,
    likely_unit,
    numbers,
    seconds,
    ticks_in,
)

__all__ = ["Mapped", "map_columns", "plain_name"]

# Common names of the columns, the likeliest first.
NAMES = {
    "key": """key cache_key obj_id object_id objid obj object id hash url uri path request_uri query block block_id
        blockid lbn lba offset page page_id pageno item item_id itemid sku product_id filename file inode""",
    "time": """time ts timestamp t date datetime time_s time_ms time_us time_ns timestamp_s timestamp_ms timestamp_us
        timestamp_ns op_time relative_unix unix_time epoch clock_time wall_time event_time request_time real_time
        created_at accessed_at""",
    "size": """size bytes obj_size object_size objsize size_bytes response_size content_length length len value_size
        val_size io_size body_bytes_sent nbytes""",
    "op": "op operation op_name type method verb command cmd io_type iotype opcode request_type",
}
KNOWN = {role: names.split() for role, names in NAMES.items()}


class Mapped(NamedTuple):
    """``roles`` maps key, time, size (the last two where there are any) and the extra columns to the file's names."""

    roles: dict[str, str]
    ticks: int  # of a numeric time, per second

    def convert(self, columns: Chunk) -> Chunk:
        """Return the trace's columns; raises ``BadRecord`` when some row does not fit."""
        chunk: Chunk = {}
        for role, name in self.roles.items():
            values = columns[name]
            if role == "key":
                chunk[role] = _as_key(values, name)
            elif role == "time":
                chunk[role] = seconds(columns, name, self.ticks)
            elif role == "size":
                chunk[role] = expect_finite(name, numbers(columns, name, 0, 2**62)).astype(np.int64)
            else:
                chunk[role] = values
        return chunk


def map_columns(
    path: str, names: Sequence[str], kinds: Mapping[str, str], first: Mapping[str, float], options: Options
) -> Mapped:
    """Choose the columns of a table.

    Parameters
    ----------
    names : sequence of str
        The table's columns.
    kinds : mapping of name to str
        int, uint, float, time, utc or text.
    first : mapping of name to float
        A value of each numeric column, from which the unit of times is guessed.
    """
    roles: dict[str, str] = {}
    refused: set[str] = set()
    for role, wanted in options.columns.items():
        if wanted is None:
            refused.add(role)
        else:
            roles[role] = _named(path, names, wanted)
    for role, common in KNOWN.items():
        if role in roles or role in refused:
            continue
        taken = set(roles.values())
        plain = {plain_name(n): n for n in reversed(names) if n not in taken}
        usable = [plain[c] for c in common if c in plain and (role in ("key", "op") or kinds[plain[c]] != "text")]
        if usable:
            roles[role] = usable[0]
    if "key" not in roles:
        _by_place(path, names, kinds, roles)
    if "key" not in roles:
        raise TraceError(
            f"{path}: which column is the key? The columns are: {', '.join(map(repr, names))}; "
            f'give columns={{"key": {names[0]!r}}}, or header=True if the first line holds names, or format="plain" '
            "when a whole line is the key"
        )
    for role in ("time", "size"):
        if role in roles and kinds[roles[role]] == "text":
            raise TraceError(
                f"{path}: column {roles[role]!r} holds text, expected "
                + ("numbers or ISO dates as time" if role == "time" else "whole numbers as size")
            )
    ordered: dict[str, str] = {role: roles.pop(role) for role in ("key", "time", "size") if role in roles}
    taken = {*ordered.values(), *roles.values()}
    ordered |= roles
    ordered |= {_free(plain_name(n), ordered): n for n in names if n not in taken}
    return Mapped(ordered, _ticks(path, ordered.get("time"), kinds, first, options))


def plain_name(name: str) -> str:
    """Return ``name`` in lower case, words joined by underscores."""
    return re.sub(r"[^0-9a-z]+", "_", name.strip().lower()).strip("_") or "column"


def _by_place(path: str, names: Sequence[str], kinds: Mapping[str, str], roles: dict[str, str]) -> None:
    """A table without column names has time, key and size in this order, when it has them at all."""
    if not all(re.fullmatch(r"column_\d+", n) for n in names):
        return
    rest = [n for n in names if n not in roles.values()]
    numeric = [n for n in rest if kinds[n] != "text"]
    if len(names) == 1:
        roles["key"] = names[0]
    elif len(rest) >= 3 and "time" not in roles and rest[0] in numeric and kinds[rest[2]] == "int":
        roles["time"], roles["key"] = rest[0], rest[1]
        roles.setdefault("size", rest[2])
    elif len(rest) == 2 and "time" not in roles and rest[0] in numeric:
        roles["time"], roles["key"] = rest


def _named(path: str, names: Sequence[str], wanted: str | int) -> str:
    if isinstance(wanted, int) and 0 <= wanted < len(names):
        return names[wanted]
    if wanted in names:
        return str(wanted)
    near = difflib.get_close_matches(str(wanted), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    if not hint and all(re.fullmatch(r"column_\d+", n) for n in names):
        hint = " The file was read as one without names in its first line; if that line holds them, give header=True."
    raise TraceError(f"{path} has no column {wanted!r}.{hint} Its columns are: {', '.join(map(repr, names))}")


def _free(name: str, taken: Mapping[str, str]) -> str:
    base, i = name, 2
    while name in taken or name in ("key", "time", "size", "keys", "times", "sizes"):
        name, i = f"{base}_{i}", i + 1
    return name


def _ticks(path: str, name: str | None, kinds: Mapping[str, str], first: Mapping[str, float], options: Options) -> int:
    given = None if options.time_unit is None else ticks_in(options.time_unit)
    if name is None or kinds[name] in ("time", "utc"):
        return 1
    if given is not None:
        return given
    if found := re.search(r"_(ms|us|ns|milli|micro|nano)[a-z]*$", plain_name(name)):
        return ticks_in({"milli": "ms", "micro": "us", "nano": "ns"}.get(found[1], found[1]))
    return ticks_in(likely_unit(first.get(name, 0.0)))


def _as_key(values: np.ndarray | Text, name: str) -> np.ndarray:
    if isinstance(values, Text):
        if b"" in values.texts and (values.codes == values.texts.index(b"")).any():
            raise BadRecord(f"expected a key (column {name!r}), found nothing")
        return values.hashed()
    if values.dtype.kind == "f":
        raise BadRecord(f"expected integers or text as key (column {name!r}), found {values[:1]}")
    return values
