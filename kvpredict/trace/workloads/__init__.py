"""Workloads: seeded generators of traces with a known property, one a file, found by the module's name.

``workload("zipf", alpha=0.8).generate(seed=1)`` makes a trace; ``workload_names()`` lists what there is. Small ones
(zipf, scans, loops, drift, one_hit_wonders, diurnal) show one property each; the scenarios (online_shop,
course_platform, payments) combine them as a system of that kind does.
"""

import importlib
import pkgutil
from dataclasses import fields
from functools import cache
from typing import Any

from kvpredict.core.errors import UnknownName, unknown_name
from kvpredict.trace.workloads._base import Workload

__all__ = ["Workload", "workload", "workload_class", "workload_names"]


@cache
def _shipped() -> tuple[str, ...]:
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")))


def workload_names() -> list[str]:
    """Return the names of all workloads, sorted.

    >>> "online_shop" in workload_names()
    True
    """
    return list(_shipped())


def workload_class(name: str) -> type[Workload]:
    """Return the class of the workload called ``name``; raises ``UnknownName`` with the nearest right name."""
    if name not in _shipped():
        raise unknown_name("workload", name, _shipped())
    module = importlib.import_module(f"{__name__}.{name}")
    for candidate in vars(module).values():
        if isinstance(candidate, type) and issubclass(candidate, Workload) and candidate.__dict__.get("name") == name:
            return candidate
    raise UnknownName(f"module {module.__name__} defines no Workload whose name is {name!r}")


def workload(name: str, **params: Any) -> Workload:
    """Make the workload called ``name`` with parameters ``params``.

    Raises
    ------
    UnknownName
        On an unknown workload or parameter; names the nearest right one.
    WorkloadError
        On a parameter out of range; names it and its range.

    >>> workload("zipf", requests=1000, objects=100).generate(seed=0)
    Trace('zipf', requests=1000, unique=99)
    """
    cls = workload_class(name)
    known = [f.name for f in fields(cls)]
    for given in params:
        if given not in known:
            raise unknown_name(f"parameter of workload {name!r}", given, known)
    return cls(**params)
