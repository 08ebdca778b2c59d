"""Arguments that are numbers, checked: each error names the argument, what it was and what it may be."""

import operator
from typing import Any

import numpy as np

from kvpredict.core.errors import KvpredictError

__all__ = ["real_number", "whole_number"]


def whole_number(name: str, given: Any, least: int | None = 1, most: int | None = None) -> int:
    """Return an argument that must be a whole number, at least ``least`` and at most ``most``."""
    try:
        number = operator.index(given)
    except TypeError:
        number = None
    if number is None or isinstance(given, bool):
        raise KvpredictError(f"{name} must be a whole number, got {given!r}")
    if least is not None and number < least:
        raise KvpredictError(f"{name} must be at least {least}, got {number}")
    if most is not None and number > most:
        raise KvpredictError(f"{name} must be at most {most}, got {number}")
    return number


def real_number(name: str, given: Any, least: float = -float("inf"), most: float = float("inf")) -> float:
    """Return an argument that must be a finite number, at least ``least`` and at most ``most``."""
    fits = isinstance(given, int | float | np.integer | np.floating) and not isinstance(given, bool)
    if not fits or not abs(given) < float("inf"):
        raise KvpredictError(f"{name} must be a finite number, got {given!r}")
    if not least <= given <= most:
        bounds = f"at least {least:g}" if given < least else f"at most {most:g}"
        raise KvpredictError(f"{name} must be {bounds}, got {given!r}")
    return float(given)
