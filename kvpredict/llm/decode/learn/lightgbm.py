"""Gradient-boosted trees by LightGBM, distilled into a net that runs on the device.

Trees a head learn the labels from the ridge probe's score, a few random projections of the hidden state, norms and age.
Walking trees at every token would cost more than the attention does, so a net (``mlp``) is then fitted to what the
trees say, and the net serves. LightGBM: Ke et al., NeurIPS 2017; distillation: arXiv:1503.02531.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kvpredict.llm.decode.learn.learner import (
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
from kvpredict.llm.decode.learn.mlp import descend
from kvpredict.llm.decode.learn.ridge import solve
from kvpredict.llm.decode.probe import Probe
from kvpredict.llm.decode.record import Recording

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LightGBM"]


@dataclass(frozen=True)
class LightGBM(ImportanceLearner):
    """Boosted trees, distilled.

    Parameters
    ----------
    rounds, leaves : int, default 60 and 15
        Trees a head, and their leaves.
    learning_rate : float, default 0.1
    projections : int, default 24
        Random projections of the hidden state among the trees' features.
    rows : int, default 20000
        Rows a head that the trees are fitted to, at most.
    units, epochs, rate : int, int, float; default 32, 4 and 0.001
        Of the net that learns from them.
    strength : float, default 0.03
        Of the ridge probe whose score is a feature.
    """

    name = "lightgbm"

    rounds: int = 60
    leaves: int = 15
    learning_rate: float = 0.1
    projections: int = 24
    rows: int = 20_000
    units: int = 32
    epochs: int = 4
    rate: float = 1e-3
    strength: float = 0.03

    def __post_init__(self) -> None:
        require(self.rounds >= 1 and self.leaves >= 2, self, "rounds must be at least 1, leaves at least 2")
        require(self.projections >= 0, self, f"projections must be at least 0, got {self.projections}")
        require(self.rows >= 100, self, f"rows must be at least 100, got {self.rows}")
        require(self.units >= 1 and self.epochs >= 1, self, "units and epochs must be at least 1")
        require(min(self.rate, self.strength, self.learning_rate) > 0, self, "rates and strength must be above 0")

    def fit(self, recording: Recording, factor: "Tensor", seed: int = 0, progress: Progress | None = None) -> Fitted:
        import torch

        show = progress or quiet
        probe = solve(recording, standardised(recording, factor, self.units, seed), self.strength, show)
        _, heads, width = probe.shape
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(width, self.projections, generator=generator) * width**-0.5
        boosters = self._boost(recording, probe, directions, seed, show)

        def said(layer: int, row: Rows) -> "Tensor":
            x = _features(probe, layer, row, directions)
            answers = [boosters[layer][head].predict(x[head], num_threads=1) for head in range(heads)]
            return torch.from_numpy(np.stack(answers)).float()

        net, curves = descend(recording, probe, self.epochs, self.rate, show, said)
        return Fitted(expanded(net, recording), curves)

    def _boost(
        self, recording: Recording, probe: Probe, directions: "Tensor", seed: int, progress: Progress
    ) -> list[list[Any]]:
        import lightgbm

        layers, heads, _ = probe.shape
        longest = longest_age(recording)
        of_part = max(1, self.rows // len(recording))
        draw = np.random.default_rng(seed)
        # One part is in memory at a time; of it, a few rows of every layer and head stay.
        kept: list[list[tuple[Any, Any]]] = [[] for _ in range(layers)]
        for part in progress(recording, "collecting rows for trees", len(recording)):
            found = list(rows(part, longest))
            for layer in range(layers):
                x = np.concatenate([_features(probe, layer, row, directions) for row in found], axis=1)
                y = np.concatenate([row.label[layer].numpy() for row in found], axis=1)
                some = draw.choice(x.shape[1], min(of_part, x.shape[1]), replace=False)
                kept[layer].append((x[:, some], y[:, some]))
        params = {
            "objective": "regression", "num_leaves": self.leaves, "learning_rate": self.learning_rate, "max_bin": 63,
            "seed": seed, "deterministic": True, "force_row_wise": True, "num_threads": 1, "verbosity": -1,
        }  # fmt: skip
        boosters: list[list[Any]] = []
        for layer in progress(range(layers), "growing trees", layers):
            x = np.concatenate([part[0] for part in kept[layer]], axis=1)
            y = np.concatenate([part[1] for part in kept[layer]], axis=1)
            # LightGBM wants arrays that own their memory.
            sets = [lightgbm.Dataset(x[head].copy(), y[head].copy()) for head in range(heads)]
            boosters.append([lightgbm.train(params, rows, num_boost_round=self.rounds) for rows in sets])
        return boosters


def _features(probe: Probe, layer: int, row: Rows, directions: "Tensor") -> Any:
    """Return what the trees see, float32 [H, n, features]."""
    import torch

    with torch.no_grad():
        score = score_rows(probe, layer, row)
        x = (row.hidden[layer] - probe.mean[layer]) * probe.scale[layer]
        heads = len(score)
        columns = [
            score[..., None],
            (x @ directions).expand(heads, -1, -1),
            row.norms[layer],
            row.ages.expand(heads, -1, -1),
            row.early[layer][..., None],
        ]
        return torch.cat(columns, dim=-1).numpy()
