"""Policies that cannot be made from their name alone.

A module here named after such a policy (``learned.py``) defines ``make() -> Policy``; every other policy is made by
``kvpredict.policies.policy(name)`` with its defaults.
"""

import importlib
import pkgutil

from kvpredict.core.policy import Policy
from kvpredict.policies import policy

__all__ = ["make"]

_OWN = {module.name for module in pkgutil.iter_modules(__path__)}


def make(name: str) -> Policy:
    """Return the policy called ``name`` as the contract suite tests it."""
    if name in _OWN:
        made: Policy = importlib.import_module(f"{__name__}.{name}").make()
        return made
    return policy(name)
