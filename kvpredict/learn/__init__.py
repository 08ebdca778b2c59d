"""Learners, one a file, found by their module's name, and ``fit``, which trains a policy with one of them."""

import importlib
import pkgutil
from dataclasses import fields
from typing import Any

from kvpredict.core.errors import UnknownName, unknown_name
from kvpredict.learn.evaluate import FitReport
from kvpredict.learn.fit import fit
from kvpredict.learn.learner import Fitted, Learner

__all__ = ["FitReport", "Fitted", "Learner", "fit", "learner", "learner_names"]

_NOT_LEARNERS = {"controller", "dataset", "env", "evaluate", "fit", "lanes", "learner", "online", "origin"}


def learner_names() -> list[str]:
    """Return the names of all learners, sorted."""
    found = (m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    return sorted(name for name in found if name not in _NOT_LEARNERS)


def learner(name: str, **params: Any) -> Learner:
    """Make the learner called ``name`` with hyper-parameters ``params``.

    >>> learner("tree", max_depth=4)
    DecisionTree(max_depth=4, min_leaf=100)
    """
    if name not in learner_names():
        raise unknown_name("learner", name, learner_names())
    module = importlib.import_module(f"{__name__}.{name}")
    for candidate in vars(module).values():
        if isinstance(candidate, type) and issubclass(candidate, Learner) and candidate.__dict__.get("name") == name:
            known = [f.name for f in fields(candidate)]
            for given in params:
                if given not in known:
                    raise unknown_name(f"parameter of learner {name!r}", given, known)
            return candidate(**params)
    raise UnknownName(f"module {module.__name__} defines no Learner whose name is {name!r}")
