"""The errors that a cache and its parts raise on purpose, beyond a bad argument's KvpredictError."""

from kvpredict.core.errors import KvpredictError

__all__ = [
    "CodecError",
    "LoadTimeout",
    "SnapshotError",
    "TierError",
    "TooManyLoads",
    "UnknownKey",
    "WriteBehindError",
]


class LoadTimeout(KvpredictError, TimeoutError):
    """Waiting for another caller's load, or for leave to load, took longer than the timeout."""


class TooManyLoads(KvpredictError):
    """As many loads as ``Loads(limit=…)`` allows are under way, and ``when_full`` is "fail"."""


class UnknownKey(KvpredictError, LookupError):
    """A key that is not among ``Loads(known=…)``: no loader was called."""


class CodecError(KvpredictError, ValueError):
    """A value that cannot be encoded, or bytes that are damaged, of another codec, or not signed with its secret."""


class TierError(KvpredictError, OSError):
    """A tier that is down, too slow, full or damaged."""


class WriteBehindError(KvpredictError, OSError):
    """Writes that could not be handed to their source: says how many, why, and what to do."""


class SnapshotError(KvpredictError, OSError):
    """A snapshot that cannot be written, or read: names the file and the reason."""
