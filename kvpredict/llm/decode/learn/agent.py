"""A reinforcement-learning agent that ranks tokens for future use, over all budgets at once.

After KV Policy, "Learning to evict from the key-value cache", arXiv:2602.10238: one agent a KV head; an episode is one
recorded moment. The agent ranks the tokens by drawing them one after the other without replacement, in proportion to
exp(score), the Plackett-Luce distribution, which is one argsort of scores with Gumbel noise. A budget of b keeps the
first b, and a kept token earns its recorded use; as no budget is preferred, the return is the mean over budgets spread
evenly in their logarithm. The gradient is REINFORCE (Williams, 1992) with what can be had for nothing: a choice is
credited only with what comes from its rank on, and compared with the other rankings of the same episode.

The start is the ridge probe, for its features; the agent moves all linear weights. It reads from top to bottom.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kvpredict.llm.decode.learn.learner import (
    Fitted,
    ImportanceLearner,
    Progress,
    expanded,
    longest_age,
    quiet,
    require,
    rows,
    score_rows,
    standardised,
)
from kvpredict.llm.decode.learn.ridge import solve
from kvpredict.llm.decode.record import Recording

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Agent", "budget_weights", "log_probability", "returns"]

_TRAINED = ("weight", "norms", "ages", "bias", "early")


@dataclass(frozen=True)
class Agent(ImportanceLearner):
    """Plackett-Luce policy gradient.

    Parameters
    ----------
    epochs : int, default 3
        Passes over the recording.
    samples : int, default 8
        Rankings drawn at a moment, at least 2.
    least, most : float, default 1/16 and 1/2
        The budgets, as shares of the tokens.
    rate : float, default 0.0003
    strength : float, default 0.03
        Of the ridge probe that it starts from.
    """

    name = "agent"

    epochs: int = 3
    samples: int = 8
    least: float = 1 / 16
    most: float = 0.5
    rate: float = 3e-4
    strength: float = 0.03

    def __post_init__(self) -> None:
        require(self.epochs >= 1, self, f"epochs must be at least 1, got {self.epochs}")
        require(self.samples >= 2, self, f"samples must be at least 2, got {self.samples}")
        require(0 < self.least < self.most <= 1, self, "least and most must be shares, the first below the second")
        require(self.rate > 0 and self.strength > 0, self, "rate and strength must be above 0")

    def fit(self, recording: Recording, factor: "Tensor", seed: int = 0, progress: Progress | None = None) -> Fitted:
        import torch

        show = progress or quiet
        probe = solve(recording, standardised(recording, factor, 0, seed), self.strength, show)
        values = {name: getattr(probe, name).clone().requires_grad_(True) for name in _TRAINED}
        optimizer = torch.optim.Adam(list(values.values()), lr=self.rate)
        generator = torch.Generator().manual_seed(seed)
        longest, curve = longest_age(recording), []
        passes = (part for _ in range(self.epochs) for part in recording)
        for part in show(passes, "training agents", self.epochs * len(recording)):
            total = 0.0
            for row in rows(part, longest):
                optimizer.zero_grad()
                current = replace(probe, **values)
                for layer in range(probe.shape[0]):  # the layers' agents are strangers: their gradients just add up
                    with torch.enable_grad():
                        score = score_rows(current, layer, row)  # [H, n]
                    use = row.label[layer].exp()
                    use = use / use.sum(-1, keepdim=True)
                    n = use.shape[-1]

                    # Rankings: [K, H, n], best first.
                    noise = torch.empty(self.samples, *score.shape).exponential_(generator=generator).log()
                    ranking = (score.detach() - noise).argsort(-1, descending=True)

                    # What is still to be earned from each rank on, beside the other rankings' mean.
                    weight = budget_weights(n, self.least, self.most)
                    to_come = returns(use.expand_as(noise).gather(-1, ranking), weight)
                    others = (to_come.sum(0) - to_come) / (self.samples - 1)
                    advantage = to_come - others

                    with torch.enable_grad():
                        chosen = log_probability(score.expand_as(noise).gather(-1, ranking))
                        (-(chosen * advantage).sum(-1).mean(0).sum()).backward()
                    total += float(to_come[..., 0].mean()) / probe.shape[0]
                optimizer.step()
            curve.append(total / len(part["moment"]))
        found = replace(probe, **{name: value.detach() for name, value in values.items()})
        return Fitted(expanded(found, recording), {"return": {"step": list(range(len(curve))), "value": curve}})


def budget_weights(n: int, least: float, most: float) -> "Tensor":
    """Return the share of budgets, even in their logarithm, that keep the token of each rank, [n]."""
    import math

    import torch

    rank = (torch.arange(n) + 1) / n
    return ((math.log(most) - rank.log()) / (math.log(most) - math.log(least))).clamp(0, 1)


def returns(use: "Tensor", weight: "Tensor") -> "Tensor":
    """Return what the tokens from each rank on earn, [..., n], for their ``use`` in the order of the ranking."""
    earned = use * weight
    return earned.flip(-1).cumsum(-1).flip(-1)


def log_probability(score: "Tensor") -> "Tensor":
    """Return the logarithm of each choice's probability, [..., n]: of a token among those not drawn before it."""
    return score - score.flip(-1).logcumsumexp(-1).flip(-1)
