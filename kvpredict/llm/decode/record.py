"""Record decoding traces of a causal LM: what each token looked like, and how much it mattered later.

A sequence is run once; at moments of decision, every ``every`` tokens, each earlier token of each layer and KV head
gets a label from the ``horizon`` queries that come next: the logarithm of the most attention any of them pays it, times
|W_o v| / |x| (KVzip+, arXiv:2505.23416), or its effect on the loss, the squared gradient of their negative log
likelihood with respect to the token's gate. One file a sequence is written whole or not at all, and a recording that
was cut off is taken up where it ended; memory is bounded by one sequence.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvpredict.core.errors import KvpredictError, TraceError, unknown_name
from kvpredict.core.place import atomic_path
from kvpredict.llm.decode.features import SPAN, importance
from kvpredict.llm.decode.fingerprint import model_identity, output_factor
from kvpredict.llm.decode.gates import gated
from kvpredict.llm.decode.observe import Observed, observe, prefix_cache

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LABELS", "WINDOWS", "Recording", "check_recording", "read_recording", "record"]

LABELS = ("attention", "loss")
WINDOWS = (16, 64, 256)  # queries before the moment, in which attention received is recorded
FORMAT = 1
_INDEX, _PROJECTION = "recording.json", "projection.safetensors"
_CHUNKS = 8  # parts of the horizon whose gradients are squared one by one


@dataclass(frozen=True)
class Recording:
    """A folder of recorded sequences.

    A part has, with L layers, H KV heads, T tokens, M moments and W windows: ``hidden`` [L, T, E] or [L, T, rank];
    ``norms`` [L, H, T, 4]; ``early`` [L, H, T]; ``moment`` [M]; ``label`` [M, L, H, T], nan from the moment on;
    ``most`` and ``total`` [M, L, H, T, W], attention received in the windows; ``token`` [T].
    """

    folder: Path
    about: dict[str, Any]
    parts: list[str]

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> "Iterator[dict[str, Tensor]]":
        for name in self.parts:
            yield _read(self.folder / name)

    @property
    def projection(self) -> "Tensor | None":
        """What hidden states were multiplied by, [L, E, rank]; None where they are whole."""
        return _read(self.folder / _PROJECTION)["projection"] if self.about["rank"] else None


def read_recording(folder: str | Path) -> Recording:
    """Return the recording in ``folder``; raises ``TraceError`` where there is none, or a newer one."""
    folder = Path(folder)
    try:
        about = json.loads((folder / _INDEX).read_text())
        if about["format"] > FORMAT:
            raise TraceError(f"{folder} was recorded in format {about['format']}, this kvpredict reads {FORMAT}")
        parts = sorted(path.name for path in folder.glob("part-*.safetensors"))
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise TraceError(f"{folder} holds no recording of decoding: {error}") from error
    if not parts:
        raise TraceError(f"{folder} holds a recording without sequences: record again (pipeline=decode_record)")
    return Recording(folder, about, parts)


def record(
    model: Any,
    sequences: Sequence[Sequence[int]],
    folder: str | Path,
    *,
    horizon: int = 256,
    every: int = 256,
    label: str = "attention",
    rank: int = 0,
    early: int = 0,
    seed: int = 0,
    progress: Callable[[Iterable[Any], str, int], Iterable[Any]] | None = None,
) -> Recording:
    """Record ``model`` over ``sequences`` into ``folder``.

    Parameters
    ----------
    model : transformers causal LM
    sequences : sequence of token lists
    folder : path
        New, or one of the same recording cut off before its end.
    horizon, every : int, default 256
        Queries that a label looks ahead; tokens between two moments. Multiples of 16.
    label : {"attention", "loss"}
    rank : int, default 0
        Project hidden states to so many dimensions, at random; 0 keeps them whole (L x E x 2 bytes a token).
    early : int, default 0
        Record the most attention that a token gets in so many first steps, for delayed scoring.
    progress : callable, optional
        Wraps an iterable, given a description and a count.

    Raises
    ------
    KvpredictError
        On sequences shorter than ``every + horizon``, or parameters out of range.
    TraceError
        When ``folder`` holds a recording with other settings or of other sequences, a damaged one, or cannot be
        written.
    """
    import torch

    folder = Path(folder)
    check_recording(horizon, every, label, rank, early)
    if not sequences:
        raise KvpredictError("there are no sequences to record: give at least one")
    if min(map(len, sequences)) < every + horizon:
        raise KvpredictError(
            f"recording needs sequences of at least {every + horizon} tokens (every + horizon), got "
            f"{min(map(len, sequences))}: give longer texts, or lower them"
        )
    identity = model_identity(model)
    if rank > identity["width"]:
        raise KvpredictError(
            f"rank={rank} exceeds the width {identity['width']} of the model's hidden states: lower it, or give 0 to "
            "keep them whole"
        )
    factor = output_factor(model).to(next(model.parameters()).device)
    about = {
        "format": FORMAT,
        "model": identity,
        "horizon": horizon,
        "every": every,
        "label": label,
        "rank": rank,
        "early": early,
        "seed": seed,
        "windows": list(WINDOWS),
    }
    projection = _begin(folder, about, seed)
    names = [f"part-{number:06d}.safetensors" for number in range(len(sequences))]
    missing = [(n, tokens) for n, tokens in zip(names, sequences, strict=True) if not _recorded(folder / n, tokens)]
    for name, tokens in (progress or _plain)(missing, "recording sequences", len(missing)):
        ids = torch.tensor([list(tokens)], device=factor.device)
        seen = observe(model, ids, attention=True, early=early)
        part = _part(model, ids, seen, factor, about)
        if projection is not None:
            part["hidden"] = torch.einsum("lte,ler->ltr", part["hidden"].float(), projection).half()
        _write(folder / name, part)
    return Recording(folder, about, names)


def _recorded(path: Path, tokens: Sequence[int]) -> bool:
    """Return whether the part ``path`` is there; raise ``TraceError`` if it is of another sequence."""
    if not path.is_file():
        return False
    if _read(path, "token")["token"].tolist() != list(tokens):
        raise TraceError(
            f"{path.parent} holds a recording of other sequences ({path.name} is not that text): choose another folder "
            "or remove it"
        )
    return True


def check_recording(horizon: int, every: int, label: str, rank: int, early: int) -> None:
    """Raise ``KvpredictError`` on settings with which nothing can be recorded, whatever the model."""
    if label not in LABELS:
        raise unknown_name("label", label, LABELS)
    if horizon < SPAN or every < SPAN or horizon % SPAN or every % SPAN:
        raise KvpredictError(f"horizon={horizon} and every={every} must be multiples of {SPAN} tokens")
    if rank < 0:
        raise KvpredictError(f"rank={rank} must be at least 0, which keeps hidden states whole")
    if early < 0:
        raise KvpredictError(f"early={early} (delay) must be at least 0 steps")


def _plain(items: Iterable[Any], description: str, count: int) -> Iterable[Any]:
    return items


def _begin(folder: Path, about: dict[str, Any], seed: int) -> "Tensor | None":
    """Make the folder or find it made alike; return the projection."""
    import torch

    index, projection = folder / _INDEX, folder / _PROJECTION
    if index.is_file():
        try:
            before = json.loads(index.read_text())
            differs = [key for key in about if before.get(key) != about[key]]
        except (ValueError, AttributeError) as error:
            raise TraceError(
                f"{folder} holds a damaged recording ({_INDEX}: {error}): choose another folder or remove it"
            ) from error
        if differs:
            raise TraceError(
                f"{folder} holds a recording with another {', '.join(differs)}: choose another folder or remove it"
            )
    if about["rank"] and not projection.is_file():
        generator = torch.Generator().manual_seed(seed)
        shape = (about["model"]["layers"], about["model"]["width"], about["rank"])
        _write(projection, {"projection": torch.randn(shape, generator=generator) * about["rank"] ** -0.5})
    if not index.is_file():
        with _writing(index) as part:
            part.write_text(json.dumps(about, indent=1))
    return Recording(folder, about, []).projection


def _part(model: Any, ids: "Tensor", seen: Observed, factor: "Tensor", about: dict[str, Any]) -> "dict[str, Tensor]":
    import torch

    count, every, horizon = ids.shape[1], about["every"], about["horizon"]
    layers = range(len(seen.hidden))
    norms = torch.stack([seen.norms(factor, layer)[0] for layer in layers])  # [L, H, T, 4]
    most = torch.stack([a.most for a in seen.attention])  # [L, H, N, T]
    total = torch.stack([a.total for a in seen.attention])
    moments = list(range(every, count - horizon + 1, every))
    labels, received, sums = [], [], []
    for at in moments:
        before, here, after = at // SPAN, slice(0, at), (at + horizon) // SPAN
        label = torch.full(norms.shape[:3], torch.nan, device=norms.device)
        if about["label"] == "attention":
            label[..., here] = importance(most[:, :, before:after, here].amax(2), norms[..., here, :])
        else:
            label[..., here] = _loss_effect(model, ids[:, : at + horizon], seen, at)
        labels.append(label)
        spans = [slice(max(0, before - window // SPAN), before) for window in WINDOWS]
        received.append(torch.stack([most[:, :, span].amax(2) for span in spans], dim=-1))
        sums.append(torch.stack([total[:, :, span].sum(2) for span in spans], dim=-1))
    return {
        "token": ids[0].cpu(),
        "hidden": torch.cat(seen.hidden).cpu(),
        "norms": norms.cpu(),
        "early": torch.stack([a.early for a in seen.attention]).cpu(),
        "moment": torch.tensor(moments),
        "label": torch.stack(labels).cpu(),
        "most": torch.stack(received).half().cpu(),
        "total": torch.stack(sums).half().cpu(),
    }


def _loss_effect(model: Any, ids: "Tensor", seen: Observed, at: int) -> "Tensor":
    """Return the logarithm of the root of the summed squared gradients of the loss by the gates, [L, H, at]."""
    import torch

    shape = (len(seen.hidden), seen.key[0].shape[1], at)
    gates = torch.zeros(shape, device=ids.device, requires_grad=True)
    squared = torch.zeros(shape, device=ids.device)
    with torch.enable_grad(), gated(model, gates):
        logits = model(ids[:, at:], past_key_values=prefix_cache(seen, at), use_cache=True).logits[0, :-1].float()
    loss = torch.nn.functional.cross_entropy(logits, ids[0, at + 1 :], reduction="none")
    for chunk in loss.chunk(_CHUNKS):
        (gradient,) = torch.autograd.grad(chunk.sum(), gates, retain_graph=True)
        squared += gradient**2
    return 0.5 * squared.clamp_min(1e-16).log()


def _write(path: Path, arrays: "dict[str, Tensor]") -> None:
    from safetensors.torch import save_file

    with _writing(path) as part:
        save_file({name: array.contiguous() for name, array in arrays.items()}, part)


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """Give a file to write to that becomes ``path``; raise ``TraceError`` where that cannot be."""
    from safetensors import SafetensorError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as part:
            yield part
    except (OSError, SafetensorError) as error:
        raise TraceError(
            f"{path} cannot be written ({error}): the parts before it stay, and recording again goes on after them"
        ) from error


def _read(path: Path, *names: str) -> "dict[str, Tensor]":
    """Return the arrays ``names`` of a file, all without names; raise ``TraceError`` on a damaged one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in names or file.keys()}
    except (OSError, SafetensorError) as error:
        raise TraceError(f"{path} cannot be read ({error}): remove it, and it is recorded again") from error
