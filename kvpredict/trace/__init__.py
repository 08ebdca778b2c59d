"""Traces: the columns of a record of accesses, readers for the formats they come in, and generators."""

from kvpredict.trace.read import format_names, read_trace
from kvpredict.trace.trace import Trace, hash_keys

__all__ = ["Trace", "format_names", "hash_keys", "read_trace"]
