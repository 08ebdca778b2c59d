"""A small net beside the linear probe: one hidden layer a model layer, shared by its heads, trained on the labels.

It starts from the ridge probe with an answer of zero, so it can only add what is not linear.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kvpredict.llm.decode.learn.learner import (
    Curves,
    Fitted,
    ImportanceLearner,
    Progress,
    Rows,
    expanded,
    longest_age,
    quiet,
    require,
    rows,
    score_rows,
    standardised,
)
from kvpredict.llm.decode.learn.ridge import solve
from kvpredict.llm.decode.probe import Probe
from kvpredict.llm.decode.record import Recording

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NeuralNet", "descend"]

_TRAINED = ("weight", "norms", "ages", "bias", "early", "inner", "inner_bias", "outer")


@dataclass(frozen=True)
class NeuralNet(ImportanceLearner):
    """Net and linear probe together, Adam on squared errors.

    Parameters
    ----------
    units : int, default 32
        Hidden units a layer.
    epochs : int, default 4
        Passes over the recording; a step is the rows of one layer before one moment.
    rate : float, default 0.001
    strength : float, default 0.03
        Of the ridge probe that it starts from.
    """

    name = "mlp"

    units: int = 32
    epochs: int = 4
    rate: float = 1e-3
    strength: float = 0.03

    def __post_init__(self) -> None:
        require(self.units >= 1, self, f"units must be at least 1, got {self.units}")
        require(self.epochs >= 1, self, f"epochs must be at least 1, got {self.epochs}")
        require(self.rate > 0 and self.strength > 0, self, "rate and strength must be above 0")

    def fit(self, recording: Recording, factor: "Tensor", seed: int = 0, progress: Progress | None = None) -> Fitted:
        show = progress or quiet
        probe = solve(recording, standardised(recording, factor, self.units, seed), self.strength, show)
        probe, curves = descend(recording, probe, self.epochs, self.rate, show, lambda layer, row: row.label[layer])
        return Fitted(expanded(probe, recording), curves)


def descend(
    recording: Recording,
    probe: Probe,
    epochs: int,
    rate: float,
    progress: Progress,
    target: Callable[[int, Rows], "Tensor"],
) -> tuple[Probe, Curves]:
    """Return ``probe`` fitted to ``target(layer, rows)`` [H, n] by squared errors, and the curve of the loss."""
    import torch

    values = {name: getattr(probe, name).clone().requires_grad_(True) for name in _TRAINED}
    optimizer = torch.optim.Adam(list(values.values()), lr=rate)
    longest, curve = longest_age(recording), []
    passes = (part for _ in range(epochs) for part in recording)
    for number, part in enumerate(progress(passes, "fitting nets", epochs * len(recording))):
        optimizer.param_groups[0]["lr"] = rate * (1 - number / (epochs * len(recording)))
        total = 0.0
        for row in rows(part, longest):
            optimizer.zero_grad()
            current = replace(probe, **values)
            layers = range(probe.shape[0])
            with torch.enable_grad():
                errors = [score_rows(current, layer, row) - target(layer, row) for layer in layers]
                loss = torch.stack([(error**2).mean() for error in errors]).mean()
                loss.backward()
            optimizer.step()
            total += float(loss.detach())
        curve.append(total / len(part["moment"]))
    found = replace(probe, **{name: value.detach() for name, value in values.items()})
    return found, {"squared_error": {"step": list(range(len(curve))), "value": curve}}
