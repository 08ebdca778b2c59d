"""Columns: gathers the chunks of a file in buffers that grow in place, so that the peak is little over the columns."""

import numpy as np

from kvpredict.trace.readers._format import Chunk, Text, numbers
from kvpredict.trace.trace import hash_texts

__all__ = ["Columns"]

GROWTH = 1.25
MOST_CATEGORIES = 100_000  # a text column with more values is no category: kept as 64-bit hashes


class Columns:
    """The columns so far; ``size`` requests."""

    def __init__(self) -> None:
        self.size = 0
        self._room = 0
        self._buffers: dict[str, np.ndarray] = {}
        self._codes: dict[str, dict[bytes, int]] = {}
        self._hashed: set[str] = set()

    def add(self, chunk: Chunk, share: float = 1.0) -> None:
        """Append ``chunk``, after which about ``share`` of the file is read."""
        count = numbers(chunk, "key").size
        # Room that is never written to is never given by the system, so a guess of the whole costs nothing.
        self._room = int(min((self.size + count) / max(share, 1e-9) * 1.02, 64 * (self.size + count)))
        for name, column in chunk.items():
            values = self._encode(name, column) if isinstance(column, Text) else column
            self._append(name, values)
        self.size += count

    def finish(self, limit: int | None) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
        """Return the columns, cut at ``limit`` requests, and the categories of the text columns; call once."""
        self.size = self.size if limit is None else min(self.size, limit)
        for buffer in self._buffers.values():
            buffer.resize(self.size, refcheck=False)
        categories = {
            name: [text.decode("utf-8", "replace") for text in codes]
            for name, codes in self._codes.items()
            if name not in self._hashed
        }
        return self._buffers, categories

    def _append(self, name: str, values: np.ndarray) -> None:
        buffer = self._buffers.get(name)
        need = self.size + values.size
        if buffer is None:
            buffer = self._buffers[name] = np.empty(max(need, self._room), values.dtype)
        elif not np.can_cast(values.dtype, buffer.dtype, "same_kind"):
            # An integer column turned out to hold fractions or gaps.
            buffer = self._buffers[name] = buffer.astype(np.result_type(values, buffer))
        if buffer.size < need:
            buffer.resize(max(need, self._room, int(buffer.size * GROWTH)), refcheck=False)
        buffer[self.size : need] = values

    def _encode(self, name: str, column: Text) -> np.ndarray:
        if name in self._hashed:
            return column.hashed()
        known = self._codes.setdefault(name, {})
        # Numbered in order of first appearance, so that it does not matter where chunks end.
        first = np.full(len(column.texts), column.codes.size)
        first[column.codes[::-1]] = np.arange(column.codes.size - 1, -1, -1)
        codes = np.zeros(len(column.texts), np.int32)
        for i in np.argsort(first, kind="stable"):
            if first[i] < column.codes.size:
                codes[i] = known.setdefault(column.texts[i], len(known))
        if len(known) <= MOST_CATEGORIES:
            return codes[column.codes]
        self._hashed.add(name)
        if name in self._buffers:
            self._buffers[name] = hash_texts(list(known))[self._buffers[name][: self.size]]
        self._codes[name] = {}
        return column.hashed()
