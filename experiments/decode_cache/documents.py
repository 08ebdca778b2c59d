"""The documents of the experiment, by genre and part: texts that any machine with apt and pip can have.

A document belongs to one part (train, validation, test) by a hash of its name; the six novels are divided by hand, and
licences are in the test part alone, as a genre never trained on. Documents that a machine lacks are named and left out.
"""

import ast
import gzip
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from experiments.smollm2 import cache_folder

__all__ = ["GENRES", "PARTS", "Document", "Sequence", "documents", "sequences"]

PARTS = ("train", "validation", "test")
GENRES = ("help", "novels", "jargon", "code", "api", "licences")
SHARES = (0.6, 0.75)  # of the hash's range: train below the first, validation below the second
LEAST = 6000  # characters of a document
NOVELS = {"PERSUASION": "validation", "NORTHANGER ABBEY": "test", "PRIDE AND PREJUDICE": "test"}  # others: train
PACKAGES = ("numpy", "scipy", "pandas", "torch", "sklearn", "matplotlib")  # whose docstrings make the genre api


class Document(NamedTuple):
    genre: str
    name: str
    part: str
    text: str


class Sequence(NamedTuple):
    """Consecutive tokens of one document."""

    genre: str
    document: str
    offset: int  # in tokens
    tokens: list[int]


def documents(part: str) -> list[Document]:
    """Return the documents of a part; genres that cannot be had are said on stderr."""
    return [d for genre in GENRES for d in _read(genre) if d.part == part]


@cache
def _read(genre: str) -> list[Document]:
    try:
        found = [Document(genre, n, _part(genre, n), text) for n, text in _TEXTS[genre]() if len(text) >= LEAST]
    except (OSError, subprocess.CalledProcessError, ImportError) as error:
        print(f"documents: no {genre} on this machine ({error})", file=sys.stderr)
        return []
    return found


def sequences(tokenizer: Any, part: str, length: int, a_genre: int, a_document: int = 3) -> list[Sequence]:
    """Return at most ``a_genre`` sequences of each genre, at most ``a_document`` of one document, not overlapping.

    Documents are taken in the order of their hash, and from each its first sequence, then its second ones.
    """
    out = []
    held = documents(part)
    for genre in GENRES:
        mine = sorted((d for d in held if d.genre == genre), key=lambda d: _hash(d.name))
        limit = a_document if genre != "novels" else a_genre
        rounds: list[list[Sequence]] = [[] for _ in range(limit)]
        for document in mine[: 2 * a_genre]:
            tokens = tokenizer.encode(document.text[: 5 * length * limit], add_special_tokens=False)
            for r in range(min(limit, len(tokens) // length)):
                rounds[r].append(Sequence(genre, document.name, r * length, tokens[r * length : (r + 1) * length]))
            if len(rounds[0]) >= a_genre:
                break
        out += [sequence for r in rounds for sequence in r][:a_genre]
    return out


def _hash(name: str) -> float:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest()) / 2**32


def _part(genre: str, name: str) -> str:
    if genre == "licences":
        return "test"
    if genre == "novels":
        return NOVELS.get(name, "train")
    at = _hash(name)
    return PARTS[0] if at < SHARES[0] else PARTS[1] if at < SHARES[1] else PARTS[2]


def _help() -> Iterator[tuple[str, str]]:
    from pydoc_data.topics import topics

    yield from sorted(topics.items())


def _package(name: str) -> Path:
    """Return a Debian package's files: unpacked into the cache folder, by apt where they are not there yet."""
    folder = cache_folder() / name
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
            if shutil.which("apt-get") is None:
                raise OSError(f"the package {name} needs apt-get")
            subprocess.run(["apt-get", "download", name], cwd=scratch, check=True, capture_output=True)
            (file,) = Path(scratch).glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", file, Path(scratch) / "files"], check=True, capture_output=True)
            (Path(scratch) / "files").rename(folder)
    return folder


def _novels() -> Iterator[tuple[str, str]]:
    """Six novels, each a character vector of lines in R's serialised form, compressed one after the other."""
    (file,) = _package("r-cran-janeaustenr").rglob("data/Rdata.rdb")
    data, at = file.read_bytes(), 0
    while at < len(data):
        inflate = zlib.decompressobj()
        raw = inflate.decompress(data[at + 4 :])  # four bytes of length before each
        at = len(data) - len(inflate.unused_data)
        place = 14 + 4 + int.from_bytes(raw[14:18]) + 4  # header with the encoding's name, flags of the vector
        lines = []
        for _ in range(int.from_bytes(raw[place : place + 4])):
            size = int.from_bytes(raw[place + 8 : place + 12])  # after the flags of the string
            lines.append(raw[place + 12 : place + 12 + size].decode())
            place += 8 + size
        yield lines[0].upper(), "\n".join(lines)


def _jargon() -> Iterator[tuple[str, str]]:
    """The Jargon File, cut into documents of about 40,000 characters at the borders of paragraphs."""
    (file,) = _package("jargon-text").rglob("jargon.txt.gz")
    text, number = "", 0
    for paragraph in gzip.decompress(file.read_bytes()).decode("utf-8", errors="ignore").split("\n\n"):
        text += paragraph + "\n\n"
        if len(text) > 40_000:
            yield f"jargon {number}", text
            text, number = "", number + 1


def _code() -> Iterator[tuple[str, str]]:
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        yield file.name, file.read_text("utf-8", errors="ignore")


def _api() -> Iterator[tuple[str, str]]:
    """The docstrings of a module's public functions and classes, one document a module."""
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            print(f"documents: api without {package}, which is not installed", file=sys.stderr)
            continue
        root = Path(spec.origin).parent
        for file in sorted([*root.glob("*.py"), *root.glob("*/*.py")]):
            if "tests" in file.parts or file.stat().st_size < 4 * LEAST:
                continue
            parts = []
            for node in ast.walk(ast.parse(file.read_text("utf-8", errors="ignore"))):
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                    said = ast.get_docstring(node)
                    if said and len(said) > 300:
                        parts.append(f"{node.name}\n\n{said}\n")
            yield str(file.relative_to(root.parent)), "\n".join(parts)


def _licences() -> Iterator[tuple[str, str]]:
    for file in sorted(Path("/usr/share/common-licenses").iterdir()):
        if not file.is_symlink():
            yield file.name, file.read_text("utf-8", errors="ignore")


_TEXTS = {"help": _help, "novels": _novels, "jargon": _jargon, "code": _code, "api": _api, "licences": _licences}
