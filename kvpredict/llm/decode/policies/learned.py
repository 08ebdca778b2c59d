"""Learned: keep the tokens that a trained probe says will matter.

A probe per layer and KV head reads the hidden state that feeds the projections and the norms of key, value and output
(``features``). That part of the score is stored with the token; its age is added when the cache ranks, every so many
steps. So no attention is looked at, and nothing leaves the device. Where the budget goes is learned too: heads differ
more than tokens do, and ``shares`` says how much.
Probes on hidden states: KVzap, arXiv:2601.07891. Training through soft gates, which is what counts, and budgets learned
with it: ``learn/end_to_end``. With ``delay`` tokens are judged some steps after they came, by the attention they got
meanwhile (KVpop, arXiv:2607.05061), and with ``attention`` by what they have received so far too; the cache then has to
compute attention weights.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kvpredict.artifact import as_path, write_folder
from kvpredict.core.errors import ArtifactError, KvpredictError
from kvpredict.llm.decode.features import RECEIVED, early_feature, fading, later, norm_features
from kvpredict.llm.decode.fingerprint import IDENTITY, check_model
from kvpredict.llm.decode.policy import HIDDEN, WEIGHTS, Arrival, DecodePolicy, Held
from kvpredict.llm.decode.probe import Probe

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FILE", "Learned"]

FILE, _ARRAYS = "decode_policy.json", "probe.npz"
FORMAT = 1
# Columns of a memo: the score but for age and attention, the most in the first steps, and what was received so far.
_EARLY, _RECEIVED, _ALL = 1, slice(2, 2 + len(RECEIVED)), 2 + len(RECEIVED)


@dataclass(frozen=True, eq=False)
class Learned(DecodePolicy):
    """A trained importance; made by ``pipeline=decode_train`` or ``fit_decode``, read by ``load_policy``.

    Parameters
    ----------
    probe : Probe
    model : mapping
        ``model_identity`` of the model that it was trained for.
    splits : Tensor [budgets, layers, KV heads], optional
        How a budget is split, mean 1, for each of the budgets that it was trained on; None: equally.
    budgets : tuple of floats
        Those budgets, as shares of the context.
    budget : float, optional
        The share that it serves with, which chooses among the splits; default: their mean. ``for_budget`` sets it.
    longest : int, default 768
        Context in tokens beyond which ages are not told apart: what it was trained on.
    delay : int, default 0
        Steps after its arrival at which a token is judged; until then the probe alone speaks. The cache's ``recent``
        should be no less.
    attention : bool, default False
        Whether the attention received so far counts.
    recent : int, default 32
        Last tokens that are kept unless the cache is told otherwise: as many as were when it was trained.
    metadata : mapping
        Where it came from.

    Raises
    ------
    KvpredictError
        Without a probe, since unlike the heuristics it cannot be made by name, or with one that is not finite.
    """

    name = "learned"
    needs = frozenset({HIDDEN})
    patient = True
    columns = 1  # of a memo: all of the score but its age; with delay or attention, see below

    probe: Probe | None = field(default=None, repr=False)
    model: Mapping[str, Any] = field(default_factory=dict, repr=False)
    splits: "Tensor | None" = field(default=None, repr=False)
    budgets: tuple[float, ...] = ()
    budget: float | None = None
    longest: int = 768
    delay: int = 0
    attention: bool = False
    recent: int = 32
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)
    # Copies on devices, and their tables of ages.
    _placed: dict[Any, tuple[Probe, Any]] = field(
        default_factory=dict, init=False, repr=False, metadata={"config": False}
    )

    def __post_init__(self) -> None:
        if self.probe is None:
            raise KvpredictError(
                "the decode policy 'learned' has to be trained: give the folder of one (pipeline=decode_train makes it)"
            )
        ill = [name for name, array in self.probe.arrays().items() if not bool(array.isfinite().all())]
        if ill:
            raise KvpredictError(
                f"the probe is no use, its {', '.join(ill)} are not finite: train again, with lower rates or more data"
            )
        object.__setattr__(self, "budgets", tuple(self.budgets))
        if self.splits is not None and len(self.splits) != len(self.budgets):
            raise KvpredictError(f"{len(self.splits)} splits do not belong to budgets {self.budgets}")
        if self.budget is not None and not 0 < self.budget <= 1:
            raise KvpredictError(f"budget={self.budget} must be a share of the context above 0 and at most 1")
        if self.delay or self.attention:
            object.__setattr__(self, "needs", frozenset({HIDDEN, WEIGHTS}))
            object.__setattr__(self, "columns", _ALL if self.attention else _EARLY + 1)
        if not all(isinstance(n, int) for n in (self.delay, self.longest)) or self.delay < 0 or self.longest < 1:
            raise KvpredictError(
                f"delay={self.delay!r} and longest={self.longest!r} must be whole numbers of at least 0 and 1"
            )

    def arrive(self, new: Arrival) -> "Tensor":
        import torch

        assert new.hidden is not None
        (probe, _), layer = self._on(new.key.device), new.layer
        norms = norm_features(new.hidden, new.key, new.value, probe.factor[layer])
        score = probe.token(layer, new.hidden, norms)
        return torch.nn.functional.pad(score[..., None], (0, self.columns - 1))  # [B, H, T, columns]

    def attend(self, held: Held, weights: "Tensor") -> None:
        import torch

        queries = weights.shape[3]
        asked = (held.now[:, None] - queries + torch.arange(queries, device=weights.device))[:, None]  # [B, 1, T]
        query, token = asked[..., None], held.position[:, :, None, :]
        highest = weights.amax(2)  # [B, heads, T, S]
        if self.attention:
            counts, mean = later(query, token), weights.mean(2)
            most, total, recent = held.memo[..., _RECEIVED].unbind(-1)
            torch.maximum(most, (highest * counts).amax(2), out=most)
            mean *= counts
            total += mean.sum(2)
            recent *= fading(asked[..., :1] - 1, asked[..., -1:])
            if queries > 1:
                mean *= fading(asked, asked[..., -1:])[..., None]  # [B, 1, T, 1]
            recent += mean.sum(2)
        if self.delay:
            age = query - token
            first = highest.masked_fill((age <= 0) | (age > self.delay), 0.0).amax(2)
            held.memo[..., _EARLY] = torch.maximum(held.memo[..., _EARLY], first)

    def score(self, held: Held) -> "Tensor":
        probe, table = self._on(held.memo.device)
        age = (held.now[:, None, None] - held.position).clamp_(0, self.longest).long()  # [B, heads, S]
        heads: Any = held.heads
        ages = table[held.layer, heads]  # [heads, longest + 1]
        score = ages.expand(len(age), *ages.shape).gather(-1, age) + held.memo[..., 0]
        if self.delay:
            score = score + early_feature(held.memo[..., _EARLY]) * probe.early[held.layer, heads][:, None]
        if self.attention:
            so_far = held.now[:, None, None] - held.position
            score = score + probe.watched(held.layer, heads, held.memo[..., _RECEIVED], so_far)
        return score

    def shares(self, layers: int, heads: int) -> "Tensor | None":
        """Return the split for ``budget``: between those of two budgets in proportion to its logarithm."""
        if self.splits is None:
            return None
        if self.budget is None or len(self.budgets) == 1:
            return self.splits.mean(0)
        order = np.argsort(self.budgets)
        known = np.log(np.asarray(self.budgets)[order])
        weights = [float(np.interp(np.log(self.budget), known, np.eye(len(known))[i])) for i in range(len(known))]
        return sum(weight * self.splits[int(place)] for weight, place in zip(weights, order, strict=True))  # type: ignore[return-value]

    def for_budget(self, share: float) -> "Learned":
        """Return the policy that splits as trained for this share of the context: heads fill up as it grows."""
        return replace(self, budget=share)

    def check(self, model: Any) -> None:
        check_model(dict(self.model), model)

    def _on(self, device: Any) -> "tuple[Probe, Tensor]":
        if device not in self._placed:
            assert self.probe is not None
            probe = self.probe.to(device)
            self._placed[device] = probe, probe.age_table(self.longest)
        return self._placed[device]

    # --- at rest ---

    def save(self, folder: str | Path, metadata: Mapping[str, Any] | None = None) -> Path:
        """Write the policy to ``folder``: arrays and JSON, nothing pickled; ``load_policy`` reads it.

        Raises
        ------
        ArtifactError
            When ``folder`` holds something else, or cannot be written.
        """
        assert self.probe is not None
        arrays: dict[str, Any] = {name: array.detach().cpu().numpy() for name, array in self.probe.arrays().items()}
        if self.splits is not None:
            arrays["splits"] = self.splits.cpu().numpy()
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        data = buffer.getvalue()
        content = {
            "format": FORMAT,
            "policy": {
                "name": self.name,
                "budgets": list(self.budgets),
                "budget": self.budget,
                "longest": self.longest,
                "delay": self.delay,
                "attention": self.attention,
                "recent": self.recent,
            },
            "model": dict(self.model),
            "metadata": {**self.metadata, **(metadata or {})},
            "arrays_blake2b": hashlib.blake2b(data, digest_size=16).hexdigest(),
        }
        return write_folder(folder, {_ARRAYS: data, FILE: json.dumps(content, indent=1, allow_nan=False).encode()})

    @staticmethod
    def load(folder: str | Path) -> "Learned":
        """Return the policy in ``folder``; raises ``ArtifactError`` on a missing, damaged or newer one."""
        import torch

        folder = as_path(folder)
        try:
            content = json.loads((folder / FILE).read_text("utf-8"))
            if content["format"] > FORMAT:
                raise ArtifactError(
                    f"{folder} is in format {content['format']}, this kvpredict reads up to {FORMAT}: upgrade it"
                )
            data = (folder / _ARRAYS).read_bytes()
            if hashlib.blake2b(data, digest_size=16).hexdigest() != content["arrays_blake2b"]:
                raise ArtifactError(f"{folder / _ARRAYS} is damaged (its digest differs from the one in {FILE})")
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                arrays = {name: torch.from_numpy(np.ascontiguousarray(file[name])) for name in file.files}
            splits = arrays.pop("splits", None)
            arrays.setdefault("received", torch.zeros(*arrays["early"].shape, len(RECEIVED)))  # format 1 began without
            settings = {key: value for key, value in content["policy"].items() if key != "name"}
            if missing := IDENTITY - set(content["model"]):
                raise ArtifactError(f"{folder} is damaged: its model has no {', '.join(sorted(missing))}")
            return Learned(Probe(**arrays), content["model"], splits, metadata=content["metadata"], **settings)
        except FileNotFoundError as error:
            raise ArtifactError(f"{folder} holds no decode policy: {error.filename} is missing") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            if isinstance(error, ArtifactError):
                raise
            raise ArtifactError(
                f"{folder} is damaged ({type(error).__name__}: {error}); save the policy again"
            ) from error
