"""Machine code on disk. Two dispatchers of one function in one process stand for two processes where that is enough."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvpredict.core import code_cache
from kvpredict.core.engine import bind
from kvpredict.core.identity import Unknown, identity
from kvpredict.core.jit import interpreted, kernel, lean_kernel
from kvpredict.policies import policy_class, policy_names
from tests.contracts.factories import make

ROOT = Path(__file__).resolve().parents[2]
FACTOR = 2
RATE = 2

if interpreted():
    pytest.skip("nothing is compiled", allow_module_level=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder for code, used by this test alone."""
    monkeypatch.setenv("KVPREDICT_CODE_DIR", str(tmp_path / "code"))
    return tmp_path / "code"


def adder(step: int) -> Any:
    """Return a kernel that another call makes again, with a kernel inside."""

    @lean_kernel
    def stepped(x):
        return x + step

    @kernel
    def add(x):
        return stepped(x) * FACTOR

    return add


@lean_kernel
def rated(x):
    return x * RATE


def rater() -> Any:
    @kernel
    def rate(x):
        return rated(x)

    return rate


def loads(dispatcher: Any) -> int:
    return sum(dispatcher.stats.cache_hits.values())


def test_what_one_compiled_the_next_one_loads(folder: Path) -> None:
    assert adder(1)(1) == 4
    again = adder(1)
    assert again(1) == 4
    assert loads(again) == 1
    assert not again.py_func.__closure__[0].cell_contents.overloads, "a kernel inside was compiled all the same"
    assert len(list(folder.iterdir())) == 1
    assert folder.stat().st_mode & 0o777 == 0o700


def test_what_is_closed_over_is_part_of_the_name(folder: Path) -> None:
    assert [adder(step)(1) for step in (1, 2, 1)] == [4, 6, 4]
    assert len(list(folder.iterdir())) == 2


def test_loaded_code_beside_a_fresh_signature(folder: Path) -> None:
    adder(1)(1)
    again = adder(1)
    assert (again(1), again(0.5), again(2)) == (4, 3.0, 6)
    assert loads(again) == 1
    assert len(again.signatures) == 2


def test_loaded_code_inside_a_fresh_kernel(folder: Path) -> None:
    def outer_of(inner: Any, more: int) -> Any:
        @kernel
        def outer(x):
            return inner(x) + more

        return outer

    assert outer_of(adder(1), 10)(1) == 14
    inner = adder(1)
    outer = outer_of(inner, 20)
    assert outer(1) == 24
    assert (loads(inner), loads(outer)) == (1, 0)
    again = outer_of(adder(1), 20)
    assert (again(1), loads(again)) == (24, 1)


def test_a_constant_changed_while_a_process_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel inside has the old one in it for good, so nothing may be kept as made with the new one."""
    assert rater()(1) == 2
    monkeypatch.setattr(sys.modules[__name__], "RATE", 3)
    rater()(1)
    rater()(1.0)
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:99] + bytes([b[99] ^ 1]) + b[100:]])
def test_a_damaged_file_is_made_again(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    adder(1)(1)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    again = adder(1)
    assert (again(1), loads(again)) == (4, 0)
    third = adder(1)
    assert (third(1), loads(third)) == (4, 1)


def test_a_file_of_something_else_is_made_again(folder: Path) -> None:
    """With the right checksum, as after a change that the name fails to tell."""
    adder(1)(1)
    (file,) = folder.iterdir()
    good = file.read_bytes()
    adder(1)(1.0)
    (other,) = set(folder.iterdir()) - {file}
    other.write_bytes(good)
    again = adder(1)
    assert (again(1.5), loads(again)) == (5.0, 0)


@pytest.mark.parametrize("value", ["off", "", f"{__file__}/code"])
def test_no_folder_is_no_error(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVPREDICT_CODE_DIR", value)
    add = adder(3)
    assert (add(1), adder(3)(1), loads(add)) == (8, 8, 0)


def test_a_folder_that_others_may_write_to_is_refused(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o770)
    assert adder(1)(1) == 4
    assert not list(folder.iterdir())


def test_a_folder_that_cannot_be_written_to_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    adder(1)(1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        patched.setattr(os, "utime", full)
        assert adder(2)(1) == 6
        again = adder(1)
        assert (again(1), loads(again)) == (4, 1)
    assert len(list(folder.iterdir())) == 1, "something unfinished was left"


def test_the_folder_keeps_to_its_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        adder(step)(1)
    first, second = sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime)
    os.utime(second, (1, 1))
    os.utime(first, (2, 2))
    monkeypatch.setattr(code_cache, "MOST_BYTES", 5 * first.stat().st_size // 2)
    adder(3)(1)
    left = set(folder.iterdir())
    assert len(left) == 2
    assert first in left


@pytest.mark.parametrize("name", policy_names())
def test_every_shipped_policy_can_be_kept(name: str) -> None:
    """Its functions reach only what the walk knows; one that does not would be compiled in every process."""
    if policy_class(name).__module__.startswith("kvpredict."):
        for function in bind(make(name)):
            identity(function.py_func)


def test_what_the_walk_does_not_know() -> None:
    class Thing:
        pass

    def plain(x):
        return x

    for unknown in (Thing(), plain, {}, [1], np.array([None]), os):

        @kernel
        def reads(x, unknown=None):
            return x, unknown

        reads.py_func.__defaults__ = (unknown,)
        with pytest.raises(Unknown):
            identity(reads.py_func)


OUTER = """
import json
import numpy as np
from kvpredict import Trace, simulate
from kvpredict.core.jit import kernel
from inner import LIMITS, doubled, shifted
from third import Third

@kernel
def by_constant(x):
    return doubled(x)

@kernel
def by_code(x):
    return shifted(x)

@kernel
def by_array(x):
    return x + LIMITS[0]

def main():
    hits = simulate(Trace.from_keys(np.arange(60) ** 2 % 17), Third(), 5).hits
    functions = by_constant, by_code, by_array
    results = [int(function(5)) for function in functions]
    print(json.dumps([*results, hits, [sum(function.stats.cache_hits.values()) for function in functions]]))

main()
"""
INNER = """
import numpy as np
from kvpredict.core.jit import lean_kernel

FACTOR = 2
LIMITS = np.array([7, 8])

@lean_kernel
def doubled(x):
    return x * FACTOR

@lean_kernel
def shifted(x):
    return x + 10
"""
THIRD = """
from dataclasses import dataclass
from kvpredict.core.jit import lean_kernel
from kvpredict.core.lists import move_to_front
from kvpredict.policies.lru import LRU

@lean_kernel
def touched(s, slot):
    pass

@dataclass(frozen=True)
class Third(LRU):
    name = "third"

    @staticmethod
    @lean_kernel
    def hit(s, slot, e):
        touched(s, slot)
"""


def run(code: str, folder: Path, **more: str) -> Any:
    """Return what ``code`` prints as JSON in another process that can import what lies in ``folder``."""
    kept = {name: value for name, value in os.environ.items() if name != "NUMBA_DISABLE_JIT"}
    own = {"KVPREDICT_CODE_DIR": str(folder / "code"), "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**kept, **own, **more}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_an_edit_anywhere_inside_is_seen(tmp_path: Path) -> None:
    """In kernels, constants and arrays of another module, and in a policy from elsewhere."""
    for name, text in (("inner", INNER), ("third", THIRD), ("outer", OUTER)):
        (tmp_path / f"{name}.py").write_text(text)
    first = run("import outer", tmp_path)
    assert first[:3] == [10, 15, 12]
    assert run("import outer", tmp_path) == [*first[:4], [1, 1, 1]]

    (tmp_path / "inner.py").write_text(INNER.replace("FACTOR = 2", "FACTOR = 3").replace("[7, 8]", "[9, 8]"))
    (tmp_path / "third.py").write_text(THIRD.replace("pass", "move_to_front(s.links, s.links.size // 2 - 1, slot)"))
    second = run("import outer", tmp_path)
    assert second[:3] == [15, 15, 14]
    assert second[3] != first[3]
    assert second[4] == [0, 1, 0], "what was not edited is loaded"
    assert run("import outer", tmp_path, KVPREDICT_CODE_DIR="off")[:4] == second[:4]


FORKS = """
import json, sys
from kvpredict.core.jit import kernel, lean_subroutine

def made(step):
    @lean_subroutine
    def calls(n):
        return step if n < 2 else calls(n - 1) + calls(n - 2)

    @kernel
    def count(n):
        return calls(n)

    return count

print(json.dumps([made(int(step))(12) for step in sys.argv[1:]]))
"""


def test_functions_of_one_name_from_several_processes(tmp_path: Path) -> None:
    """Numba counts up from the same number in each, so they carry one name down to the last letter."""
    (tmp_path / "forks.py").write_text(FORKS)
    code = "import sys; sys.argv[1:] = {!r}.split(); import forks"
    assert [run(code.format(step), tmp_path) for step in "12"] == [[233], [466]]
    assert run(code.format("1 2 3"), tmp_path) == [233, 466, 699]
    assert len(list((tmp_path / "code").iterdir())) == 3


def test_a_file_that_goes_while_room_is_made_is_passed_over(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link to nothing is listed and not found, as a file is that another process has just renamed."""
    folder.mkdir(exist_ok=True)
    (folder / "gone").symlink_to(folder / "nowhere")
    (folder / "old").write_bytes(bytes(100))
    os.utime(folder / "old", (0, 0))
    monkeypatch.setattr(code_cache, "MOST_BYTES", 50)
    with caplog.at_level("DEBUG", logger=code_cache.__name__):
        assert kernel(lambda x: x + 1)(1) == 2
    assert not (folder / "old").exists()
    assert "is not kept" not in caplog.text
