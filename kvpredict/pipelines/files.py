"""Text files that appear whole under their names, or not at all."""

from pathlib import Path

from kvpredict.core.place import atomic_path

__all__ = ["write_text"]


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``."""
    with atomic_path(path) as fresh:
        fresh.write_text(text, "utf-8")
