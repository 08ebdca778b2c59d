"""cached: a function or coroutine function whose results are kept in a cache.

Calls with the same key share one execution while it runs, and its result afterwards. One switch, ``set_caching`` or
the environment variable KVPREDICT_CACHE=off, makes every decorated function call through, for tests.
"""

import functools
import inspect
import os
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar, cast

from kvpredict.cache.arguments import is_coroutine_function
from kvpredict.cache.cache import Cache
from kvpredict.core.errors import KvpredictError

__all__ = ["CacheInfo", "cached", "caching_off", "set_caching"]

F = TypeVar("F", bound=Callable[..., Any])

_SEPARATOR = object()  # between positional and keyword arguments in a key
_on = [os.environ.get("KVPREDICT_CACHE", "on").lower() not in ("off", "0", "false", "no")]


class CacheInfo(NamedTuple):
    """Counts of the whole cache behind a function, under the names that ``functools`` uses."""

    hits: int
    misses: int
    maxsize: int
    currsize: int


def set_caching(on: bool) -> None:
    """Turn all decorated functions' caching on or off; off, they are called each time and nothing is kept."""
    _on[0] = bool(on)


@contextmanager
def caching_off() -> Iterator[None]:
    """Turn caching by decorators off within a ``with`` block, in all threads."""
    before = _on[0]
    set_caching(False)
    try:
        yield
    finally:
        set_caching(before)


def cached(
    cache: Cache[Any, Any] | int,
    key: Callable[..., Hashable] | None = None,
    *,
    ttl: float | None = None,
    tags: tuple[str, ...] | Callable[..., tuple[str, ...]] = (),
) -> Callable[[F], F]:
    """Return a decorator that keeps a function's results in ``cache``.

    Parameters
    ----------
    cache : Cache or int
        A cache, which functions may share, or the capacity of a new one.
    key : callable, optional
        ``key(*args, **kwargs)`` makes the key. Default: the function's name and its arguments, which must be hashable;
        ``f(1)`` and ``f(x=1)`` are then two keys, as with ``functools.lru_cache``.
    ttl : float, optional
        Seconds that a result lives. Default: what the cache says.
    tags : tuple of str, or callable
        Tags of every result, or ``tags(*args, **kwargs)``.

    Returns
    -------
    callable
        The decorator. A decorated function has ``cache`` (the cache), ``cache_key(…)`` (the key of a call),
        ``invalidate(…)`` (forget the result of a call; tells whether there was one), ``cache_info()``,
        ``cache_clear()`` and ``__wrapped__``. What it raises is raised, and not kept unless the cache keeps failures.

    >>> @cached(100, key=lambda n: n)
    ... def square(n):
    ...     return n * n
    >>> square(3), square(3), square.cache_info()
    (9, 9, CacheInfo(hits=1, misses=1, maxsize=100, currsize=1))
    """
    if callable(cache):
        raise KvpredictError("cached needs a cache or a capacity: write @cached(1000), not @cached")
    if not isinstance(cache, Cache) and not hasattr(cache, "__index__"):
        raise KvpredictError(f"cached takes a Cache, or the capacity of a new one, got {type(cache).__name__}")
    store: Cache[Any, Any] = cache if isinstance(cache, Cache) else Cache(cache)
    if key is not None and not callable(key):
        raise KvpredictError(f"key must be callable, got {type(key).__name__}")

    def decorate(function: F) -> F:
        _refuse_what_is_no_function(function)
        if key is None and not hasattr(function, "__qualname__"):
            raise KvpredictError(f"{function!r} has no name to tell its results by: give key=…, which makes their keys")
        name = f"{function.__module__}.{getattr(function, '__qualname__', '')}"

        def key_of(*args: Any, **kwargs: Any) -> Hashable:
            if key is not None:
                return key(*args, **kwargs)
            return (name, *args, _SEPARATOR, *sorted(kwargs.items())) if kwargs else (name, *args)

        def tags_of(args: Any, kwargs: Any) -> tuple[str, ...]:
            return tags(*args, **kwargs) if callable(tags) else tags

        if is_coroutine_function(function):

            @functools.wraps(function)
            async def call(*args: Any, **kwargs: Any) -> Any:
                if not _on[0]:
                    return await function(*args, **kwargs)

                async def load(_key: Any) -> Any:
                    return await function(*args, **kwargs)

                return await store.aget_or_load(
                    key_of(*args, **kwargs), load, ttl=ttl, tags=tags_of(args, kwargs) if tags else ()
                )
        else:

            @functools.wraps(function)
            def call(*args: Any, **kwargs: Any) -> Any:
                if not _on[0]:
                    return function(*args, **kwargs)
                return store.get_or_load(
                    key_of(*args, **kwargs),
                    lambda _key: function(*args, **kwargs),
                    ttl=ttl,
                    tags=tags_of(args, kwargs) if tags else (),
                )

        def cache_info() -> CacheInfo:
            stats = store.stats()
            return CacheInfo(stats.hits, stats.misses, stats.capacity, stats.entries)

        made: Any = call
        made.cache = store
        made.cache_key = key_of
        made.invalidate = lambda *args, **kwargs: store.invalidate(key_of(*args, **kwargs))
        made.cache_info = cache_info
        made.cache_clear = store.clear
        return cast("F", made)

    return decorate


def _refuse_what_is_no_function(function: Any) -> None:
    if isinstance(function, classmethod | staticmethod):
        kind = type(function).__name__
        raise KvpredictError(f"put cached below {kind}, next to the function: a {kind} is none itself")
    if not callable(function):
        raise KvpredictError(f"cached decorates functions, got {type(function).__name__}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise KvpredictError(
            f"{getattr(function, '__qualname__', function)} is a generator function: what it returns can be read "
            "once, and not be kept: return a list"
        )
