"""Eviction policies, one a file; a policy is found by its module's name.

``policy("s3fifo", small_ratio=0.2)`` makes one, ``policy_names()`` lists them. Other distributions add theirs
through the entry-point group ``kvpredict.policies`` (name = ``module:Class``).
"""

import importlib
import pkgutil
from dataclasses import fields
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from kvpredict.core.errors import UnknownName, unknown_name
from kvpredict.core.policy import Policy

__all__ = ["policy", "policy_class", "policy_names"]

ENTRY_POINT_GROUP = "kvpredict.policies"


@cache
def _shipped() -> tuple[str, ...]:
    return tuple(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


@cache
def _contributed() -> dict[str, Any]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}


def policy_names() -> list[str]:
    """Return the names of all policies, shipped and contributed, sorted."""
    return sorted({*_shipped(), *_contributed()})


def policy_class(name: str) -> type[Policy]:
    """Return the class of the policy called ``name``; raises ``UnknownName`` with the nearest right name."""
    if name in _contributed():
        loaded: type[Policy] = _contributed()[name].load()
        return loaded
    if name not in _shipped():
        raise unknown_name("policy", name, policy_names())
    module = importlib.import_module(f"{__name__}.{name}")
    for candidate in vars(module).values():
        if isinstance(candidate, type) and issubclass(candidate, Policy) and candidate.__dict__.get("name") == name:
            return candidate
    raise UnknownName(f"module {module.__name__} defines no Policy whose name is {name!r}")


def policy(name: str, **params: Any) -> Policy:
    """Make the policy called ``name`` with hyper-parameters ``params`` (defaults: the paper's).

    >>> policy("sieve")
    SIEVE()
    """
    cls = policy_class(name)
    known = [f.name for f in fields(cls)]
    for given in params:
        if given not in known:
            raise unknown_name(f"parameter of policy {name!r}", given, known)
    return cls(**params)
