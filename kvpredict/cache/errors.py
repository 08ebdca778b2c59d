"""The errors that a cache and its parts raise on purpose, beyond a bad argument's KvpredictError."""

from kvpredict.core.errors import KvpredictError

__all__ = ["LoadTimeout", "TooManyLoads", "UnknownKey"]


class LoadTimeout(KvpredictError, TimeoutError):
    """Waiting for another caller's load, or for leave to load, took longer than the timeout."""


class TooManyLoads(KvpredictError):
    """As many loads as ``Loads(limit=…)`` allows are under way, and ``when_full`` is "fail"."""


class UnknownKey(KvpredictError, LookupError):
    """A key that is not among ``Loads(known=…)``: no loader was called."""
