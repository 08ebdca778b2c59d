"""Hints: what a server or its client knows of a request and the trace of blocks does not show.

Every trace, policy and host takes the same few hints, each a float a request (nan where nothing is said):

- ``continues``: probability that the session sends another turn;
- ``finish``: why generation ended, a code of ``FINISH``;
- ``priority``: -1 evict before all others, 0 usual, 1 keep longer than those, and so on, from -100 to 100;
  it has no end of its own, so give ``ttl`` with it (see below);
- ``ttl``: seconds after the request's end from which its blocks go first;
- ``pin_tokens``, ``pin_seconds``: the first so many tokens are evicted last for so long;
- ``template``: the prompt template or tool; ``kind``: the operation or tenant; a number, or a text, which is hashed.

Under lru, lfu, gdsf, workload and taillru, prompts of priority 1 that fill the cache keep all others out of it until
their ``ttl`` is over, without one for good; learned, arc, slru and s3fifo take new blocks in all the same.

The session's id is a column of the trace itself. ``hints_of`` reads them from a request's free dictionary, such as
vLLM's ``kv_transfer_params``; ``said`` from a line of a log, whatever its format.
"""

import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kvpredict.core.arguments import real_number
from kvpredict.core.errors import KvpredictError, unknown_name
from kvpredict.trace.trace import hash_texts

if TYPE_CHECKING:
    from kvpredict.llm.requests import RequestTrace

__all__ = ["FINISH", "HINTS", "degraded", "hint_number", "hint_range", "hints_of", "said", "session_of"]

HINTS = ("continues", "finish", "priority", "ttl", "pin_tokens", "pin_seconds", "template", "kind")
FINISH = ("stop", "length", "tool_calls", "abort")

# How the APIs of OpenAI, Anthropic and others and the engines call the same; any other reason tells nothing.
_REASONS = {reason: reason for reason in FINISH} | {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "complete": "stop",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_context_window_exceeded": "length",
    "function_call": "tool_calls",
    "tool_call": "tool_calls",
    "tool_use": "tool_calls",
    "pause_turn": "tool_calls",
    "cancelled": "abort",
    "content_filter": "abort",
    "error": "abort",
    "refusal": "abort",
    "repetition": "abort",
    "safety": "abort",
}
_RANGES = {
    "continues": (0.0, 1.0),
    "finish": (0.0, len(FINISH) - 1.0),
    "priority": (-100.0, 100.0),  # a tenth of what a pin and an end by ttl weigh, see pool.standing
    "ttl": (0.0, np.inf),
    "pin_tokens": (0.0, np.inf),
    "pin_seconds": (0.0, np.inf),
}
_FINITE = float(np.finfo(np.float32).max)  # what the features hold
_NAMED = ("template", "kind")
# The first that is there; a user stands for a session where none is named.
_SESSIONS = ("session", "session_id", "conversation_id")
_USERS = ("user", "user_id", "safety_identifier", "prompt_cache_key")
_REASON_FIELDS = ("finish_reason", "stop_reason")


def hints_of(params: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the hints in a request's free dictionary, under the key ``kvpredict`` or at its top level.

    Keys of others are left alone at the top level; under ``kvpredict`` an unknown one is an error, because there it
    can only be a mistake. A hint that is None, and a reason to finish that is not known, are none.

    >>> hints_of({"kvpredict": {"continues": 0.9, "finish": "tool_calls"}, "do_remote_decode": False})
    {'continues': 0.9, 'finish': 2.0}
    """
    own, free = _own(params)
    found = {}
    for name, value in (own or free).items():
        if name in HINTS:
            number = None if value is None else hint_number(name, value)
            if number is not None:
                found[name] = number
        elif own and name != "session":
            raise unknown_name("hint", name, [*HINTS, "session"])
    return found


def session_of(params: Mapping[str, Any] | None) -> int | None:
    """Return a number for the session that a request's free dictionary names, a number or a text; None for none.

    >>> session_of({"kvpredict": {"session": 17}}), session_of({"session": "a81"}) == session_of({"session": "a81"})
    (17, True)
    """
    own, free = _own(params)
    return _session_number((own or free).get("session"))


def said(*records: Mapping[str, Any]) -> tuple[int | None, dict[str, float]]:
    """Return the session and the hints that a line of a log tells of its request.

    Parameters
    ----------
    records : mappings
        The line, and objects within it that may tell more; of what several tell, the first holds.

    Each may have hints by their names, in ``hints``, or in ``kv_transfer_params`` as vLLM takes them; ``finish_reason``
    or ``stop_reason``; and ``session``, ``session_id`` or ``conversation_id``, else ``user``, ``user_id``,
    ``safety_identifier`` or ``prompt_cache_key``, these also in ``metadata``.

    >>> said({"session_id": 17, "ttl": 60, "hints": {"continues": 0.9}, "finish_reason": "end_turn"})
    (17, {'ttl': 60.0, 'continues': 0.9, 'finish': 0.0})
    """
    hints: dict[str, float] = {}
    named: list[Any] = []
    users: list[Any] = []
    for record in records:
        given, params = record.get("hints"), record.get("kv_transfer_params")
        if given is not None and not isinstance(given, Mapping):
            raise KvpredictError(f"hints must be an object of hints, got {given!r:.60}")
        for free in (record, params, {"kvpredict": given}):
            hints = hints_of(free) | hints
        if "finish" not in hints:
            reason = next((_reason(record[name]) for name in _REASON_FIELDS if record.get(name) is not None), None)
            hints |= {} if reason is None else {"finish": reason}
        metadata = record.get("metadata")
        for place in (record, metadata if isinstance(metadata, Mapping) else {}):
            named += [place.get(name) for name in _SESSIONS]
            users += [place.get(name) for name in _USERS]
        named += [session_of(params), session_of(given)]
    return next((number for name in [*named, *users] if (number := _session_number(name)) is not None), None), hints


def hint_number(name: str, value: Any) -> float | None:
    """Return the value of a hint as a float; None for a reason to finish that is not known; raises for a mistake."""
    if name == "finish" and isinstance(value, str):
        return _reason(value)
    if name in _NAMED and isinstance(value, str):
        return float(_hashed(value) & (2**24 - 1))  # the features are of single precision
    try:
        number = float(value) if isinstance(value, int | float | str | np.number) else np.nan
    except (ValueError, OverflowError):
        number = np.nan
    if np.isnan(number):
        raise KvpredictError(f"hint {name!r} must be a number, got {value!r:.60}")
    low, high = hint_range(name)
    if not low <= number <= high:
        raise KvpredictError(f"hint {name!r} must be between {low:g} and {high:g}, got {value!r:.60}")
    return number


def hint_range(name: str) -> tuple[float, float]:
    """Return the least and the greatest value that a hint may have."""
    return _RANGES.get(name, (-_FINITE, _FINITE))


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


def _session_number(session: Any) -> int | None:
    """Return a number of 62 bits, because one below 0 is none; the same for the same text anywhere. -1 names none."""
    if session in (None, "", -1):
        return None
    if isinstance(session, str):
        return _hashed(session) & (2**62 - 1)
    if isinstance(session, float) and session.is_integer():
        session = int(session)
    try:
        if isinstance(session, bool):
            raise TypeError
        return operator.index(session) & (2**62 - 1)
    except TypeError:
        raise KvpredictError(f"a session must be a whole number or a text, got {session!r:.60}") from None


def _hashed(text: str) -> int:
    return int(hash_texts([text.encode("utf-8", "replace")])[0])


def _reason(value: Any) -> float | None:
    known = _REASONS.get(value.lower()) if isinstance(value, str) else None
    return None if known is None else float(FINISH.index(known))


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
