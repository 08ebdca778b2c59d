"""Hints: what a server or its client knows of a request and the trace of blocks does not show.

Every trace, policy and host takes the same few hints, each a float a request (nan where nothing is said):

- ``continues``: probability that the session sends another turn;
- ``finish``: why generation ended, a code of ``FINISH``;
- ``priority``: -1 evict before all others, 0 usual, 1 keep longer than those, and so on;
- ``ttl``: seconds after the request's end from which its blocks go first;
- ``pin_tokens``, ``pin_seconds``: the first so many tokens are evicted last for so long;
- ``template``: number of the prompt template or tool; ``kind``: number of the operation or tenant.

The session's id is a column of the trace itself. ``hints_of`` reads them from a request's free dictionary, such as
vLLM's ``kv_transfer_params``.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kvpredict.cache.arguments import real_number
from kvpredict.core.errors import KvpredictError, unknown_name
from kvpredict.trace.trace import hash_keys

if TYPE_CHECKING:
    from kvpredict.llm.requests import RequestTrace

__all__ = ["FINISH", "HINTS", "degraded", "hints_of", "session_of"]

HINTS = ("continues", "finish", "priority", "ttl", "pin_tokens", "pin_seconds", "template", "kind")
FINISH = ("stop", "length", "tool_calls", "abort")

_RANGES = {"continues": (0.0, 1.0), "ttl": (0.0, np.inf), "pin_tokens": (0.0, np.inf), "pin_seconds": (0.0, np.inf)}


def hints_of(params: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the hints in a request's free dictionary, under the key ``kvpredict`` or at its top level.

    Keys of others are left alone at the top level; under ``kvpredict`` an unknown one is an error, because there it
    can only be a mistake.

    >>> hints_of({"kvpredict": {"continues": 0.9, "finish": "tool_calls"}, "do_remote_decode": False})
    {'continues': 0.9, 'finish': 2.0}
    """
    own, free = _own(params)
    found = {}
    for name, value in (own or free).items():
        if name in HINTS:
            found[name] = _number(name, value)
        elif own and name != "session":
            raise unknown_name("hint", name, [*HINTS, "session"])
    return found


def session_of(params: Mapping[str, Any] | None) -> int | None:
    """Return a number for the session that a request's free dictionary names, a number or a text; None for none.

    >>> session_of({"kvpredict": {"session": 17}}), session_of({"session": "a81"}) == session_of({"session": "a81"})
    (17, True)
    """
    own, free = _own(params)
    session = (own or free).get("session")
    if session is None:
        return None
    number = session if isinstance(session, int) else int(hash_keys([session])[0])
    return number & (2**62 - 1)  # a session below 0 is none


def _own(params: Any) -> tuple[Mapping[str, Any] | None, Mapping[str, Any]]:
    """Return what a free dictionary holds under ``kvpredict``, None for nothing, and the dictionary itself."""
    if not params:
        return None, {}
    if not isinstance(params, Mapping):
        raise KvpredictError(f"a request's free parameters must be a mapping, got {type(params).__name__}")
    own = params.get("kvpredict")
    if own is not None and not isinstance(own, Mapping):
        raise KvpredictError(f"hint 'kvpredict' must be a mapping of hints, got {type(own).__name__}")
    return own, params


def _number(name: str, value: Any) -> float:
    if name == "finish" and isinstance(value, str):
        if value not in FINISH:
            raise unknown_name("finish reason", value, FINISH)
        return float(FINISH.index(value))
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise KvpredictError(f"hint {name!r} must be a number, got {value!r}") from None
    low, high = _RANGES.get(name, (-np.inf, np.inf))
    if not low <= number <= high:
        raise KvpredictError(f"hint {name!r} must be between {low:g} and {high:g}, got {value!r}")
    return number


def degraded(trace: "RequestTrace", accuracy: float, seed: int = 0) -> "RequestTrace":
    """Return the trace with a hint ``continues`` that tells the truth with probability ``accuracy``.

    For planning: what would a predictor of that accuracy be worth here? The truth is whether the session goes on in
    the trace (sessions are inferred from the blocks where the trace names none); with probability 1 - ``accuracy`` the
    hint is its opposite. Its value is the probability that follows, ``accuracy`` or 1 - ``accuracy``.
    """
    if not 0.5 <= real_number("accuracy", accuracy) <= 1.0:
        raise KvpredictError(f"accuracy must be between 0.5 (no information) and 1, got {accuracy}")
    if not hasattr(trace, "continued"):
        raise KvpredictError(f"expected a RequestTrace, got {type(trace).__name__}; read_requests reads one")
    truth = trace.continued
    right = np.random.default_rng(seed).random(len(trace)) < accuracy
    return trace.with_hints(continues=np.where(truth == right, accuracy, 1.0 - accuracy))
