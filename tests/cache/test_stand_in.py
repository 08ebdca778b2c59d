"""Stand-ins: a cache serves by another policy while its own is compiled, loses nothing, and then runs its own."""

import gc
import os
import subprocess
import sys
import threading
import weakref
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from kvpredict import Cache, policy
from kvpredict.cache import load_snapshot, save_snapshot, stand_in
from kvpredict.core.code_cache import kept_only
from kvpredict.core.jit import interpreted, lean_kernel
from kvpredict.core.policy import Kernels, Policy
from kvpredict.policies.fifo import FIFO

pytestmark = pytest.mark.skipif(interpreted(), reason="nothing is compiled")

_number = count(1000 * os.getpid())


@lru_cache
def kernels_of(number: int) -> Kernels:
    """Return kernels that no other number shares, as nothing but their code would make them compile anew."""
    pushed = FIFO.insert

    @lean_kernel
    def insert(s, slot, e):
        if e.size >= 0 or number < 0:
            pushed(s, slot, e)

    return Kernels(FIFO.hit, FIFO.admit, FIFO.evict, insert, FIFO.remove)


@dataclass(frozen=True)
class Numbered(FIFO):
    """FIFO in code of its own for each number, and LRU meanwhile."""

    name = "numbered"
    number: int = 0

    def kernels(self) -> Kernels:
        return kernels_of(self.number)

    def stand_in(self) -> Policy:
        return policy("lru")


class Uncompilable(Numbered):
    name = "uncompilable"

    def kernels(self) -> Kernels:
        @lean_kernel
        def insert(s, slot, e):
            s.nothing[slot] = 1

        return super().kernels()._replace(insert=insert)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVPREDICT_CODE_DIR", str(tmp_path / "code"))
    return tmp_path / "code"


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make the compilation wait until ``set`` is called."""
    go = threading.Event()
    compile_ = stand_in._have_compiled

    def wait(task: Any) -> None:
        assert go.wait(60)
        compile_(task)

    monkeypatch.setattr(stand_in, "_have_compiled", wait)
    yield go
    go.set()
    stand_in._thread.join()


def fresh() -> Numbered:
    return Numbered(number=next(_number))


def test_it_serves_at_once_and_then_by_the_policy_asked_for(held: threading.Event) -> None:
    made = fresh()
    cache = Cache[int, int](100, made)
    assert cache.policy.name == "lru"
    assert not cache.ready(timeout=0)
    for key in range(150):
        cache.put(key, key)
    cache.get(50)
    cache.put(150, 150)
    assert 50 in cache, "LRU decides"
    before = dict(cache.items())
    held.set()
    assert cache.ready(timeout=120)
    assert cache.policy == made
    assert dict(cache.items()) == before
    cache.validate()
    oldest = next(key for key in range(52, 150) if key in cache)
    cache.get(oldest)
    cache.put(151, 151)
    assert oldest not in cache, "FIFO decides"
    assert cache.stats().misses == 0
    assert Cache[int, int](10, made).policy == made


def test_the_next_process_finds_the_code(folder: Path) -> None:
    made = fresh()
    assert Cache[int, int](100, made).ready(timeout=120)
    assert len(list(folder.iterdir())) > 1
    code = (
        "from kvpredict import Cache; from tests.cache.test_stand_in import Numbered\n"
        f"assert Cache(50, Numbered(number={made.number})).policy.name == 'numbered'\n"
        f"assert Cache(50, Numbered(number={made.number}), weigher=len).policy.name == 'numbered', 'to grow by'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_a_growing_cache_waits_for_all_that_it_needs() -> None:
    cache = Cache[int, int](4_000, fresh(), weigher=lambda value: value)
    for key in range(3_000):
        cache.put(key, 1)
    assert cache.policy.name == "lru"
    assert cache.ready(timeout=120)
    assert cache.policy.name == "numbered"
    assert len(cache) == 3_000
    for key in range(3_000, 6_000):
        cache.put(key, 1)
    assert len(cache) == 4_000
    cache.validate()


def test_without_another_process_a_thread_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_in, "HELPER", "raise SystemExit(1)")
    cache = Cache[int, int](100, fresh())
    assert cache.policy.name == "lru"
    assert cache.ready(timeout=120)
    assert cache.policy.name == "numbered"


@pytest.mark.parametrize("cause", ["off", "embedded", "of a script"])
def test_where_no_process_can_help_none_is_started(cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: started.append(args) or start(*args, **kwargs))
    made: Policy = fresh()
    if cause == "off":
        monkeypatch.setenv("KVPREDICT_CODE_DIR", "off")
    elif cause == "embedded":
        monkeypatch.setattr(sys, "executable", "/usr/bin/uwsgi")
    else:

        class Local(Numbered):  # cannot be pickled
            pass

        made = Local(number=next(_number))
    cache = Cache[int, int](100, made)
    assert cache.policy.name == "lru"
    assert cache.ready(timeout=120)
    assert cache.policy == made
    assert not started


def test_trained_within_a_put_it_is_compiled_at_once() -> None:
    cache = Cache[int, int](100, fresh(), train_aside=False)
    assert cache.policy.name == "numbered"
    assert cache.ready(timeout=0)


def test_a_policy_chosen_meanwhile_stays(held: threading.Event) -> None:
    cache = Cache[int, int](100, fresh())
    cache.swap_policy("sieve")
    assert cache.ready(timeout=0)
    held.set()
    stand_in._thread.join()
    assert cache.policy.name == "sieve"


def test_swapped_in_later_it_is_compiled_by_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    made, asked = fresh(), []
    cache = Cache[int, int](100, "lru")
    cache.put(1, 1)
    compile_ = stand_in._have_compiled
    monkeypatch.setattr(stand_in, "_have_compiled", lambda task: asked.append(task) or compile_(task))
    monkeypatch.setattr(stand_in, "_make_all", only_kept_from(stand_in._make_all))
    cache.swap_policy(made)
    assert (cache.policy, cache.get(1), len(asked)) == (made, 1, 1)
    cache.swap_policy("lru")
    cache.swap_policy(made)
    assert (cache.policy, cache.get(1), len(asked)) == (made, 1, 1)


def only_kept_from(make: Any) -> Any:
    """Return ``make`` such that it raises where this process would have to compile."""

    def load(*task: Any) -> None:
        with kept_only():
            make(*task)

    return load


def test_resized_and_cleared_meanwhile(held: threading.Event) -> None:
    cache = Cache[int, int](100, fresh())
    for key in range(100):
        cache.put(key, key)
    cache.resize(40)
    assert len(cache) == 40
    held.set()
    assert cache.ready(timeout=120)
    assert (cache.policy.name, cache.capacity, len(cache)) == ("numbered", 40, 40)
    cache.clear()
    for key in range(100):
        cache.put(key, key)
    assert len(cache) == 40
    cache.validate()


def test_what_cannot_be_compiled_is_logged_and_the_cache_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    cache = Cache[int, int](10, Uncompilable(number=next(_number)))
    assert not cache.ready(timeout=120)
    assert cache.policy.name == "lru"
    assert sum("could not be compiled" in record.message for record in caplog.records) == 1
    for key in range(20):
        cache.put(key, key)
    cache.validate()


def test_waiting_keeps_no_cache_alive(held: threading.Event) -> None:
    cache = Cache[int, int](100, fresh())
    gone = weakref.ref(cache)
    del cache
    gc.collect()
    assert gone() is None
    held.set()
    stand_in._thread.join()


def test_a_snapshot_waits_for_its_policy(tmp_path: Path) -> None:
    made = fresh()
    cache = Cache[int, int](50, made)
    assert cache.ready(timeout=120)
    for key in range(80):
        cache.put(key, key)
    save_snapshot(cache, tmp_path / "snapshot")
    code = (
        "import sys; from kvpredict.cache import Cache, load_snapshot\n"
        "from tests.cache.test_stand_in import Numbered\n"
        f"cache = Cache(50, Numbered(number={made.number}))\n"
        "assert cache.policy.name == 'lru'\n"
        "assert load_snapshot(cache, sys.argv[1]).exact and cache.policy.name == 'numbered'"
    )
    environment = {**os.environ, "KVPREDICT_CODE_DIR": str(tmp_path / "elsewhere")}
    subprocess.run([sys.executable, "-c", code, tmp_path / "snapshot"], check=True, timeout=300, env=environment)
    other = Cache[int, int](50, made)
    assert load_snapshot(other, tmp_path / "snapshot").exact


def test_code_that_is_kept_by_now_starts_no_process(held: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    made = fresh()
    first, second = Cache[int, int](100, made), Cache[int, int](100, made)
    assert first.policy.name == second.policy.name == "lru"
    asked = []
    compile_ = stand_in._have_compiled
    monkeypatch.setattr(stand_in, "_have_compiled", lambda task: asked.append(task) or compile_(task))
    held.set()
    assert first.ready(timeout=120)
    assert second.ready(timeout=120)
    assert first.policy == second.policy == made
    assert len(asked) <= 1


def test_the_other_process_runs_nothing_that_lies_in_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("open('was_here', 'w').close()")
    code = (
        "from kvpredict import Cache; from tests.cache.test_stand_in import Numbered\n"
        f"cache = Cache(50, Numbered(number={fresh().number}))\n"
        "assert cache.policy.name == 'lru' and cache.ready(timeout=120) and cache.policy.name == 'numbered'"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, check=True, timeout=300)
    assert not (tmp_path / "was_here").exists()


FORKS = """
import os, signal, sys, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from kvpredict.cache import Cache
from tests.cache.test_stand_in import Numbered
cache = Cache(50, Numbered(number=int(sys.argv[1])))
for key in range(50):
    cache.put(key, key)
if sys.argv[2:]:
    time.sleep(float(sys.argv[2]))
child = os.fork()
if sys.argv[2:] and child == 0:
    time.sleep(60)  # a worker that lives on
ready = cache.ready(timeout=120) and cache.policy.name == "numbered" and len(cache) == 50
if child == 0:
    os._exit(0 if ready else 1)
assert ready
if sys.argv[2:]:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
else:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_waits_for_itself() -> None:
    subprocess.run([sys.executable, "-c", FORKS, str(fresh().number)], check=True, timeout=300)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("wait", [0.0, 0.002, 0.01])
def test_a_child_forked_while_the_other_process_starts_holds_nobody_up(wait: float) -> None:
    subprocess.run([sys.executable, "-c", FORKS, str(fresh().number), str(wait)], check=True, timeout=50)


SERVES = """
import time
begun = time.perf_counter()
import kvpredict
cache = kvpredict.Cache(200, "guarded")
for key in range(400):
    cache.put(key, key)
served = time.perf_counter() - begun
first = cache.policy.name
assert cache.ready(timeout=500)
assert cache.policy.name == "guarded" and len(cache) == 200
for key in range(20_000):
    if cache.get(key % 300) is None:
        cache.put(key % 300, key)
cache.validate()
print(first, served, time.perf_counter() - begun)
"""


@pytest.mark.slow
def test_guarded_serves_long_before_it_is_compiled() -> None:
    def times() -> tuple[str, float, float]:
        done = subprocess.run([sys.executable, "-c", SERVES], capture_output=True, text=True, check=True, timeout=600)
        first, served, ready = done.stdout.split()
        return first, float(served), float(ready)

    first, served, ready = times()
    assert first == "lru"
    assert served < ready / 4
    first, _, ready = times()
    assert first == "guarded"
    assert ready < 2 * served + 5, "the code is loaded"
