"""The learner contract of decode policies: a recording in, a probe out.

A learner is a frozen dataclass of hyper-parameters. ``fit`` trains on the labels of a recording, which it streams part
by part; ``rows`` is how all of them see a part.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from kvpredict.core.errors import KvpredictError
from kvpredict.llm.decode.features import AGES, NORMS, age_features, early_feature
from kvpredict.llm.decode.probe import Probe, blank_probe
from kvpredict.llm.decode.record import Recording

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Curves",
    "Fitted",
    "ImportanceLearner",
    "Rows",
    "expanded",
    "longest_age",
    "quiet",
    "require",
    "rows",
    "score_rows",
    "standardised",
]

Curves = dict[str, dict[str, list[Any]]]  # name -> "step" and "value"
Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]


class Fitted(NamedTuple):
    """A trained probe, and what its training logged."""

    probe: Probe
    curves: Curves


class Rows(NamedTuple):
    """The tokens before one moment: n of them, in L layers and H heads."""

    hidden: "Tensor"  # [L, n, E], not standardised
    norms: "Tensor"  # [L, H, n, 4]
    ages: "Tensor"  # [n, 5]
    early: "Tensor"  # [L, H, n]
    label: "Tensor"  # [L, H, n]


@dataclass(frozen=True)
class ImportanceLearner:
    """Base of all; a subclass adds hyper-parameters as fields, ``name`` and ``fit``."""

    name: ClassVar[str]

    def fit(self, recording: Recording, factor: "Tensor", seed: int = 0, progress: Progress | None = None) -> Fitted:
        """Train on the labels of a recording. ``factor`` is the model's ``output_factor``."""
        raise NotImplementedError

    def params(self) -> dict[str, Any]:
        """Return the hyper-parameters by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def require(condition: bool, learner: Any, message: str) -> None:
    """Raise ``KvpredictError`` naming the learner unless a hyper-parameter's ``condition`` holds."""
    if not condition:
        raise KvpredictError(f"decode learner {learner.name!r}: {message}")


def quiet(items: Iterable[Any], description: str, count: int) -> Iterable[Any]:
    """Show no progress."""
    return items


def rows(part: "dict[str, Tensor]", longest: int) -> Iterator[Rows]:
    """Yield the rows of each moment of a part."""
    for number, at in enumerate(part["moment"].tolist()):
        positions = part["token"].new_tensor(range(at))
        yield Rows(
            part["hidden"][:, :at].float(),
            part["norms"][:, :, :at],
            age_features(at - positions, longest),
            early_feature(part["early"][..., :at]),
            part["label"][number, :, :, :at],
        )


def longest_age(recording: Recording) -> int:
    """Return the longest context that labels are of."""
    return max(int(part["moment"].max()) for part in recording)


def standardised(recording: Recording, factor: "Tensor", units: int, seed: int) -> Probe:
    """Return a blank probe with the mean and scale of the recorded hidden states, of whatever width they have."""
    import torch

    count = 0
    total, squares = torch.zeros(()).double(), torch.zeros(()).double()
    for part in recording:
        hidden = part["hidden"].double()
        count += hidden.shape[1]
        total, squares = total + hidden.sum(1), squares + (hidden**2).sum(1)
    mean = total / count
    spread = (squares / count - mean**2).clamp_min(0).sqrt()
    blank = blank_probe(factor, mean.shape[1], units, seed)
    return replace(blank, mean=mean.float(), scale=(1 / spread.clamp_min(1e-4)).float())


def expanded(probe: Probe, recording: Recording) -> Probe:
    """Return the probe over whole hidden states where it was trained on projections of them."""
    import torch

    projection = recording.projection  # [L, E, R]
    if projection is None:
        return probe
    layers, width, rank = projection.shape
    weight = (probe.weight * probe.scale[:, None, :]) @ projection.mT  # [L, H, E]
    inner = probe.inner.clone()
    first = projection @ (probe.inner[:, :rank] * probe.scale[..., None])  # [L, E, M]
    offset = (probe.mean * probe.scale)[:, None, :]  # [L, 1, R]
    return replace(
        probe,
        mean=torch.zeros(layers, width),
        scale=torch.ones(layers, width),
        weight=weight,
        bias=probe.bias - (probe.weight * offset).sum(-1),
        inner=torch.cat([first, inner[:, rank:]], dim=1),
        inner_bias=probe.inner_bias - (offset @ probe.inner[:, :rank])[:, 0],
    )


def score_rows(probe: Probe, layer: int, row: Rows) -> "Tensor":
    """Return the scores of one layer's rows, [H, n], by the functions that serve."""
    token = probe.token(layer, row.hidden[layer][None], row.norms[layer][None])[0]
    return token + (row.ages * probe.ages[layer][:, None, :]).sum(-1) + row.early[layer] * probe.early[layer][:, None]


WIDTH_OF_REST = len(NORMS) + len(AGES) + 2  # norms, ages, early, one
