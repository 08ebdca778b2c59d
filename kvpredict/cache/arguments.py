"""Arguments of a cache, checked: each error names the argument, what it was and what it may be."""

import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kvpredict.cache.keys import HIGHEST, LOWEST
from kvpredict.core.errors import KvpredictError
from kvpredict.core.objective import MOST_COST
from kvpredict.core.policy import Policy

__all__ = [
    "extra_columns",
    "finite_cost",
    "hashed_key",
    "is_coroutine_function",
    "plain_function",
    "plain_result",
    "units_of",
    "with_methods",
]


def extra_columns(extra: Mapping[str, float] | None, policy: Policy, key: Any) -> dict[str, float]:
    """Return the extra columns as floats, all that the policy reads among them."""
    try:
        given = {name: float(value) for name, value in dict(extra or {}).items()}
    except (TypeError, ValueError, OverflowError) as error:
        raise KvpredictError(f"extra for key {key!r} must map column names to numbers, got {extra!r}") from error
    for name in policy.extra:
        if name not in given:
            raise KvpredictError(
                f"policy {policy.name!r} reads the column {name!r}, which key {key!r} was put without: "
                f"give extra={{{name!r}: ...}}"
            )
    return given


def units_of(given: Any, what: str, key: Any) -> int:
    """Return the units that an object takes, at least 1."""
    try:
        units = operator.index(given)
    except TypeError:
        units = -1
    if not 0 <= units <= HIGHEST:
        raise KvpredictError(f"{what} for key {key!r} must be a whole number, at least 0, got {given!r}")
    return max(units, 1)


def finite_cost(given: Any, key: Any) -> float:
    """Return the cost of a miss as a float."""
    try:
        cost = float(given)
    except (TypeError, ValueError, OverflowError):
        cost = -1.0
    if not 0.0 <= cost <= MOST_COST:
        raise KvpredictError(f"cost for key {key!r} must be a number from 0 to {MOST_COST:g}, got {given!r}")
    return cost


def hashed_key(key: Any, key_hash: Callable[[Any], int]) -> int:
    """Return what the caller's ``key_hash`` makes of ``key``."""
    hash(key)  # an unhashable key fails here, as it would in a dict, and not half-way through a put
    number = key_hash(key)
    if not isinstance(number, int | np.integer) or not LOWEST <= number <= HIGHEST:
        raise KvpredictError(f"key_hash must return an integer of 64 bits, signed; for key {key!r} it gave {number!r}")
    return int(number)


def is_coroutine_function(given: Any) -> bool:
    """Tell whether calling ``given`` returns a coroutine, also where it is an object with an async ``__call__``."""
    return any(map(inspect.iscoroutinefunction, (given, getattr(type(given), "__call__", None))))  # noqa: B004


def plain_function(name: str, given: Any) -> Any:
    """Return an argument that must do its work when it is called, which coroutine functions and generators do not."""
    if not callable(given):
        raise KvpredictError(f"{name} must be callable, got {type(given).__name__}")
    if is_coroutine_function(given) or inspect.isgeneratorfunction(given) or inspect.isasyncgenfunction(given):
        raise KvpredictError(
            f"{name} must be a plain function: a call of a coroutine function or a generator function does nothing yet"
        )
    return given


def plain_result(result: Any, message: str) -> Any:
    """Return what a plain function returned; raise ``message`` where it is to be awaited."""
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        raise KvpredictError(message)
    return result


def with_methods(name: str, given: Any, what: str, *methods: str) -> Any:
    """Return an argument that must be ``what``, which shows in its methods."""
    missing = [method for method in methods if not callable(getattr(given, method, None))]
    if missing:
        raise KvpredictError(f"{name} must be {what}, got {type(given).__name__}, which has no {missing[0]}")
    return given
