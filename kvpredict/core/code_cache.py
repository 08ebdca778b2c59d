"""Machine code on disk: what one process compiled, the next one loads.

Numba's own ``cache=True`` watches the file of a function and not the kernels it calls, so an edited kernel goes unseen.
Here a file is named by a digest of everything that its code depends on: all that ``core.identity`` finds, the types of
the arguments, the processor, versions and settings. Nothing is ever out of date; what is no longer asked for is removed
when the folder grows. Code of which the walk cannot tell everything is compiled in each process, as ever.

Files are code: they lie in ``$KVPREDICT_CODE_DIR`` (``off``: nowhere), by default in ``kvpredict/code`` in the user's
cache folder, if that is the user's own and nobody else may write to it. Whatever goes wrong there costs a compilation.
"""

import hashlib
import logging
import os
import pickle
import pkgutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite  # type: ignore[import-untyped]
import numba
import numpy as np
from numba.core import config, sigutils
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from kvpredict.core.identity import Noted, Unknown, identity, type_words

__all__ = ["CodeCache", "NotKept", "code_folder", "kept_only"]

MOST_BYTES = 256 << 20  # that the folder may hold

_IDLE = {"NUMBA_DEFAULT_NUM_THREADS", "NUMBA_NUM_THREADS", "CACHE_DIR"}  # settings without a bearing on code
_NUMBAS = ("_ZN5numba", "_ZN7cpython")  # names of its own functions, and of wrappers
_log = logging.getLogger(__name__)

_SOURCES: list[str] | None  # of what compiles and keeps; read now, because they may be edited while this runs
try:
    _SOURCES = [str(pkgutil.get_data(__package__, name)) for name in ("jit.py", "identity.py", "code_cache.py")]
except OSError:
    _SOURCES = None


_kept_only = ContextVar("kvpredict_kept_only", default=False)


class NotKept(Exception):
    """Machine code that was asked for is not on disk."""


@contextmanager
def kept_only() -> Iterator[None]:
    """Within, a function that is neither compiled yet nor kept is not compiled: calling it raises ``NotKept``."""
    before = _kept_only.set(True)
    try:
        yield
    finally:
        _kept_only.reset(before)


class CodeCache(Noted):
    """What a dispatcher asks before it compiles, and tells when it has compiled, a function that Python calls."""

    def __init__(self, dispatcher: Any) -> None:
        super().__init__(dispatcher.py_func)
        self.options = repr(sorted(dispatcher.targetoptions.items()))

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled function from disk, or None; within ``kept_only`` raise ``NotKept`` instead."""
        loaded = self._load(sig, target_context)
        if loaded is None and _kept_only.get():
            raise NotKept(self.function.__qualname__)
        return loaded

    def _load(self, sig: Any, target_context: Any) -> Any:
        path = self._path(sig, target_context)
        if path is None:
            return None
        try:
            stored = path.read_bytes()
            if hashlib.sha256(stored[32:]).digest() != stored[:32]:
                raise ValueError("damaged")
            target_context.refresh()
            loaded = CompileResult._rebuild(target_context, *pickle.loads(stored[32:]))
            if loaded.signature.args != sigutils.normalize_signature(sig)[0]:
                raise ValueError("its types are others here")
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever is wrong with a file, it can be made again
            _log.debug("%s is not used: %r", path, error)
            return None
        super().save_overload(sig, loaded)
        with suppress(OSError):  # a folder to read from only
            os.utime(path)  # files are removed in the order of their last use
        return loaded

    def save_overload(self, sig: Any, cres: Any) -> None:
        """Write a function just compiled, unless its code is good for this process only."""
        super().save_overload(sig, cres)
        path = self._path(sig, cres.target_context)
        if path is None:
            return
        try:
            self._check_movable(cres)
            *parts, _environments = cres._reduce()
            payload = dumps((*parts, ()))
            _write(path, hashlib.sha256(payload).digest() + payload)
        except Exception as error:  # a full disk, a folder gone, something that cannot be pickled
            _log.debug("%s is not kept: %r", self.function.__qualname__, error)  # which costs no more than time

    def _path(self, sig: Any, target_context: Any) -> Path | None:
        """Return the file for machine code for these types of arguments; None where none may be kept."""
        folder = code_folder()
        # Kernels compiled so far were compiled under the settings of then.
        if folder is None or _SOURCES is None or _surroundings()[-1] != _settings():
            return None
        try:
            words, _ = identity(self.function)
            kinds, result = sigutils.normalize_signature(sig)
            words += [self.options, f"{len(kinds)} arguments"]
            for kind in kinds if result is None else (*kinds, result):
                words += type_words(kind)
        except Exception as error:  # Unknown, or what a strange type raises when it is looked at
            _log.debug("%s is not kept: %r", self.function.__qualname__, error)
            return None
        words += [repr(target_context.codegen().magic_tuple()), *_SOURCES, *_surroundings()]
        return folder / hashlib.sha256("\n".join(words).encode("utf-8", "surrogatepass")).hexdigest()

    def _check_movable(self, cres: Any) -> None:
        """Raise ``Unknown`` if the code is good for this process only, or holds a function that the walk missed."""
        bound = cres.lifted or cres.reload_init or cres.library.has_dynamic_globals or not cres.library.sealed
        if bound or not cres.environment.can_cache():
            raise Unknown("its code is bound to this process")
        for environment in cres._find_referenced_environments():
            if environment.consts and environment is not cres.environment:
                raise Unknown("a function inside needs Python objects")
        _, reached = identity(self.function)
        for name in cres.library.linked:
            name = name.removeprefix("cfunc.").split(".")[0]
            if name.startswith("_ZN") and not name.startswith(_NUMBAS) and name not in reached:
                raise Unknown(f"{name} is inside")


def _write(path: Path, data: bytes) -> None:
    """Write a file that other processes see whole or not at all, then make room."""
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    files = []
    with os.scandir(path.parent) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # another process has just renamed or removed it
                found = entry.stat()
                files.append((found.st_mtime, found.st_size, entry.path))
    files.sort()
    excess = sum(size for _, size, _ in files) - MOST_BYTES
    for _, size, oldest in files:
        if excess <= 0:
            break
        Path(oldest).unlink(missing_ok=True)
        excess -= size


def _settings() -> str:
    return repr(sorted((name, value) for name, value in vars(config).items() if name.isupper() and name not in _IDLE))


@cache
def _surroundings() -> tuple[str, ...]:
    """Return what else decides how Numba translates, as it is when first asked for: versions and settings."""
    return sys.version, numba.__version__, llvmlite.__version__, np.__version__, _settings()


def code_folder() -> Path | None:
    """Return the folder for machine code; None where there is none, or it is not safe."""
    chosen = os.environ.get("KVPREDICT_CODE_DIR")
    if chosen is None:
        if sys.platform == "win32":
            home = os.environ.get("LOCALAPPDATA", "")
        elif sys.platform == "darwin":
            home = os.path.expanduser("~/Library/Caches")
        else:
            home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        return _checked(os.path.join(home, "kvpredict", "code")) if os.path.isabs(home) else None
    return _checked(os.path.abspath(os.path.expanduser(chosen))) if chosen not in ("", "off") else None


@cache
def _checked(folder: str) -> Path | None:
    """Return ``folder``, made if it was missing, if it is the user's own and nobody else can put code into it."""
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        found = os.stat(folder)
    except OSError as error:
        _log.debug("no code is kept: %s", error)
        return None
    if hasattr(os, "geteuid") and (found.st_uid != os.geteuid() or found.st_mode & 0o022):
        _log.debug("no code is kept: %s is not the user's own, or others may write to it", folder)
        return None
    return Path(folder)
