"""What users of the cache came upon: tags, tokens, keys that raise or call back, values that stay alive."""

import contextlib
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from kvpredict.cache import Cache, Cause
from tests.cache.clock import Clock


class Key:
    """Collides with all others; a comparison raises, or calls back, when its turn comes."""

    turns = -1
    then: Callable[[], Any] | None = None

    def __init__(self, number: int) -> None:
        self.number = number

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        Key.turns -= 1
        if Key.turns == -1 and Key.then is not None:
            Key.then()
        return isinstance(other, Key) and self.number == other.number


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    yield
    Key.turns, Key.then = -1, None


def fails() -> None:
    raise ValueError("for the test")


@pytest.mark.parametrize("policy", ["lru", "s3fifo", "guarded"])
def test_tags_of_a_value_that_replaces_one_that_is_over(policy: str) -> None:
    clock = Clock()
    cache: Cache[str, int] = Cache(4, policy, clock=clock)
    assert cache.ready()
    cache.put("page", 1, ttl=1, tags=("course",))
    clock.now += 2
    cache.put("page", 2, tags=("course",))
    assert cache.invalidate_tags("course") == 1
    assert cache.get("page") is None
    cache.validate()


def test_tags_of_a_value_that_is_replaced_are_the_new_ones() -> None:
    cache: Cache[str, int] = Cache(4, "lru", weigher=lambda value: value)
    for size in (1, 1, 2):  # in place, and in a place of its own
        cache.put("page", size, tags=("a", "b"))
        cache.put("page", size, tags=("b", "c"))
        assert {tag: set(keys) for tag, keys in cache._tagged.items()} == {"b": {"page"}, "c": {"page"}}
    assert not cache.put("page", 5, tags=("b",))  # larger than the cache
    assert cache._tagged == {}


@pytest.mark.parametrize("inner", ["clear", "delete"])
def test_a_call_from_within_read_is_carried_out_afterwards(inner: str) -> None:
    for turn in range(4):
        cache: Cache[Key, str] = Cache(10, "lru", key_hash=lambda key: key.number)
        key = Key(1)
        cache.put(key, "a")
        Key.then = lambda cache=cache, key=key: cache.clear() if inner == "clear" else cache.delete(key)
        Key.turns = turn
        cache.read(Key(1))
        Key.turns = -1
        cache.validate()


@pytest.mark.parametrize("turn", range(6))
def test_a_key_that_raises_leaves_no_load_without_a_leader(turn: int) -> None:
    cache: Cache[Key, int] = Cache(10, "lru", key_hash=lambda key: key.number)
    cache.put(Key(2), 1)
    Key.then, Key.turns = fails, turn
    with contextlib.suppress(ValueError):
        cache.get_or_load(Key(5), lambda key: 1)
    Key.turns, Key.then = -1, None
    found: list[int] = []
    thread = threading.Thread(target=lambda cache=cache: found.append(cache.get_or_load(Key(5), lambda key: 2)))
    thread.start()
    thread.join(10)
    assert found in ([1], [2])


@pytest.mark.parametrize("turn", range(4))
def test_what_is_still_there_was_not_told_as_replaced(turn: int) -> None:
    told: list[tuple[str, Cause]] = []
    cache: Cache[Key, str] = Cache(
        10, "lru", key_hash=lambda key: key.number, on_removal=lambda key, value, cause: told.append((value, cause))
    )
    cache.put(Key(4), "v")
    cache.read(Key(4))
    Key.then, Key.turns = fails, turn
    with contextlib.suppress(ValueError):
        cache.put(Key(4), "w")
    Key.turns, Key.then = -1, None
    there = cache.get(Key(4))
    cache.put(Key(9), "x")  # whose aftermath tells
    assert (("v", Cause.REPLACED) in told) == (there == "w")


@pytest.mark.parametrize("way", ["clear", "put_if", "read and put"])
def test_values_are_let_go_of_at_once(way: str) -> None:
    class Value:
        pass

    cache: Cache[int, Any] = Cache(100, "lru")
    alive = []
    for key in range(30):
        value = Value()
        alive.append(weakref.ref(value))
        cache[key] = value
        cache.get(key)
    del value
    for key in range(30):
        if way == "clear":
            cache.clear()
            break
        token = cache.read(key)[1]
        if way == "put_if":
            assert cache.put_if(key, None, token)
        else:
            cache[key] = None
    token = None
    assert sum(ref() is not None for ref in alive) == 0


def test_a_version_that_is_over_holds_nobody_up() -> None:
    clock = Clock()
    cache: Cache[str, int] = Cache(10, "lru", clock=clock)
    for key in "abcdefgh":
        cache.put(key, 1, ttl=1, version=4)
    clock.now += 2
    for key in "hgfedcba":  # some of which have been swept
        assert cache.put(key, 2, version=2)
        assert cache.get(key) == 2
        assert not cache.put(key, 1, version=1)


def test_tokens_of_two_puts_differ() -> None:
    cache: Cache[str, int] = Cache(10, "lru")
    cache["a"] = 1
    first = cache.read("a")[1]
    cache["a"] = 1
    assert first != cache.read("a")[1]
