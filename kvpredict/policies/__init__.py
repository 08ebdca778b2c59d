"""Eviction policies, one a file; a policy is found by its module's name.

``policy("s3fifo", small_ratio=0.2)`` makes one, ``policy_names()`` lists them. Other distributions add theirs
through the entry-point group ``kvpredict.policies`` (name = ``module:Class``), under names of their own.
"""

import importlib
import logging
import pkgutil
from dataclasses import fields
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from kvpredict.core.errors import KvpredictError, UnknownName, unknown_name
from kvpredict.core.policy import Policy

__all__ = ["contributed_names", "policy", "policy_class", "policy_names"]

log = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "kvpredict.policies"


@cache
def _shipped() -> tuple[str, ...]:
    return tuple(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


@cache
def _contributed() -> dict[str, Any]:
    found = {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
    for name in sorted(found.keys() & set(_shipped())):
        value = found.pop(name).value
        log.warning("the entry point %r gives no policy: %r is one that comes with kvpredict", value, name)
    return found


def policy_names() -> list[str]:
    """Return the names of all policies, shipped and contributed, sorted."""
    return sorted({*_shipped(), *_contributed()})


def contributed_names() -> list[str]:
    """Return the names of the policies that other distributions add, sorted; none of them is imported for it."""
    return sorted(_contributed())


def policy_class(name: str) -> type[Policy]:
    """Return the class of the policy called ``name``.

    Raises
    ------
    UnknownName
        For a name that nobody registered, with the nearest right one.
    KvpredictError
        For a policy of another distribution that cannot be imported, or is no policy of that name.
    """
    if name in _contributed():
        return _load(_contributed()[name])
    if name not in _shipped():
        raise unknown_name("policy", name, policy_names())
    module = importlib.import_module(f"{__name__}.{name}")
    for candidate in vars(module).values():
        if isinstance(candidate, type) and issubclass(candidate, Policy) and candidate.__dict__.get("name") == name:
            return candidate
    raise UnknownName(f"module {module.__name__} defines no Policy whose name is {name!r}")


def _load(entry: Any) -> type[Policy]:
    """Return the class that the entry point ``entry`` names."""
    owner = entry.dist.name if entry.dist else "a package"
    where = f"policy {entry.name!r}: the entry point {entry.value!r} of {owner}"
    try:
        loaded = entry.load()
    except Exception as error:  # whatever the module of somebody else raises
        raise KvpredictError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, Policy)):
        raise KvpredictError(f"{where} is {loaded!r}; expected a class derived from kvpredict.core.policy.Policy")
    if getattr(loaded, "name", None) != entry.name:
        raise KvpredictError(f"{where} has the name {getattr(loaded, 'name', None)!r}; give both the same name")
    return loaded


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
