"""Ridge regression, a probe a head: normal equations summed over the parts, solved once.

It is what the other learners start from.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kvpredict.llm.decode.features import AGES, NORMS
from kvpredict.llm.decode.learn.learner import (
    WIDTH_OF_REST,
    Fitted,
    ImportanceLearner,
    Progress,
    expanded,
    longest_age,
    quiet,
    require,
    rows,
    standardised,
)
from kvpredict.llm.decode.probe import Probe
from kvpredict.llm.decode.record import Recording

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Ridge", "solve"]


@dataclass(frozen=True)
class Ridge(ImportanceLearner):
    """Linear probes.

    Parameters
    ----------
    strength : float, default 0.03
        Penalty, in units of each feature's own sum of squares.
    """

    name = "ridge"

    strength: float = 0.03

    def __post_init__(self) -> None:
        require(self.strength > 0, self, f"strength must be above 0, got {self.strength}")

    def fit(self, recording: Recording, factor: "Tensor", seed: int = 0, progress: Progress | None = None) -> Fitted:
        probe = solve(recording, standardised(recording, factor, 0, seed), self.strength, progress or quiet)
        return Fitted(expanded(probe, recording), {})


def solve(recording: Recording, probe: Probe, strength: float, progress: Progress) -> Probe:
    """Return ``probe`` with the linear part that fits the labels best."""
    import torch

    layers, heads, width = probe.shape
    size = width + WIDTH_OF_REST
    gram = torch.zeros(layers, heads, size, size)
    target = torch.zeros(layers, heads, size)
    longest = longest_age(recording)
    for part in progress(recording, "fitting ridge probes", len(recording)):
        for row in rows(part, longest):
            for layer in range(layers):
                x = (row.hidden[layer] - probe.mean[layer]) * probe.scale[layer]  # [n, E]
                rest = torch.cat(
                    [
                        row.norms[layer],
                        row.ages.expand(heads, -1, -1),
                        row.early[layer][..., None],
                        torch.ones(heads, len(x), 1),
                    ],
                    dim=-1,
                )  # [H, n, rest]
                cross = x.T @ rest  # [H, E, rest]
                gram[layer, :, :width, :width] += x.T @ x
                gram[layer, :, :width, width:] += cross
                gram[layer, :, width:, :width] += cross.mT
                gram[layer, :, width:, width:] += rest.mT @ rest
                label = row.label[layer][..., None]  # [H, n, 1]
                target[layer, :, :width] += (x.T @ label)[..., 0]
                target[layer, :, width:] += (rest.mT @ label)[..., 0]
    penalty = strength * gram.diagonal(dim1=-2, dim2=-1)
    penalty[..., -1] = 0
    system = gram.double() + torch.diag_embed(penalty.double() + 1e-6)
    weights = torch.linalg.solve(system, target.double()).float()
    ends = (width, width + len(NORMS), width + len(NORMS) + len(AGES))
    return replace(
        probe,
        weight=weights[..., : ends[0]],
        norms=weights[..., ends[0] : ends[1]],
        ages=weights[..., ends[1] : ends[2]],
        early=weights[..., -2],
        bias=weights[..., -1],
    )
