"""What the decode pipelines share: the model, and documents divided into parts.

Settings and documents are looked at before the model is loaded, which takes longest.
"""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from kvpredict.core.errors import KvpredictError
from kvpredict.llm.decode.fingerprint import model_identity
from kvpredict.llm.decode.record import check_recording
from kvpredict.llm.decode.text import Document, cut, read_documents
from kvpredict.llm.layers import check_positions
from kvpredict.llm.models import load_model
from kvpredict.pipelines.config import Config, ConfigError, Decode

__all__ = ["Data", "load", "load_data", "parted"]


class Data(NamedTuple):
    """A model and token sequences of different documents."""

    model: Any
    train: list[list[int]]
    validation: list[list[int]]
    facts: dict[str, Any]


def load_data(config: Config, start: Path) -> Data:
    """Return the model of ``pipeline.model`` and the sequences of ``pipeline.text``.

    Documents from the share ``pipeline.later`` on, by name, are left to ``decode_evaluate``. One before it is for
    validation by a hash of its file's name, so that it stays there when others are added.
    """
    settings = config.pipeline
    check_recording(settings.horizon, settings.interval, settings.label, settings.rank, settings.delay)
    if settings.length < settings.horizon + settings.interval:
        raise ConfigError(
            f"pipeline.length={settings.length} is below pipeline.interval + pipeline.horizon = "
            f"{settings.interval + settings.horizon}: no token of such a sequence gets a label"
        )
    documents, later = parted(settings, start)
    if not documents:
        raise KvpredictError(
            f"pipeline.later={settings.later} leaves none of the documents in pipeline.text ({len(later)} found) to "
            "train on: give more, or raise it (pipeline.later=1 takes all)"
        )
    share = getattr(settings, "validation", 0.0)
    apart = [d for d in documents if _hash(d) < share]
    rest = [d for d in documents if _hash(d) >= share]
    if not rest or (share and not apart):
        use, remedy = ("validate", "raise it, or leave validation out with 0") if rest else ("train", "lower it")
        raise KvpredictError(
            f"pipeline.validation={share} leaves none of {len(documents)} documents to {use} on: give more, or {remedy}"
        )
    model, tokenizer = load(settings, start)
    check_positions(model, settings.length, f"pipeline.length={settings.length}")

    def sequences(some: list[Document], count: int, what: str = "documents") -> list[list[int]]:
        # One of each document before a second of any.
        ids, _ = cut(sorted(some, key=_hash), tokenizer, settings.length, count, each=settings.each, what=what)
        return [row.tolist() for row in ids]

    train = sequences(rest, settings.sequences)
    validation = sequences(apart, settings.validated, "validation documents") if apart else []
    identity = model_identity(model)
    facts = {
        "name": Path(settings.model).name,
        "fingerprint": identity["digest"],
        "model": identity,
        "documents": len(documents),
        "documents_left_for_evaluation": len(later),
        "sequences": len(train),
        **({"validation_sequences": len(validation)} if share else {}),
        "tokens": sum(map(len, train)),
    }
    return Data(model, train, validation, facts)


def parted(settings: Decode, start: Path) -> tuple[list[Document], list[Document]]:
    """Return the documents of ``pipeline.text`` before the share ``pipeline.later``, and those from it on, by name."""
    known = read_documents([(start / Path(path).expanduser()).resolve() for path in settings.text])
    at = round(settings.later * len(known))
    return known[:at], known[at:]


def load(settings: Decode, start: Path) -> tuple[Any, Any]:
    """Return the model of ``pipeline.model`` and its tokenizer."""
    if settings.model is None:
        raise ConfigError("pipeline.model is not given: the folder of a causal language model, or its name on the hub")
    local = (start / Path(settings.model).expanduser()).resolve()
    name = str(local) if local.is_dir() else settings.model
    return load_model(name, settings.dtype, settings.device, settings.threads)


def _hash(document: Document) -> float:
    name = Path(document.name).name
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest()) / 2**32
