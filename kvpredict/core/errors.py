"""The errors that kvpredict raises on purpose; every one names the thing at fault and the remedy."""

import difflib
from collections.abc import Iterable

__all__ = ["ArtifactError", "KvpredictError", "MissingExtra", "TraceError", "UnknownName", "unknown_name"]


class KvpredictError(Exception):
    """Base of all errors that kvpredict raises on purpose."""


class TraceError(KvpredictError, ValueError):
    """A trace file or array that cannot be read: names the file, the line or byte, and what was expected."""


class ArtifactError(KvpredictError, ValueError):
    """A saved policy that is damaged, newer than this library, or does not match what it is used for."""


class UnknownName(KvpredictError, ValueError):
    """A name (policy, learner, format, parameter) that does not exist; suggests the nearest one."""


class MissingExtra(KvpredictError, ImportError):
    """A feature that needs packages of an extra that is not installed; names the extra."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> UnknownName:
    """Return (not raise) the error for an unknown ``name``, with the nearest of ``known`` as a suggestion."""
    choices = sorted(known)
    near = difflib.get_close_matches(str(name).lower(), choices, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UnknownName(f"unknown {kind} {name!r}.{hint} Known: {', '.join(choices)}")
