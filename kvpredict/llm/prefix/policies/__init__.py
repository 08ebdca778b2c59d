"""Prefix policies, one a file; a policy is found by its module's name.

``prefix_policy("lru")`` makes one, ``prefix_policy_names()`` lists them.
"""

import importlib
import pkgutil
from dataclasses import fields
from functools import cache
from typing import Any

from kvpredict.core.errors import UnknownName, unknown_name
from kvpredict.llm.prefix.policy import PrefixPolicy

__all__ = ["prefix_policy", "prefix_policy_class", "prefix_policy_names"]


@cache
def prefix_policy_names() -> list[str]:
    """Return the names of all prefix policies, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def prefix_policy_class(name: str) -> type[PrefixPolicy]:
    """Return the class of the policy called ``name``; raises ``UnknownName`` with the nearest right name."""
    if name not in prefix_policy_names():
        raise unknown_name("prefix policy", name, prefix_policy_names())
    module = importlib.import_module(f"{__name__}.{name}")
    for candidate in vars(module).values():
        if isinstance(candidate, type) and issubclass(candidate, PrefixPolicy) and vars(candidate).get("name") == name:
            return candidate
    raise UnknownName(f"module {module.__name__} defines no PrefixPolicy whose name is {name!r}")


def prefix_policy(name: str, **params: Any) -> PrefixPolicy:
    """Make the policy called ``name`` with hyper-parameters ``params``.

    >>> prefix_policy("lru")
    LRU()
    """
    cls = prefix_policy_class(name)
    known = [f.name for f in fields(cls)]
    for given in params:
        if given not in known:
            raise unknown_name(f"parameter of prefix policy {name!r}", given, known)
    return cls(**params)
