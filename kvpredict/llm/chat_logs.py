"""Logs of chat requests, as the APIs of OpenAI and Anthropic take them: texts to block ids, and what the answer tells.

A line is the request itself, or holds it under ``request``, ``body`` (OpenAI's batches) or ``params`` (Anthropic's),
one within the other where need be; the answer may stand beside it or under ``response``, whole or as its ``body``. What
is looked for is taken from the outermost object that has it.
"""

import json
import logging
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kvpredict.core.errors import TraceError
from kvpredict.llm.blocks import block_hashes, token_ids
from kvpredict.llm.hints import hint_number, said
from kvpredict.llm.request_lines import Parse, Row, object_in, whole
from kvpredict.llm.request_times import RequestTimes

__all__ = ["Tokenize", "chats", "check_tokenize", "holds_messages"]

Tokenize = Callable[[str], Sequence[int]]
Object = Mapping[str, Any]

WRAPPED = ("request", "body", "params")
TIMES = ("timestamp", "time", "created", "created_at")
OUTPUT = ("completion_tokens", "output_tokens")
log = logging.getLogger("kvpredict.trace")


def holds_messages(record: Any) -> bool:
    """Tell whether a line holds a chat request."""
    return isinstance(record, dict) and "messages" in _path(record)[-1]


def check_tokenize(tokenize: Tokenize) -> None:
    """Raise unless ``tokenize`` gives token ids."""
    try:
        found = tokenize("What is a KV cache?") if callable(tokenize) else tokenize
    except Exception as error:  # the caller's, of whatever class
        raise TraceError(f"tokenize fails on a text ({type(error).__name__}: {error})") from error
    try:
        [operator.index(t) for t in found]
    except TypeError:
        raise TraceError(
            f"tokenize must return token ids, as a tokenizer's encode does, it gave {found!r:.60}"
        ) from None


def chats(
    path: str,
    times: RequestTimes,
    tokenize: Tokenize,
    block_size: int,
    continues: Callable[[str], float] | None,
    texts: bool,
) -> Parse:
    """Return a parser of the lines of one file; with ``texts`` rows have the ``text`` of their last message."""
    count = 0
    timed = True

    def parse(line: Object) -> Row:
        nonlocal count, timed
        around = _path(line)
        messages = around[-1].get("messages")
        if not isinstance(messages, list) or not all(isinstance(m, dict) and "role" in m for m in messages):
            raise ValueError(f"messages must be a list of objects with role and content, found {messages!r:.60}")
        answer = _answer(line)
        when = _first([*around, *answer], TIMES)
        if count == 0 and when is None and not any(name in part for part in around for name in TIMES):
            timed = False  # such as a file for the batch API
            log.warning("%s: its first request has no time, so requests are taken a second apart, in their order", path)
        if not timed and when is not None:
            raise ValueError("it has a time, and the first request of the file has none")
        # The roles' marks stand for a chat template: they keep messages apart, and prefixes of turns alike.
        parts = [f"<|{m['role']}|>{_content(m.get('content'))}{_rest(m)}" for m in messages]
        if around[-1].get("system"):  # as Anthropic's API takes it
            parts.insert(0, f"<|system|>{_content(around[-1]['system'])}")
        if around[-1].get("tools"):  # templates put them first
            parts.insert(0, f"<|tools|>{_json(around[-1]['tools'])}")
        tokens = [t for part in parts for t in _tokens(tokenize, part)]
        # Beside messages, ``priority`` is the API's own: an order of scheduling.
        own = {name: value for name, value in around[-1].items() if name != "priority"}
        session, hints = said(*around[:-1], own, *answer)
        last = _clean(_content(messages[-1].get("content"))) if messages else ""
        if continues is not None and messages and "continues" not in hints:
            hints["continues"] = _probability(continues(last))
        row = {
            "time": times.seconds(when) if timed else float(count),
            "blocks": block_hashes(tokens, block_size),
            "prompt_blocks": len(tokens) // block_size,
            "block_size": block_size,
            "input_tokens": len(tokens),
            "output_tokens": _generated([*around, *answer]),
            "session": session,
            "hints": hints,
        }
        count += 1
        return row | ({"text": last} if texts else {})

    return parse


def _path(line: Object) -> list[Object]:
    """Return the objects from the line to the request with ``messages``, or as far as there are any."""
    path = [line]
    while "messages" not in path[-1]:
        inner = next((path[-1][name] for name in WRAPPED if isinstance(path[-1].get(name), dict)), None)
        if inner is None:
            break
        path.append(inner)
    return path


def _answer(line: Object) -> list[Object]:
    """Return what tells of the answer: it, its body, and its first choice."""
    given = line.get("response")  # a text alone tells nothing
    parts: list[Object] = [given] if isinstance(given, dict) else []
    parts += [object_in(part, "body") for part in parts]
    for part in [line, *parts]:
        choices = part.get("choices")
        if choices is not None and not (isinstance(choices, list) and all(isinstance(c, dict) for c in choices)):
            raise ValueError(f"choices: expected a list of objects, found {choices!r:.60}")
        parts += (choices or [])[:1]
    return parts


def _first(parts: Sequence[Object], names: Sequence[str]) -> Any:
    return next((part[name] for part in parts for name in names if part.get(name) is not None), None)


def _generated(parts: Sequence[Object]) -> int:
    usage = next((found for part in parts if (found := object_in(part, "usage"))), {})
    return next((whole(usage, name) for name in OUTPUT if usage.get(name) is not None), 0)


def _tokens(tokenize: Tokenize, text: str) -> list[int]:
    try:
        found = tokenize(_clean(text))
    except Exception as error:  # the caller's, of whatever class
        raise ValueError(f"tokenize fails on a message ({type(error).__name__}: {error})") from error
    return token_ids("what tokenize returns", found)


def _probability(given: Any) -> float:
    number = hint_number("continues", given)
    assert number is not None
    return number


def _clean(text: str) -> str:
    """Return the text without halves of surrogate pairs, which JSON may hold and tokenizers refuse."""
    return text.encode("utf-8", "replace").decode()


def _content(content: Any) -> str:
    """Return the text of a message, whose content may be a list of parts; one that is no text is given as JSON."""
    if isinstance(content, list):
        return "".join(
            str(part["text"]) if isinstance(part, dict) and "text" in part else _json(part) for part in content
        )
    return "" if content is None else str(content)


def _rest(message: Object) -> str:
    """Return what a template shows of a message beside its content, such as the calls of tools."""
    rest = {name: value for name, value in message.items() if name not in ("role", "content") and value}
    return _json(rest) if rest else ""


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
