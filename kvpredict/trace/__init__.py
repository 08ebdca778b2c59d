"""Traces: the columns of a record of accesses, readers for the formats they come in, and generators."""

from kvpredict.trace.trace import Trace, hash_keys

__all__ = ["Trace", "hash_keys"]
