"""An acknowledged write is never forgotten: not by a failing source, not by a full line, not by kill -9."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kvpredict.cache import ERASED, Cache, WriteBehind, WriteBehindError
from kvpredict.core.errors import KvpredictError
from tests.cache.test_threads import together, until


class Source:
    """A dict that may be down, slow, or averse to a key; it keeps the batches it took."""

    def __init__(self) -> None:
        self.rows: dict[Any, Any] = {}
        self.batches: list[list[tuple[Any, Any]]] = []
        self.down = False
        self.averse: Any = None
        self.open = threading.Event()
        self.open.set()

    def write(self, writes: Sequence[tuple[Any, Any]]) -> None:
        self.open.wait(30)
        if self.down:
            raise OSError("the source is down")
        if self.averse in dict(writes):
            raise ValueError(f"{self.averse} is not to my taste")
        self.batches.append(list(writes))
        for key, value in writes:
            if value is ERASED:
                self.rows.pop(key, None)
            else:
                self.rows[key] = value


def test_writes_go_in_batches_and_the_last_one_counts() -> None:
    source = Source()
    with WriteBehind(Cache[str, int](10), source.write, interval=0.05) as store:
        for value in range(5):
            store.put("a", value)
        store.put("b", 1)
        assert store.get("a") == 4
        store.flush(10)
        assert source.rows == {"a": 4, "b": 1}
        assert sum(map(len, source.batches)) <= 4
        store.delete("a")
        assert store.get("a", 7) == 7
        with pytest.raises(KeyError):
            store.get_or_load("a", source.rows.__getitem__)
    assert source.rows == {"b": 1}
    assert (store.pending, store.written) == (0, sum(map(len, source.batches)))
    with pytest.raises(WriteBehindError, match="closed"):
        store.put("c", 1)


def test_writes_are_read_even_when_the_cache_forgets_them() -> None:
    source = Source()
    source.open.clear()
    store = WriteBehind(Cache[int, int](2), source.write, interval=0.01)
    for key in range(20):
        store.put(key, key)
    assert [store.get(key) for key in range(20)] == list(range(20))
    assert [store.get_or_load(key, lambda key: -1) for key in range(20)] == list(range(20))
    source.open.set()
    store.close()
    assert source.rows == {key: key for key in range(20)}


def test_what_a_source_refuses_is_tried_again() -> None:
    source = Source()
    source.down = True
    store = WriteBehind(Cache[str, int](10), source.write, interval=0.01, retry=0.01)
    store.put("a", 1)
    until(lambda: store.failures >= 3)
    assert isinstance(store.error, OSError)
    with pytest.raises(WriteBehindError, match=r"1 writes wait .*the source is down"):
        store.flush(0.05)
    assert store.get("a") == 1
    store.put("a", 2)
    source.down = False
    store.flush(20)
    assert source.rows == {"a": 2}
    assert store.error is None
    store.close()


def test_one_write_that_is_never_taken_holds_up_no_other() -> None:
    source = Source()
    source.averse = "bad"
    store = WriteBehind(Cache[str, int](10), source.write, interval=0.01, retry=0.01)
    for key in ("a", "bad", "b", "c"):
        store.put(key, 1)
    until(lambda: source.rows == {"a": 1, "b": 1, "c": 1})
    with pytest.raises(WriteBehindError, match="taste"):
        store.close(0.1)
    source.averse = None
    store.close(20)
    assert source.rows["bad"] == 1


@pytest.mark.parametrize("when_full", ["wait", "fail"])
def test_a_full_line_forgets_nothing(when_full: Any) -> None:
    source = Source()
    source.open.clear()
    store = WriteBehind(
        Cache[int, int](100), source.write, interval=0.01, limit=5, when_full=when_full, patience=0.05, batch=2
    )
    taken, refused = [], []
    for key in range(12):
        try:
            store.put(key, key)
            taken.append(key)
        except WriteBehindError as error:
            refused.append(str(error))
    assert all("was not taken" in message for message in refused)
    assert 5 <= len(taken) < 12
    assert all(store.get(key) is None for key in set(range(12)) - set(taken))
    store.put(taken[-1], -1)  # a key that waits already needs no room
    source.open.set()
    store.close()
    assert source.rows == {**{key: key for key in taken}, taken[-1]: -1}


def test_nothing_is_lost_between_threads_and_failures() -> None:
    source = Source()
    store = WriteBehind(Cache[int, int](20), source.write, interval=0.001, retry=0.001, batch=7, limit=50)
    last: list[dict[int, Any]] = [{} for _ in range(8)]
    failing = threading.Event()

    def break_it() -> None:
        while not failing.is_set():
            source.down = not source.down
            time.sleep(0.003)
        source.down = False

    breaker = threading.Thread(target=break_it)
    breaker.start()

    def work(i: int) -> None:
        rng = random.Random(i)
        for step in range(300):
            key = 100 * i + rng.randrange(10)
            if rng.random() < 0.2:
                store.delete(key)
                last[i].pop(key, None)
            else:
                store.put(key, step)
                last[i][key] = step
            assert store.get(key) == last[i].get(key)

    try:
        together(work)
    finally:
        failing.set()
        breaker.join()
    store.close()
    assert source.rows == {key: value for each in last for key, value in each.items()}


def test_two_threads_writing_one_key_agree_in_the_end() -> None:
    source = Source()
    cache: Cache[int, int] = Cache(10)
    store = WriteBehind(cache, source.write, interval=0.001)
    for _ in range(100):
        together(lambda i: store.put(1, i), threads=3)
        store.flush(20)
        assert cache.get(1, source.rows[1]) == source.rows[1]
    store.close()


# --- journal ---------------------------------------------------------------------------------------------------------

WRITER = """
import sys
from kvpredict.cache import Cache, WriteBehind
def never(writes):
    import time
    time.sleep(1000)
store = WriteBehind(Cache(10, "lru"), never, interval=0.01, journal=sys.argv[1])
n = 0
while True:
    store.put(n % 500, n)
    if n % 7 == 0:
        store.delete((n + 250) % 500)
    print(n, flush=True)
    n += 1
"""


def test_acknowledged_writes_survive_kill_9(tmp_path: Path) -> None:
    journal = tmp_path / "journal.db"
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(journal)], stdout=subprocess.PIPE, text=True, env={**os.environ}
        )
        assert process.stdout is not None
        acknowledged = -1
        while acknowledged < 1200:
            acknowledged = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
        rest = [line for line in process.stdout.read().split("\n") if line.isdigit()]
        acknowledged = max([acknowledged, *map(int, rest)])
        process.stdout.close()
        process.wait()
        expected: dict[int, Any] = {}
        for n in range(acknowledged + 1):
            expected[n % 500] = n
            if n % 7 == 0:
                expected[(n + 250) % 500] = ERASED
        source = Source()
        store = WriteBehind(Cache[int, int](1000), source.write, journal=journal)
        after = (acknowledged + 1) % 500  # may have been noted and not acknowledged any more
        different = {key for key, value in expected.items() if source.rows.get(key, value) != value}
        store.close()
        wanted = {key: value for key, value in expected.items() if value is not ERASED}
        different |= {key for key in expected.keys() | source.rows.keys() if wanted.get(key) != source.rows.get(key)}
        assert different <= {after, (acknowledged + 1 + 250) % 500}
    with sqlite3.connect(journal) as db:
        assert db.execute("SELECT COUNT(*) FROM writes").fetchone() == (0,)


def test_a_journal_belongs_to_one_process(tmp_path: Path) -> None:
    source = Source()
    with WriteBehind(Cache[int, int](10), source.write, journal=tmp_path / "j.db", durable=True) as store:
        store.put(1, 1)
        with pytest.raises(WriteBehindError, match="one process at a time"):
            WriteBehind(Cache[int, int](10), source.write, journal=tmp_path / "j.db")
    with pytest.raises(WriteBehindError, match="cannot be opened"):
        WriteBehind(Cache[int, int](10), source.write, journal=tmp_path / "no" / "j.db")


def test_a_write_that_the_journal_cannot_keep_is_not_acknowledged(tmp_path: Path) -> None:
    source = Source()
    with WriteBehind(Cache[str, Any](10), source.write, journal=tmp_path / "j.db") as store:
        with pytest.raises(KvpredictError, match="cannot be encoded"):
            store.put("a", object())
        assert store.get("a") is None
    assert source.rows == {}


@pytest.mark.parametrize("wrong", [
    {"interval": 0}, {"batch": 0}, {"limit": 0}, {"when_full": "x"}, {"patience": -1}, {"retry": 0},
])  # fmt: skip
def test_wrong_arguments_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(KvpredictError, match=next(iter(wrong))):
        WriteBehind(Cache[int, int](10), print, **wrong)
    with pytest.raises(KvpredictError, match="write_many"):
        WriteBehind(Cache[int, int](10), None)  # type: ignore[arg-type]


def test_a_source_that_is_to_be_awaited_is_refused() -> None:
    async def write(writes: Sequence[tuple[Any, Any]]) -> None:
        rows.update(writes)

    class Writer:
        async def __call__(self, writes: Sequence[tuple[Any, Any]]) -> None:
            rows.update(writes)

    rows: dict[Any, Any] = {}
    for wrong in (write, Writer(), lambda writes: (yield)):
        with pytest.raises(KvpredictError, match="write_many must be a plain function"):
            WriteBehind(Cache[int, int](10), wrong)
    store = WriteBehind(Cache[int, int](10), lambda writes: write(writes), interval=0.01, retry=0.01)
    store.put(1, 1)
    with pytest.raises(WriteBehindError, match=r"1 writes wait .*awaitable"):
        store.flush(0.2)
    assert (rows, store.written) == ({}, 0)
    store._write_many = rows.update
    store.close()
    assert rows == {1: 1}
