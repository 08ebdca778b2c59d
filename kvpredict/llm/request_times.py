"""RequestTimes: the times in a file of requests as seconds, whatever they are written in.

Servers log seconds, milliseconds, microseconds or ISO 8601 texts, and a time that is a thousand times too long makes
every figure of a cache wrong without a word. One file has one unit: that of its first number, told by its magnitude
taken as time since 1970 (below 1e11 seconds, from there milliseconds, from 1e14 microseconds, from 1e17 nanoseconds),
unless the caller names it. A number of another magnitude than the first does not fit. ISO texts need no unit; those
without a time zone are taken as UTC, so that a file reads the same everywhere.
"""

import json
from datetime import UTC, datetime
from typing import Any

from kvpredict.trace.readers._format import likely_unit, ticks_in

__all__ = ["RequestTimes"]


class RequestTimes:
    """Turns one file's times into seconds.

    Parameters
    ----------
    unit : {"s", "ms", "us", "ns"}, optional
        Of numbers; default: told by the first one.

    >>> times = RequestTimes()
    >>> times.seconds(1767225600500), times.seconds("1767225601500"), times.seconds("2026-01-01T00:00:02")
    (1767225600.5, 1767225601.5, 1767225602.0)
    """

    def __init__(self, unit: str | None = None) -> None:
        self.unit = unit
        self._given = unit is not None
        if unit is not None:
            ticks_in(unit)

    def seconds(self, value: Any) -> float:
        """Return a time in seconds; raises ``ValueError`` for what is no time, or of another magnitude than others."""
        number = _number(value)
        if number is None:
            try:
                when = datetime.fromisoformat(value)
            except (TypeError, ValueError):
                raise ValueError(f"expected a time as a number or in ISO 8601 format, found {value!r:.60}") from None
            return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
        likely = likely_unit(number)
        if self.unit is None:
            self.unit = likely
        if likely != self.unit and not self._given:
            raise ValueError(
                f"the time {value!r:.60} looks like one in {likely}, those before it are in {self.unit}: give "
                "time_unit if all are of one unit"
            )
        return number / ticks_in(self.unit)


def _number(value: Any) -> float | None:
    """Return a number as it is, also where it is written as a text; None for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63
    return value if fits else None
