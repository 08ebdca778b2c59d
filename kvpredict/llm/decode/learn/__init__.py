"""Learners of decode policies, one a file; a learner is found by its module's name.

``decode_learner("ridge")`` makes one, ``decode_learner_names()`` lists them. They train on labels; ``end_to_end`` goes
on from what they find.
"""

import importlib
import pkgutil
from dataclasses import fields
from typing import Any

from kvpredict.core.errors import UnknownName, unknown_name
from kvpredict.llm.decode.learn.learner import ImportanceLearner

__all__ = ["ImportanceLearner", "decode_learner", "decode_learner_names"]

_NOT_LEARNERS = {"learner", "end_to_end"}


def decode_learner_names() -> list[str]:
    """Return the names of all learners, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _NOT_LEARNERS)


def decode_learner(name: str, **params: Any) -> ImportanceLearner:
    """Make the learner called ``name`` with hyper-parameters ``params``.

    >>> decode_learner("ridge", strength=0.1)
    Ridge(strength=0.1)
    """
    if name not in decode_learner_names():
        raise unknown_name("decode learner", name, decode_learner_names())
    module = importlib.import_module(f"{__name__}.{name}")
    for candidate in vars(module).values():
        own = isinstance(candidate, type) and issubclass(candidate, ImportanceLearner)
        if own and vars(candidate).get("name") == name:
            known = [f.name for f in fields(candidate)]
            for given in params:
                if given not in known:
                    raise unknown_name(f"parameter of decode learner {name!r}", given, known)
            return candidate(**params)
    raise UnknownName(f"module {module.__name__} defines no ImportanceLearner whose name is {name!r}")
