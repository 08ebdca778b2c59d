"""A small neural net by PyTorch over the standardised logarithms of the features."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvpredict.learn.learner import Fitted, Learner, missing_extra, require, shares
from kvpredict.scorers.linear import compress_rows
from kvpredict.scorers.mlp import MLP

__all__ = ["NeuralNet", "one_thread"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch work on one core: nets this small gain nothing from more, and lose much on cores that are shared."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class NeuralNet(Learner):
    """Two hidden layers, trained with AdamW on log loss.

    Parameters
    ----------
    hidden : tuple of two ints, default (32, 16)
        Units of the hidden layers.
    epochs : int, default 8
        Passes over the rows.
    batch : int, default 512
        Rows a step.
    learning_rate : float, default 0.003
        Peak rate; it falls to zero along a cosine.
    """

    name = "mlp"

    hidden: tuple[int, ...] = (32, 16)
    epochs: int = 8
    batch: int = 512
    learning_rate: float = 3e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "hidden", tuple(self.hidden))
        require(len(self.hidden) == 2 and min(self.hidden) >= 1, self, f"hidden must be two sizes, got {self.hidden}")
        require(self.epochs >= 1, self, f"epochs must be at least 1, got {self.epochs}")
        require(self.batch >= 1, self, f"batch must be at least 1, got {self.batch}")
        require(self.learning_rate > 0, self, f"learning_rate must be above 0, got {self.learning_rate}")

    def fit(self, x: np.ndarray, y: np.ndarray, seed: int = 0) -> Fitted:
        try:
            import torch
        except ImportError as error:
            raise missing_extra("PyTorch", error) from error
        with one_thread():
            return self._fit(torch, x, y, seed)

    def _fit(self, torch: Any, x: np.ndarray, y: np.ndarray, seed: int) -> Fitted:
        rows = compress_rows(x)
        mean = rows.mean(0).astype(np.float32)
        spread = rows.std(0)
        # A constant feature carries nothing: scale 0 keeps it out of the sums.
        scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 1e-6).astype(np.float32)
        inputs = torch.from_numpy(((rows - mean) * scale).astype(np.float32))  # [m, width]
        target = torch.from_numpy(np.asarray(y, np.float32))  # [m]
        a, b = self.hidden
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = torch.nn.Sequential(
                torch.nn.Linear(rows.shape[1], a),
                torch.nn.ReLU(),
                torch.nn.Linear(a, b),
                torch.nn.ReLU(),
                torch.nn.Linear(b, 1),
            )
        optimizer = torch.optim.AdamW(net.parameters(), lr=self.learning_rate)
        steps = self.epochs * -(-len(inputs) // self.batch)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(self.epochs):
            for part in torch.randperm(len(inputs), generator=generator).split(self.batch):
                loss = torch.nn.functional.binary_cross_entropy_with_logits(net(inputs[part])[:, 0], target[part])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        inputs.requires_grad_(True)
        (slope,) = torch.autograd.grad(net(inputs).sum(), inputs)
        layers = [p.detach().numpy().copy() for p in net.parameters()]
        scorer = MLP(mean, scale, layers[0], layers[1], layers[2], layers[3], layers[4][0].copy(), layers[5])

        def predict(new: np.ndarray) -> np.ndarray:
            scaled = (compress_rows(np.asarray(new, np.float32)) - mean) * scale
            with torch.no_grad():
                probability: np.ndarray = torch.sigmoid(net.double()(torch.from_numpy(scaled))[:, 0]).numpy()
            return probability

        return Fitted(scorer, "logit", shares(slope.abs().mean(0).numpy().astype(np.float64)), predict)
