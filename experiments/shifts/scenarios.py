"""Traces whose workload shifts, each with the request at which it does.

Abrupt ones: the popularity of the same keys is dealt anew, one loop follows another, one public trace follows another,
a scan of keys never seen again passes through. Where popularity moves all the time there is no such request, and the
middle of the trace stands for it.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.common import PUBLIC
from kvpredict.trace import Trace, read_trace
from kvpredict.trace.workloads import workload

__all__ = ["PUBLIC_SCENARIOS", "SCENARIOS", "glued", "with_scan"]

HALF = 500_000  # requests on each side of a shift
SCAN = 200_000


def glued(before: Trace, after: Trace, name: str, disjoint: bool = True) -> tuple[Trace, int]:
    """Return one trace after the other, without sizes and times; their keys are different ones if ``disjoint``."""
    first, second = (before.ids, after.ids + before.unique) if disjoint else (before.keys, after.keys)
    return Trace(np.concatenate([first, second]).astype(np.int64), name=name), len(before)


def with_scan(trace: Trace, length: int, name: str) -> tuple[Trace, int]:
    """Return the trace with ``length`` keys that come once in its middle; the shift is where the scan ends."""
    middle = len(trace) // 2
    scan = trace.unique + np.arange(length)
    keys = np.concatenate([trace.ids[:middle], scan, trace.ids[middle:]]).astype(np.int64)
    return Trace(keys, name=name), middle + length


def _generated(name: str, requests: int, seed: int = 0, **params: float) -> Trace:
    return workload(name, requests=requests, **params).generate(seed=seed)


def flip(half: int = HALF) -> tuple[Trace, int]:
    """The same keys, their popularity dealt anew."""
    return glued(_generated("zipf", half, 0), _generated("zipf", half, 1), "flip", disjoint=False)


def loops(half: int = HALF) -> tuple[Trace, int]:
    """A loop over some blocks, then over others, look-ups between."""
    return _generated("loops", 2 * half, loops=2, loop_length=max(10, half // 25)), half


def zipf_scan(half: int = HALF) -> tuple[Trace, int]:
    """A steady working set, and a scan through it."""
    return with_scan(_generated("zipf", 2 * half), round(SCAN * half / HALF), "zipf_scan")


def drift(half: int = HALF) -> tuple[Trace, int]:
    """Objects are born and forgotten, all the time."""
    return _generated("drift", 2 * half), half


def diurnal(half: int = HALF) -> tuple[Trace, int]:
    """What is popular moves with the hour."""
    return _generated("diurnal", 2 * half), half


def course_platform(half: int = HALF) -> tuple[Trace, int]:
    """The working set moves every Monday and comes back weeks later."""
    return _generated("course_platform", 2 * half), half


def _public(folder: Path, name: str, requests: int) -> Trace:
    return read_trace(folder / PUBLIC[name]).head(requests)


SCENARIOS: dict[str, Callable[..., tuple[Trace, int]]] = {
    f.__name__: f for f in (flip, loops, zipf_scan, drift, diurnal, course_platform)
}
# These are made from a folder of public traces.
PUBLIC_SCENARIOS: dict[str, Callable[[Path, int], tuple[Trace, int]]] = {
    "oltp_scarab": lambda at, half: glued(_public(at, "arc_oltp", half), _public(at, "scarab", half), "oltp_scarab"),
    "scarab_oltp": lambda at, half: glued(_public(at, "scarab", half), _public(at, "arc_oltp", half), "scarab_oltp"),
    "orm_p6": lambda at, half: glued(_public(at, "orm_busy", half), _public(at, "arc_p6", half), "orm_p6"),
    "scarab_scan": lambda at, half: with_scan(_public(at, "scarab", 2 * half), SCAN, "scarab_scan"),
}
