"""RequestTrace: what prompts an LLM server was asked, as chains of KV blocks; never their text or tokens.

One request has a time, the ids of its prompt's blocks (an id stands for its whole prefix, see ``blocks``), lengths in
tokens, perhaps a session and hints. Blocks lie one request after the other in one array. Where a recorder saw them,
the blocks that generation filled follow those of the prompt.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from kvpredict.core.arguments import real_number, whole_number
from kvpredict.core.errors import TraceError, unknown_name
from kvpredict.llm.hints import HINTS, hint_range
from kvpredict.trace.trace import is_share

__all__ = ["RequestTrace"]


@dataclass(frozen=True, eq=False)
class RequestTrace:
    """Requests in the order of their times.

    Parameters
    ----------
    times : float64 [n]
        Seconds.
    starts : int64 [n + 1]
        Where each request's blocks begin in ``blocks``.
    blocks : int64 [m]
    input_tokens, output_tokens : int64 [n]
    block_size : int
        Tokens a block; the last one of a prompt may hold fewer.
    prompt_blocks : int64 [n], optional
        How many of a request's blocks are the prompt's, the rest are generated. Default: all.
    sessions : int64 [n], optional
        The same number for requests of one session; -1 where it is not known.
    hints : mapping of name to float64 [n]
        Names of ``hints.HINTS``; nan where nothing is said.
    texts : sequence of str, optional
        The last message of each request: of generators, and of chat logs that are read with ``texts=True``.
    """

    times: np.ndarray
    starts: np.ndarray
    blocks: np.ndarray
    input_tokens: np.ndarray
    output_tokens: np.ndarray
    block_size: int
    prompt_blocks: np.ndarray | None = None
    sessions: np.ndarray | None = None
    hints: Mapping[str, np.ndarray] = field(default_factory=dict)
    texts: Sequence[str] | None = None
    name: str = "requests"
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        size = self.block_size
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
            raise TraceError(f"{self.name}: block_size must be a whole number of tokens, got {size!r}")
        for name in ("input_tokens", "output_tokens", "prompt_blocks", "sessions"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _column(name, getattr(self, name), np.int64))
        hints = {name: _column(name, column, np.float64) for name, column in self.hints.items()}
        object.__setattr__(self, "hints", hints)
        n = len(self.times)
        per_request = {"input_tokens": self.input_tokens, "output_tokens": self.output_tokens, **self.hints}
        per_request |= {"prompt_blocks": self.prompt_blocks} if self.prompt_blocks is not None else {}
        per_request |= {"sessions": self.sessions} if self.sessions is not None else {}
        for name, column in per_request.items():
            if len(column) != n:
                raise TraceError(f"{self.name}: {name} has {len(column)} values for {n} requests")
        for name, column in self.hints.items():
            if name not in HINTS:
                raise unknown_name("hint", name, HINTS)
            low, high = hint_range(name)
            for at in np.flatnonzero((column < low) | (column > high))[:1]:
                limits = f"between {low:g} and {high:g}"
                raise TraceError(f"{self.name}: hint {name!r} of request {at} must be {limits}, got {column[at]:g}")
        if len(self.starts) != n + 1 or (n and (np.diff(self.starts) < 0).any()) or self.starts[-1] != len(self.blocks):
            raise TraceError(f"{self.name}: starts must rise from 0 to the number of blocks, one more than requests")
        most = {"prompt_blocks": np.diff(self.starts)}
        for name in ("input_tokens", "output_tokens", "prompt_blocks"):
            column = getattr(self, name)
            if column is not None:
                wrong = np.flatnonzero(
                    (np.asarray(column) < 0) | (np.asarray(column) > most.get(name, np.iinfo(np.int64).max))
                )
                if len(wrong):
                    at = wrong[0]
                    raise TraceError(f"{self.name}: {name} of request {at} cannot be {column[at]}")
        if n and (not np.isfinite(self.times).all() or (np.diff(self.times) < 0).any()):
            raise TraceError(f"{self.name}: times must be finite and not fall; sort the requests by time")

    def __len__(self) -> int:
        return len(self.times)

    def __repr__(self) -> str:
        return f"RequestTrace({self.name!r}, requests={len(self)}, blocks={len(self.blocks)}, unique={self.unique})"

    @staticmethod
    def from_lists(
        times: Iterable[float],
        blocks: Sequence[Sequence[int] | np.ndarray],
        block_size: int,
        input_tokens: Iterable[int] | None = None,
        output_tokens: Iterable[int] | None = None,
        **columns: Any,
    ) -> "RequestTrace":
        """Make a trace from a list of block ids a request; prompts are full blocks unless lengths are given.

        >>> RequestTrace.from_lists([0.0, 1.0], [[1, 2], [1, 3]], block_size=16)
        RequestTrace('requests', requests=2, blocks=4, unique=3)
        """
        block_size = whole_number("block_size", block_size)
        for name in columns:
            if name not in (known := [f.name for f in fields(RequestTrace)]):
                raise unknown_name("column of a RequestTrace", name, known)
        if not isinstance(blocks, Sequence):
            raise TraceError(f"blocks must be a list of block ids a request, got {type(blocks).__name__}")
        flat = [_column("blocks", ids, np.int64) for ids in blocks]
        counts = np.array([len(ids) for ids in flat], np.int64)
        return RequestTrace(
            _column("times", times, np.float64),
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            np.concatenate(flat) if flat else np.zeros(0, np.int64),
            counts * block_size if input_tokens is None else _column("input_tokens", input_tokens, np.int64),
            np.zeros(len(counts), np.int64)
            if output_tokens is None
            else _column("output_tokens", output_tokens, np.int64),
            block_size,
            **columns,
        )

    @cached_property
    def _tree(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``ids`` int32 [m], and for each id its parent (-1 at the root) and depth, int32 [unique]."""
        if len(self.blocks) >= 2**31:
            raise TraceError(f"{self.name}: at most 2**31 - 1 block uses are supported, got {len(self.blocks)}")
        _, first, ids = np.unique(self.blocks, return_index=True, return_inverse=True)
        before = np.empty(len(ids), np.int64)
        before[1:] = ids[:-1]
        before[self.starts[:-1][np.diff(self.starts) > 0]] = -1
        parent = before[first]
        if not (before == parent[ids]).all():
            # Some id stands for a block's own tokens only: number the places in the tree instead.
            number: dict[tuple[int, int], int] = {}
            own = ids.tolist()
            at_start = (before == -1).tolist()
            node, chained = -1, []
            for i, block in enumerate(own):
                node = number.setdefault((-1 if at_start[i] else node, block), len(number))
                chained.append(node)
            ids = np.array(chained, np.int64)
            parent = np.array([key[0] for key in number], np.int64)
            first = np.unique(ids, return_index=True)[1]
        lengths = np.diff(self.starts)
        depth = np.arange(len(ids)) - np.repeat(self.starts[:-1], lengths)
        return ids.astype(np.int32), parent.astype(np.int32), depth[first].astype(np.int32)

    @property
    def ids(self) -> np.ndarray:
        """Return the blocks numbered from 0 without gaps, int32 ``[m]``."""
        return self._tree[0]

    @property
    def parent(self) -> np.ndarray:
        """Return each block's predecessor, int32 ``[unique]``; -1 for a prompt's first."""
        return self._tree[1]

    @property
    def depth(self) -> np.ndarray:
        """Return each block's place in its prompt from 0, int32 ``[unique]``."""
        return self._tree[2]

    @property
    def unique(self) -> int:
        """Return the number of distinct blocks."""
        return len(self.parent)

    @cached_property
    def prompts(self) -> np.ndarray:
        """Return how many of each request's blocks are the prompt's, int64 ``[n]``."""
        return np.diff(self.starts) if self.prompt_blocks is None else np.asarray(self.prompt_blocks, np.int64)

    @cached_property
    def next_use(self) -> np.ndarray:
        """Return the number of the next request that uses the block again, float64 ``[m]``; inf for none."""
        request = np.repeat(np.arange(len(self)), np.diff(self.starts))
        order = np.lexsort((request, self.ids))
        following = np.full(len(order), np.inf)
        same = self.ids[order][1:] == self.ids[order][:-1]
        following[order[:-1][same]] = request[order[1:][same]]
        return following

    @cached_property
    def next_turn(self) -> np.ndarray:
        """Return the seconds until each request's session sends its next one in this trace, float64 ``[n]``; else inf.

        A request that names no session goes on from the one that last used its deepest known block, if that block
        belonged to few (its known prefix is longer than a prompt template's single shared block).
        """
        out = np.full(len(self), np.inf)
        sessions = np.full(len(self), -1) if self.sessions is None else self.sessions
        inferred = bool((sessions < 0).any())
        last = np.full(self.unique if inferred else 0, -1, np.int64)
        latest: dict[int, int] = {}
        for i, session in enumerate(sessions.tolist()):
            before = -1
            if session >= 0:
                before = latest.get(session, -1)
                latest[session] = i
            if inferred:
                chain = self.ids[self.starts[i] : self.starts[i + 1]]
                known = int((last[chain] >= 0).sum()) if session < 0 else 0
                if known > 1:
                    before = int(last[chain[known - 1]])
                last[chain] = i
            if before >= 0:
                out[before] = min(out[before], self.times[i] - self.times[before])
        return out

    @property
    def continued(self) -> np.ndarray:
        """Return whether each request's session sends another one in this trace, bool ``[n]``; see ``next_turn``."""
        return np.isfinite(self.next_turn)

    def head(self, part: float) -> "RequestTrace":
        """Return the first requests: a share (float below 1) or a count."""
        return self.part(0, self.position(part))

    def position(self, at: float) -> int:
        """Return how many requests come before ``at``, a share (float below 1) or a count.

        Raises
        ------
        TraceError
            On 1.0, which could mean all or one, and on what is no such number.
        """
        return round(at * len(self)) if is_share(at) else min(len(self), int(at))

    def part(self, start: int, stop: int) -> "RequestTrace":
        """Return the requests ``start … stop - 1``."""
        start = min(whole_number("start", start, least=0), len(self))
        stop = max(start, min(whole_number("stop", stop, least=0), len(self)))

        def cut(column: np.ndarray | None) -> Any:
            return None if column is None else column[start:stop]

        low, high = self.starts[start], self.starts[stop]
        return replace(
            self,
            times=self.times[start:stop],
            starts=self.starts[start : stop + 1] - low,
            blocks=self.blocks[low:high],
            input_tokens=cut(self.input_tokens),
            output_tokens=cut(self.output_tokens),
            prompt_blocks=cut(self.prompt_blocks),
            sessions=cut(self.sessions),
            hints={name: column[start:stop] for name, column in self.hints.items()},
            texts=cut(self.texts),  # type: ignore[arg-type]
        )

    def capacity(self, fraction: float) -> int:
        """Return ``fraction`` of the distinct blocks, at least 1."""
        return max(1, round(real_number("fraction", fraction, least=0) * self.unique))

    def with_hints(self, **hints: np.ndarray) -> "RequestTrace":
        """Return the trace with these hints added or replaced."""
        return replace(self, hints={**self.hints, **hints})


def _column(name: str, given: Iterable[float], kind: type) -> np.ndarray:
    """Return numbers as an array of a kind; ``TraceError`` for what is no list of such numbers."""
    try:
        values = given if isinstance(given, np.ndarray) else np.array(list(given))
    except (TypeError, ValueError):
        values = np.zeros((0, 0))
    if values.ndim != 1 or (values.size and values.dtype.kind not in ("iufb" if kind is np.float64 else "iu")):
        what = "numbers" if kind is np.float64 else "whole numbers of 64 bits"
        raise TraceError(f"{name} must be a list of {what} for each request, got {given!r:.60}")
    return values.astype(kind, copy=False)
