"""Mapping methods: what a dict offers beyond one key at a time, in terms of what a cache does with one key.

Everything that walks over entries walks over a snapshot, which is taken in one step and holds what is fresh then.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from kvpredict.cache.loading import VACANT
from kvpredict.core.errors import KvpredictError

__all__ = ["KeyedMethods", "MappingMethods"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def _pairs(items: Any) -> list[tuple[Any, Any]]:
    try:
        return [(key, value) for key, value in (items.items() if isinstance(items, Mapping) else items)]
    except (TypeError, ValueError) as error:
        raise KvpredictError(f"items must be a mapping or pairs (key, value): {error}") from None


class KeyedMethods(Generic[K, V]):
    """The part of a mapping that follows from ``get`` and ``put``."""

    __slots__ = ()

    get: Any  # these are the cache's
    put: Any

    def __getitem__(self, key: K) -> V:
        value: V = self.get(key, VACANT)
        if value is VACANT:
            raise KeyError(key)
        return value

    def __setitem__(self, key: K, value: V) -> None:
        self.put(key, value)

    def get_many(self, keys: Iterable[K]) -> dict[K, V]:
        """Return the values of those of ``keys`` that are there; each counts as a look-up."""
        found = {}
        for key in keys:
            value = self.get(key, VACANT)
            if value is not VACANT:
                found[key] = value
        return found

    def put_many(self, items: Mapping[K, V] | Iterable[tuple[K, V]], **terms: Any) -> int:
        """Put in all ``items``, each as ``put(key, value, **terms)``; return how many the cache took."""
        return sum(self.put(key, value, **terms) for key, value in _pairs(items))

    def update(self, items: Mapping[K, V] | Iterable[tuple[K, V]]) -> None:
        """Put in all ``items``."""
        self.put_many(items)


class MappingMethods(KeyedMethods[K, V]):
    """The part of a mapping that follows from ``get``, ``put`` and ``items``."""

    __slots__ = ()

    put_if: Any  # these are the cache's
    peek: Any
    read: Any
    items: Any

    def keys(self) -> list[K]:
        """Return the keys as of now, in no particular order."""
        return [key for key, _ in self.items()]

    def values(self) -> list[V]:
        """Return the values as of now, in the order of ``keys``."""
        return [value for _, value in self.items()]

    def __iter__(self) -> Iterator[K]:
        """Iterate over the keys as of now, in no particular order."""
        return iter(self.keys())

    def setdefault(self, key: K, value: V) -> V:
        """Return the value of ``key``; where it is missing, put in ``value`` and return it."""
        held: Any = self.get(key, VACANT)
        while held is VACANT:
            if self.put_if(key, value, None):
                return value
            held = self.peek(key, VACANT)
            if held is VACANT and self.read(key)[1] is None:
                return value  # the cache did not take it in
        return held
