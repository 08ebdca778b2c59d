"""Schema: the names, order and meaning of the numbers in a feature row.

A model is bound to the schema it was trained with: an artifact stores it, and its fingerprint is compared on load,
so a model never reads a column for what it is not.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvpredict.core.errors import ArtifactError, KvpredictError

__all__ = ["BASE_FEATURES", "MISSING", "OWN_FEATURES", "REGION_FEATURES", "REGION_SIZES", "Schema"]

MISSING = 1e6  # stands for a gap, absence or age that never happened, in residence times
SCHEMA_VERSION = 2  # raise it whenever a feature's meaning changes

OWN_FEATURES = (
    "recency",  # time since the last access, in residence times (so are all times and gaps below)
    "gap_1",  # gap between the last two accesses; MISSING before the second
    "gap_2",
    "gap_3",
    "gap_4",
    "rate_1_16",  # accesses, exponentially decayed with a half-life of 1/16 residence time
    "rate_1_4",
    "rate_1",
    "rate_4",
    "rate_16",
    "count",  # accesses remembered, at most 64
    "age",  # time since the first access remembered
    "mean_gap",  # age / count
    "visits",  # hits since insertion, at most 16; 0: not visited
    "residence",  # time since insertion
    "gap_ratio",  # last gap / recency
    "returns",  # times it was evicted and came back, at most 16
    "absence",  # time it was away the last time; MISSING if it never was
    "size",  # size over the mean size of what is inserted
    "novelty_then",  # share of accesses to keys not remembered, slow average as of the last access
    "misses_then",  # share of accesses that missed, slow average as of the last access
    "novelty_now",
    "misses_now",
)

REGION_SIZES = (8, 64, 1024)  # keys, runs of neighbouring ones (features.regions)
REGION_FEATURES = (
    "recency",  # time since the last access to any key of the region
    "after",  # time from the object's own last access to that one, 0 if that is it
    "known",  # share of accesses to keys that were remembered, recent ones counting more; -1 where nothing is known
    "rate",  # accesses, exponentially decayed with a half-life of 1 residence time
)
BASE_FEATURES = (*OWN_FEATURES, *(f"region_{name}_{size}" for size in REGION_SIZES for name in REGION_FEATURES))


@dataclass(frozen=True)
class Schema:
    """The columns of a feature row: the base features, then the trace's columns named in ``extra``.

    Parameters
    ----------
    extra : tuple of str
        Names of further columns of the trace (operation, tenant, LLM block depth …).
    categories : mapping of name to tuple of str
        For a text column, its texts: the number in the row is a text's position, -1 for one unknown.
    """

    extra: tuple[str, ...] = ()
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names):
            raise KvpredictError(f"feature names must be distinct, got extra={self.extra}")

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all columns, in order."""
        return BASE_FEATURES + self.extra

    @property
    def width(self) -> int:
        """Number of columns of a row."""
        return len(BASE_FEATURES) + len(self.extra)

    @property
    def fingerprint(self) -> str:
        """Digest (64 bits, hex) of version, names and categories."""
        content = json.dumps([SCHEMA_VERSION, self.names, {k: list(v) for k, v in sorted(self.categories.items())}])
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()

    def encode(self, values: Mapping[str, Any]) -> tuple[float, ...]:
        """Return the extra columns of one access as numbers, texts by their codes; 0.0 for one not given.

        >>> Schema(("op",), {"op": ("get", "set")}).encode({"op": "set"})
        (1.0,)
        """
        return tuple(self._encode(name, values.get(name, 0.0)) for name in self.extra)

    def _encode(self, name: str, value: Any) -> float:
        if isinstance(value, str):
            texts = self.categories.get(name, ())
            return float(texts.index(value)) if value in texts else -1.0
        return float(value)

    def as_json(self) -> dict[str, Any]:
        """Return what ``from_json`` takes."""
        return {
            "version": SCHEMA_VERSION,
            "features": list(self.names),
            "extra": list(self.extra),
            "categories": {k: list(v) for k, v in self.categories.items()},
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Schema":
        """Rebuild a schema; raises ``ArtifactError`` when it is not the one this library writes rows for."""
        extra: Sequence[str] = content["extra"]
        schema = cls(tuple(extra), {k: tuple(v) for k, v in content["categories"].items()})
        if content["version"] == SCHEMA_VERSION and content["features"] != list(schema.names):
            raise ArtifactError(f"the policy's schema is damaged: its features are not {', '.join(schema.names)}")
        if schema.fingerprint != content["fingerprint"]:
            raise ArtifactError(
                f"the policy was trained on feature schema {content['fingerprint']} (version {content['version']}, "
                f"{len(content['features'])} features), this library writes {schema.fingerprint} (version "
                f"{SCHEMA_VERSION}, {schema.width} features): fit it again, or use the kvpredict it was saved with"
            )
        return schema
