"""Fields: the values of a dataclass's parameters are what their annotations say.

A wrong type is found when the object is made, with the parameter's name, and not inside a kernel later.
"""

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from kvpredict.core.errors import KvpredictError

__all__ = ["check_fields"]


def check_fields(made: Any, what: str) -> None:
    """Raise ``KvpredictError`` unless each field of a dataclass has a value of the type that it is annotated with.

    Whole numbers are numbers, NumPy's too; nan is none. A ``tuple[X, ...]`` may be given as any sequence of X. What is
    annotated with ``Any``, or with what is no class, such as ``Literal``, is not looked at.

    Parameters
    ----------
    made : dataclass
    what : str
        What the error calls it, such as ``policy 'lru'``.
    """
    hints = _hints(made.__class__)
    for f in fields(made):
        given, kind = getattr(made, f.name), hints[f.name]
        if not _is(given, kind):
            raise KvpredictError(f"{what}: {f.name} must be {_in_words(kind)}, got {given!r}")


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def _is(given: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    if _is_union(kind):
        return any(_is(given, one) for one in get_args(kind))
    if _is_row(kind):
        sequence = isinstance(given, tuple | list | np.ndarray)
        return sequence and all(_is(item, get_args(kind)[0]) for item in given)
    if kind in PLAIN:
        return PLAIN[kind][1](given)
    cls = get_origin(kind) or kind
    return not isinstance(cls, type) or isinstance(given, cls)


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (UnionType, Union)


def _is_row(kind: Any) -> bool:
    return get_origin(kind) is tuple and get_args(kind)[1:] == (...,)


def _in_words(kind: Any) -> str:
    if _is_union(kind):
        return " or ".join(_in_words(one) for one in get_args(kind))
    if _is_row(kind):
        return f"a sequence, each of it {_in_words(get_args(kind)[0])}"
    return PLAIN[kind][0] if kind in PLAIN else f"of type {(get_origin(kind) or kind).__name__}"


def _is_bool(given: Any) -> bool:
    return isinstance(given, bool | np.bool_)


def _is_whole(given: Any) -> bool:
    return isinstance(given, int | np.integer) and not isinstance(given, bool)


def _is_number(given: Any) -> bool:
    return _is_whole(given) or (isinstance(given, float | np.floating) and given == given)


PLAIN: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("true or false", _is_bool),
    int: ("a whole number", _is_whole),
    float: ("a number", _is_number),
    str: ("a text", lambda given: isinstance(given, str)),
    type(None): ("None", lambda given: given is None),
}
