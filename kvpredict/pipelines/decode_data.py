"""What recording and training of decode policies share: the model, and documents divided into parts."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from kvpredict.core.errors import KvpredictError
from kvpredict.llm.decode.fingerprint import model_identity
from kvpredict.llm.decode.text import Document, cut, read_documents
from kvpredict.llm.models import load_model
from kvpredict.pipelines.config import Config

__all__ = ["Data", "load_data"]


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
    if settings.model is None:
        raise KvpredictError("pipeline.model is missing: give the folder or hub name of a Hugging Face causal LM")
    local = (start / Path(settings.model).expanduser()).resolve()
    model, tokenizer = load_model(
        str(local) if local.is_dir() else settings.model, settings.dtype, settings.device, settings.threads
    )
    known = read_documents([(start / Path(path).expanduser()).resolve() for path in settings.text])
    documents = known[: round(settings.later * len(known))]
    share = getattr(settings, "validation", 0.0)
    apart = [d for d in documents if _hash(d) < share]
    rest = [d for d in documents if _hash(d) >= share]

    def sequences(some: list[Document], count: int) -> list[list[int]]:
        # One of each document before a second of any.
        ids, _ = cut(sorted(some, key=_hash), tokenizer, settings.length, count, each=settings.each)
        return [row.tolist() for row in ids]

    train = sequences(rest, settings.sequences)
    validation = sequences(apart, settings.validated) if share and apart else []
    if share and not validation:
        raise KvpredictError(
            f"pipeline.validation={share} leaves none of {len(documents)} documents to validate on: give more documents"
        )
    identity = model_identity(model)
    facts = {
        "name": Path(settings.model).name,
        "fingerprint": identity["digest"],
        "model": identity,
        "documents": len(documents),
        "documents_left_for_evaluation": len(known) - len(documents),
        "sequences": len(train),
        "validation_sequences": len(validation),
        "tokens": sum(map(len, train)),
        "requests": sum(map(len, train)),
    }
    return Data(model, train, validation, facts)


def _hash(document: Document) -> float:
    name = Path(document.name).name
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest()) / 2**32
