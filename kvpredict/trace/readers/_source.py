"""Source: a file's bytes, decompressed while they are read, handed out as blocks, whole lines or whole records.

Compression is recognised by its magic bytes, whatever the file is called. Nothing but the current block is held, so
memory does not grow with the file. Every fault of the file itself (missing, cut short, damaged) becomes one
``TraceError`` that says where.
"""

import bz2
import itertools
import logging
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kvpredict.core.errors import MissingExtra, TraceError
from kvpredict.trace.readers._format import Head
from kvpredict.trace.readers._progress import Progress

__all__ = ["LONGEST", "Faults", "Lines", "Source", "line_break"]

log = logging.getLogger("kvpredict.trace")

HEAD = 1 << 18  # bytes shown to sniffers
BLOCK = 1 << 23  # bytes parsed at once
READ = 1 << 16  # compressed bytes read at once; small, because some expand a thousandfold
LONGEST = 1 << 25  # bytes of a line

MAGIC = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2"}
SUFFIXES = {".gz", ".gzip", ".xz", ".zst", ".zstd", ".bz2"}


class Lines(NamedTuple):
    """Some whole lines and the number (from 1) of the first."""

    first: int
    data: bytes


class Faults:
    """Raises on the first record that does not fit, or with ``on_error="skip"`` counts them."""

    def __init__(self, path: str, on_error: str) -> None:
        self.path, self.on_error = path, on_error
        self.skipped = 0
        self.first = ""

    def bad(self, where: str, problem: str, count: int = 1) -> None:
        """Note that ``count`` records, the first at ``where``, do not fit."""
        if self.on_error == "raise":
            raise TraceError(f'{self.path}, {where}: {problem} (on_error="skip" leaves out what does not fit)')
        self.first = self.first or f"{where}: {problem}"
        self.skipped += count

    def weigh(self, good: int) -> None:
        """Give up when most of a file does not fit: it is of another format."""
        if self.skipped > max(1000, good):
            raise TraceError(
                f"{self.path}: {self.skipped} records do not fit and {good} do, so this is not the file's format; "
                f"the first is at {self.first}"
            )

    def report(self, good: int) -> None:
        if self.skipped:
            log.warning("%s: skipped %d of %d records; the first is at %s",
                        self.path, self.skipped, self.skipped + good, self.first)  # fmt: skip


class Source:
    """The decompressed bytes of ``path``; ``head`` is their beginning, ``blocks`` all of them, once."""

    def __init__(self, path: str | os.PathLike[str], on_error: str = "raise", progress: bool | None = None) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            raise TraceError(f"expected the path of a trace file, got {type(path).__name__}")
        self.path = os.fsdecode(path)
        self.faults = Faults(self.path, on_error)
        self.info: dict[str, Any] = {}  # what a format notes for the trace
        try:
            self._file = open(self.path, "rb")  # noqa: SIM115
        except IsADirectoryError:
            raise TraceError(f"{self.path} is a folder; give a trace file") from None
        except FileNotFoundError:
            raise TraceError(f"{self.path}: there is no such file (looked from {Path.cwd()})") from None
        except (OSError, ValueError) as error:
            raise TraceError(f"{self.path} cannot be opened: {error}") from None
        try:
            self._size, self._read = os.fstat(self._file.fileno()).st_size, 0
            self._progress = Progress(Path(self.path).name, self._size, progress)
            self._start = self._file.read(READ)
            self.compression = next((kind for magic, kind in MAGIC.items() if self._start.startswith(magic)), None)
            self._pending: list[bytes] = []
            self._stream = self._expand() if self.compression else self._plain()
            data = self._ahead(HEAD)
            if not data:
                raise TraceError(f"{self.path} is empty; a trace was expected")
            name = Path(self.path).name.lower()
            if self.compression and Path(name).suffix in SUFFIXES:
                name = Path(name).stem
            self.head = Head(self.path, name, data[:HEAD], len(data) < HEAD)
            if self.head.is_text and b"\n" not in self.head.data:  # a request with a long prompt, maybe
                self.head = replace(self.head, line=self._ahead(LONGEST, b"\n").partition(b"\n")[0])
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and take the progress bar away."""
        self._file.close()
        if hasattr(self, "_progress"):
            self._progress.close()

    @property
    def stem(self) -> str:
        """The file's name without folder and the suffixes of compression and format."""
        name = Path(self.path).name[: len(self.head.name)]
        return Path(name).stem or name

    @property
    def share(self) -> float:
        """About how much of the file is read, in (0, 1]; 1 when its size is not known."""
        return min(1.0, self._read / self._size) if self._size and self._read else 1.0

    def progress(self, share: float) -> None:
        """Say how much of the file is done, for formats that read it by themselves."""
        self._read = int(share * self._size)
        self._progress.update(self._read)

    def blocks(self) -> Iterator[bytes]:
        """Yield the bytes in blocks of about ``BLOCK``."""
        pending, self._pending = self._pending, []
        parts: list[bytes] = []
        size = 0
        for part in itertools.chain(pending, self._stream):
            parts.append(part)
            size += len(part)
            if size >= BLOCK:
                yield b"".join(parts)
                parts, size = [], 0
        if parts:
            yield b"".join(parts)

    def lines(self, quoted: bool = False) -> Iterator[Lines]:
        """Yield the text in runs of whole lines; with ``quoted`` a line break inside quotes ends none."""
        rest, number = b"", 1
        for i, block in enumerate(self.blocks()):
            data = rest + (block.removeprefix(b"\xef\xbb\xbf") if i == 0 else block)
            cut = line_break(data, len(data), quoted)
            if not cut and len(data) > LONGEST:
                cut = line_break(data, len(data), False)  # a stray quote
            if cut:
                yield Lines(number, data[:cut])
                number += data.count(b"\n", 0, cut)
            elif len(data) > LONGEST:
                raise TraceError(
                    f"{self.path}, line {number}: no end of line within {len(data)} bytes: not a text trace"
                )
            rest = data[cut:]
        if rest:
            yield Lines(number, rest)

    def records(self, dtype: np.dtype[Any]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield binary records in runs, each with the byte offset of its first."""
        rest, offset = b"", 0
        for block in self.blocks():
            data = rest + block if rest else block
            count = len(data) // dtype.itemsize
            if count:
                yield offset, np.frombuffer(data, dtype, count)
            offset += count * dtype.itemsize
            rest = data[count * dtype.itemsize :]
        if rest:
            self.faults.bad(
                f"byte {offset}", f"the last record has {len(rest)} of {dtype.itemsize} bytes; the file is cut short"
            )

    def _ahead(self, limit: int, stop: bytes = b"") -> bytes:
        """Read on to ``limit`` bytes or a block with ``stop`` in it; return all so far, which ``blocks`` yields too."""
        size = sum(map(len, self._pending))
        met = bool(stop) and any(stop in block for block in self._pending)
        while size < limit and not met and (block := next(self._stream, b"")):
            self._pending.append(block)
            size += len(block)
            met = bool(stop) and stop in block
        return b"".join(self._pending)

    def _plain(self) -> Iterator[bytes]:
        yield from self._raw(16 * READ)

    def _raw(self, step: int) -> Iterator[bytes]:
        self._read = len(self._start)
        if self._start:
            yield self._start
        self._start = b""
        while True:
            try:
                data = self._file.read(step)
            except OSError as error:
                raise TraceError(f"{self.path}, byte {self._read}: cannot be read on: {error}") from None
            if not data:
                return
            self._read += len(data)
            self._progress.update(self._read)
            yield data

    def _expand(self) -> Iterator[bytes]:
        make = _decompressor(self.compression)
        engine = make()
        at_start = False  # of a member (a file may hold several, one after the other), and not its first
        for piece in self._raw(READ):
            data = piece
            while data:
                if at_start:
                    data = data.lstrip(b"\0")  # padding
                    if not data:
                        break
                try:
                    out = engine.decompress(data)
                except Exception as error:  # each library has its own classes
                    where = self._read - len(data) if at_start else self._read - len(piece)
                    self.faults.bad(f"near byte {where}", f"damaged {self.compression} data ({error})")
                    return
                if out:
                    yield out
                at_start = engine.eof
                data = b""
                if engine.eof:
                    data = engine.unused_data
                    engine = make()
        if not at_start:
            self.faults.bad(f"byte {self._read}", f"the {self.compression} data is cut short: its end is missing")


def _decompressor(compression: str | None) -> Callable[[], Any]:
    if compression == "gzip":
        return lambda: zlib.decompressobj(31)
    if compression == "xz":
        return lzma.LZMADecompressor
    if compression == "bzip2":
        return bz2.BZ2Decompressor
    try:
        import zstandard
    except ImportError:
        raise MissingExtra('zstd-compressed traces need zstandard: pip install "kvpredict[train]"') from None
    return lambda: zstandard.ZstdDecompressor().decompressobj()


def line_break(data: bytes, end: int, quoted: bool) -> int:
    """Return where the last whole line before ``end`` ends; 0 when there is none."""
    cut = data.rfind(b"\n", 0, end) + 1
    if not quoted or not cut or b'"' not in data:
        return cut
    # An odd number of quotes before a line break means that a quoted field goes on beyond it.
    quotes, place = data.count(b'"', 0, cut), cut
    while place and quotes % 2:
        before = data.rfind(b"\n", 0, place - 1) + 1
        quotes -= data.count(b'"', before, place)
        place = before
    return place
