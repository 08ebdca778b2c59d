"""Decode policies, one a file; a policy is found by its module's name.

``decode_policy("keydiff")`` makes one, ``decode_policy_names()`` lists them.
"""

import importlib
import pkgutil
from dataclasses import fields
from functools import cache
from typing import Any

from kvpredict.core.errors import UnknownName, unknown_name
from kvpredict.llm.decode.policy import DecodePolicy

__all__ = ["decode_policy", "decode_policy_class", "decode_policy_names"]


@cache
def decode_policy_names() -> list[str]:
    """Return the names of all decode policies, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def decode_policy_class(name: str) -> type[DecodePolicy]:
    """Return the class of the policy called ``name``; raises ``UnknownName`` with the nearest right name."""
    if name not in decode_policy_names():
        raise unknown_name("decode policy", name, decode_policy_names())
    module = importlib.import_module(f"{__name__}.{name}")
    for candidate in vars(module).values():
        if isinstance(candidate, type) and issubclass(candidate, DecodePolicy) and vars(candidate).get("name") == name:
            return candidate
    raise UnknownName(f"module {module.__name__} defines no DecodePolicy whose name is {name!r}")


def decode_policy(name: str, **params: Any) -> DecodePolicy:
    """Make the policy called ``name`` with hyper-parameters ``params``.

    >>> decode_policy("keydiff")
    KeyDiff()
    """
    cls = decode_policy_class(name)
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    for given in params:
        if given not in known:
            raise unknown_name(f"parameter of decode policy {name!r}", given, known)
    return cls(**params)
