"""Artifact: a trained model at rest, a folder of arrays and JSON that loads without running anything.

``policy.json`` holds schema, settings, metadata and the digest of ``model.npz``; ``model.npz`` holds the scorer's
arrays. Nothing is pickled. A folder is written beside its place and renamed into it, so a reader sees the old policy
or the new one, whole.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kvpredict.core.errors import ArtifactError
from kvpredict.features.schema import Schema
from kvpredict.scorers import KINDS, kind_of, predict_raw

__all__ = ["FORMAT", "Artifact", "as_path", "load_artifact", "write_folder"]

LINKS = ("logit", "identity")
FORMAT = 1  # raise it when older libraries could not read what is written
_JSON, _ARRAYS = "policy.json", "model.npz"


@dataclass(frozen=True, eq=False)
class Artifact:
    """A scorer, the schema of its rows, and where it came from.

    Parameters
    ----------
    scorer : Linear, Trees or MLP
        Arrays; a higher raw score means: worth keeping.
    schema : Schema
    link : {"logit", "identity"}
        How a raw score becomes a probability of reuse: by the logistic function, or as it stands.
    metadata : mapping
        JSON values: learner and its parameters, trace fingerprint, horizon, metrics, versions …
    """

    scorer: Any
    schema: Schema
    link: str = "logit"
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return the probability of reuse within the horizon, float64 ``[m]``, for rows float32 ``[m, width]``."""
        raw = predict_raw(self.scorer, x)
        if self.link == "identity":
            return raw
        with np.errstate(over="ignore"):
            return 1.0 / (1.0 + np.exp(-raw))

    def save(self, folder: str | Path, policy: Mapping[str, Any]) -> Path:
        """Write the artifact and the settings of its ``policy`` to ``folder``, replacing a policy that is there.

        Raises
        ------
        ArtifactError
            When ``folder`` holds something else than a saved policy, or cannot be written (disk full, no permission).
        """
        buffer = io.BytesIO()
        np.savez(buffer, **self.scorer._asdict())
        arrays = buffer.getvalue()
        content = {
            "format": FORMAT,
            "kind": kind_of(self.scorer).name,
            "link": self.link,
            "schema": self.schema.as_json(),
            "policy": dict(policy),
            "metadata": dict(self.metadata),
            "arrays_blake2b": hashlib.blake2b(arrays, digest_size=16).hexdigest(),
        }
        text = json.dumps(content, indent=1, allow_nan=False, default=_plain)
        return write_folder(folder, {_ARRAYS: arrays, _JSON: text.encode()})


def _plain(value: Any) -> Any:
    """Return a NumPy number as Python's own, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def load_artifact(folder: str | Path) -> tuple[Artifact, dict[str, Any]]:
    """Return the artifact in ``folder`` and the settings of its policy; see ``Artifact.save``.

    Raises
    ------
    ArtifactError
        When the folder is missing, damaged, written by a newer library, or made for another feature schema.
    """
    folder = as_path(folder)
    if not (folder / _JSON).is_file():
        raise ArtifactError(f"{folder} is not a saved policy: it has no {_JSON}")
    try:
        content = json.loads((folder / _JSON).read_text("utf-8"))
        if not isinstance(content["format"], int) or content["format"] < 1:
            raise ValueError(f"format {content['format']!r}")
        if content["format"] > FORMAT:
            raise ArtifactError(
                f"{folder} was written in format {content['format']}, this kvpredict reads up to {FORMAT}: upgrade it"
            )
        data = (folder / _ARRAYS).read_bytes()
        if hashlib.blake2b(data, digest_size=16).hexdigest() != content["arrays_blake2b"]:
            raise ArtifactError(f"{folder / _ARRAYS} is damaged (its digest differs from the one in {_JSON})")
        schema = Schema.from_json(content["schema"])
        kind = KINDS[content["kind"]]
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            scorer = kind.arrays(**{name: np.ascontiguousarray(arrays[name]) for name in arrays.files})
        kind.check(scorer, schema.width)
        if content["link"] not in LINKS or not isinstance(content["metadata"], dict):
            raise ValueError(f"link {content['link']!r}, metadata of type {type(content['metadata']).__name__}")
        artifact = Artifact(scorer, schema, content["link"], content["metadata"])
        return artifact, dict(content["policy"])
    except ArtifactError as error:
        if str(folder) in str(error):
            raise
        raise ArtifactError(f"{folder}: {error}") from error
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        EOFError,
        RecursionError,
        zipfile.BadZipFile,
    ) as error:
        raise ArtifactError(f"{folder} is damaged ({type(error).__name__}: {error}); save the policy again") from error


def write_folder(folder: str | Path, files: Mapping[str, bytes]) -> Path:
    """Write a saved policy's files, beside their place and then renamed into it; the last one marks the folder.

    Raises
    ------
    ArtifactError
        When ``folder`` holds something else than such a policy, or cannot be written (disk full, no permission).
    """
    given = as_path(folder).absolute()
    folder = Path(os.path.realpath(given))  # a link stays one: what it points to is replaced
    marker = list(files)[-1]
    if folder.exists() and not (folder / marker).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArtifactError(f"{folder} exists and is not a saved policy: remove it or choose another folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise ArtifactError(f"cannot write the policy to {folder}: {error}") from error
    try:
        fresh.chmod(0o755)
        for name, data in files.items():
            _write(fresh / name, data)
        if folder.exists():
            _exchange(fresh, folder)
        else:
            fresh.rename(folder)
    except OSError as error:
        raise ArtifactError(f"cannot write the policy to {folder}: {error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return given


def as_path(folder: Any) -> Path:
    """Return ``folder`` as a path, or raise ``ArtifactError``."""
    if not isinstance(folder, str | os.PathLike):
        raise ArtifactError(f"expected the folder of a saved policy, got {type(folder).__name__}")
    return Path(folder)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _exchange(fresh: Path, folder: Path) -> None:
    """Put ``fresh`` in the place of ``folder``; should that fail half-way, the old policy goes back."""
    old = folder.with_name(f".{folder.name}-old-{os.getpid()}")
    folder.rename(old)
    try:
        fresh.rename(folder)
    except OSError:
        with contextlib.suppress(OSError):
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
