"""Text for the decode pipelines: documents from files, and the earlier and the later ones apart.

What is trained on and what is judged are different *documents*: a sequence of one never tells about another part of the
same one. Documents keep the order of their names, so both sides of a split are the same in every pipeline.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kvpredict.core.errors import KvpredictError

__all__ = ["Document", "cut", "on_device", "read_documents"]

SUFFIXES = (".txt", ".md", ".rst", ".py", ".json", ".html")


class Document(NamedTuple):
    """A text and its name."""

    name: str
    text: str


def read_documents(paths: Sequence[str | Path] | None) -> list[Document]:
    """Read documents, sorted by name.

    Parameters
    ----------
    paths : sequence of str or Path, optional
        Files, each a document, or folders, of which every text file is one. Default: Python's own help topics.

    Raises
    ------
    KvpredictError
        If there is no such file, or nothing to read in a folder.
    """
    if not paths:
        from pydoc_data.topics import topics

        return [Document(name, text) for name, text in sorted(topics.items())]
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
            if not inside:
                raise KvpredictError(f"{path} has no text files ({', '.join(SUFFIXES)})")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise KvpredictError(f"{path} does not exist: give text files or folders of them")
    return sorted(Document(str(path), path.read_text("utf-8", errors="replace")) for path in found)


def cut(
    documents: Sequence[Document], tokenizer: Any, length: int, count: int, *, each: int = 2, what: str = "documents"
) -> tuple[np.ndarray, list[str]]:
    """Cut token sequences out of documents.

    Parameters
    ----------
    documents : sequence of Document
    tokenizer : transformers tokenizer
    length, count : int
        Tokens of a sequence, and how many of them.
    each : int, default 2
        The most from one document, so that one long document does not stand for all.
    what : str, default "documents"
        What an error calls them.

    Returns
    -------
    ids : int64 [sequences, length]
    names : list of str
        The document of each.

    Raises
    ------
    KvpredictError
        If no document is long enough; names the longest.
    """
    ids: list[list[int]] = []
    names: list[str] = []
    found: dict[str, int] = {}  # tokens of each, as far as they were read
    for document in documents:
        if len(ids) == count:
            break
        # A token is a character at least; more text than that is not needed.
        known = tokenizer(document.text[: 16 * length * each], add_special_tokens=False)["input_ids"]
        found[document.name] = len(known)
        for start in range(0, min(len(known) - length + 1, each * length), length):
            if len(ids) < count:
                ids.append(known[start : start + length])
                names.append(document.name)
    if not ids:
        longest = sorted(found, key=lambda name: -found[name])[:3]
        told = ", ".join(f"{Path(name).name} has {found[name]}" for name in longest)
        raise KvpredictError(
            f"none of {len(documents)} {what} has {length} tokens ({told}): give longer ones or fewer tokens"
        )
    return np.array(ids, np.int64), names


def on_device(ids: np.ndarray, model: Any) -> Any:
    """Return token ids as a tensor beside the model."""
    import torch

    return torch.tensor(ids, device=model.device)
