"""Safely: run a policy, and on its first error fall back to plain LRU for good.

An engine's scheduler must not die of its cache's policy. The error is logged once with its traceback, counted, and the
adapter's own LRU order, which it keeps all along, decides from then on. Nor must an engine fail to start because its
inside is another than the one that an adapter was written for: it then keeps its own policy.
"""

import hashlib
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable
from typing import Any

from kvpredict.core.errors import KvpredictError, MissingExtra
from kvpredict.llm.hints import hints_of, session_of
from kvpredict.llm.prefix.policy import PrefixPolicy
from kvpredict.llm.prefix.simulate import as_prefix_policy

__all__ = [
    "POLICY",
    "Safely",
    "engine_module",
    "install_into",
    "key_number",
    "lenient_hints",
    "policy_from_environment",
]

POLICY = "KVPREDICT_PREFIX_POLICY"  # a policy's name, or the folder of a saved one
DIGEST = 16  # bytes from which a key is taken to be a hash, whose parts are as good as the whole
log = logging.getLogger("kvpredict.llm")
_told: list[str] = []  # the first mistake in hints


class Safely:
    """Calls functions, of a policy if nothing else is said, until one fails."""

    def __init__(self, adapter: str, failed: str = "the policy failed; plain LRU decides from now on") -> None:
        self.adapter = adapter
        self.failed = failed
        self.failures = 0

    @property
    def works(self) -> bool:
        """Whether the policy still decides."""
        return self.failures == 0

    def __call__(self, function: Callable[..., Any], *arguments: Any, default: Any = None) -> Any:
        """Return ``function(…)``, or ``default`` if it fails or one has failed before.

        It takes no named arguments (``partial`` does), which would make each of the many calls a third slower.
        """
        if self.failures:
            return default
        try:
            return function(*arguments)
        except Exception:
            self.failures += 1
            log.exception("%s: %s", self.adapter, self.failed)
            return default


def key_number(key: Any) -> int:
    """Return a 64-bit number for an engine's key, whatever its type, the same in every process."""
    if isinstance(key, int) and -(2**63) <= key < 2**63:
        return key
    if isinstance(key, bytes) and len(key) >= DIGEST:
        return int.from_bytes(key[:8], "little", signed=True)
    data = key if isinstance(key, bytes | bytearray) else repr(key).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def lenient_hints(params: Any) -> tuple[dict[str, float], int | None]:
    """Return a request's hints and session; a client's mistake in them is logged once and costs only the hints."""
    try:
        return hints_of(params), session_of(params)
    except KvpredictError as error:
        if not _told:
            _told.append(str(error))
            log.warning("hints are left out: %s", error)
        return {}, None


def engine_module(name: str) -> Any:
    """Return a module of an engine; raises ``MissingExtra`` where the engine is not installed, or lacks the module."""
    engine = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtra(
            f"this adapter is for {engine}, whose {name} cannot be imported ({error}): install {engine} beside "
            "kvpredict, in a version that docs/prefix_cache.md names"
        ) from error


def install_into(engine: str, install: Callable[[], None]) -> None:
    """Run ``install``; an ``engine`` that lacks what the adapter needs is left as it is, and that is logged.

    Raises
    ------
    MissingExtra
        Where the engine is not installed at all.
    """
    try:
        install()
    except (AttributeError, MissingExtra):
        if importlib.util.find_spec(engine) is None:
            raise
        log.exception("this version of %s is not one that the adapter knows: %s keeps its own policy", engine, engine)


def policy_from_environment() -> PrefixPolicy:
    """Return the policy that ``$KVPREDICT_PREFIX_POLICY`` names: a folder that ``save`` wrote, or a name; else LRU."""
    return as_prefix_policy(os.environ.get(POLICY, "lru"))
