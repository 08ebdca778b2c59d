"""The controller: weights that steer ``guarded``, found by evolution in place of the rule written by hand.

Every 128 requests ``guarded`` moves lambda and chooses its leader. A controller answers both from eleven signals (how
far this cache and the best other leader are ahead or behind, lambda, misses, novelty, time, size) by two linear
functions. What an answer is worth shows many requests later, through a cache that has learned meanwhile, so its weights
are tried out as a whole: each step draws pairs of weights mirrored about the present ones, plays the same caches with
all of them, and moves towards those that missed less (Salimans et al., "Evolution Strategies as a Scalable Alternative
to Reinforcement Learning", 2017). It starts from weights that do nearly what the rule does.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from kvpredict.core.errors import KvpredictError
from kvpredict.learn.learner import Curves
from kvpredict.policies.guarded import Guarded
from kvpredict.policies.guarded.state import SIGNALS
from kvpredict.simulate.simulate import simulate
from kvpredict.trace.trace import Trace

__all__ = ["evolve_controller", "rule_weights"]

SPREAD = np.array([3.0, 3.0, 3.0, 3.0, *[1.0] * (SIGNALS - 4), *[3.0] * SIGNALS])  # of a draw with sigma 1


def rule_weights() -> np.ndarray:
    """Return weights, float64 ``[22]``, that do nearly what the rule does: up when over 0.3 % behind, else down."""
    weights = np.zeros((2, SIGNALS))
    weights[0, 2] = 30.0  # this cache behind its leader of late, in tenths of the leader's misses
    weights[0, -1] = -0.9
    return weights.ravel()


def evolve_controller(
    cells: Sequence[tuple[Trace, int]],
    *,
    generations: int = 20,
    pairs: int = 6,
    sigma: float = 0.3,
    rate: float = 0.5,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[int, float], None] = lambda generation, figure: None,
    **params: Any,
) -> tuple[np.ndarray, Curves]:
    """Evolve a controller that misses less than the rule does.

    Parameters
    ----------
    cells : sequence of (Trace, int)
        Traces and capacities to play, each with the same weight.
    generations, pairs : int, default 20, 6
        Steps, and pairs of weights tried at each.
    sigma, rate : float, default 0.3, 0.5
        How far draws lie apart, and how far a step goes towards the better ones.
    seed : int, default 0
    workers : int, default 1
        Threads that play; compiled caches run side by side.
    progress : callable, optional
        Told of each generation, and of the mean relative misses of those tried.
    **params
        Further parameters of ``guarded``.

    Returns
    -------
    weights : float64 array [22]
        Of all weights that stood at a generation's start, those with the fewest misses. For ``Guarded(controller=…)``.
    curves : dict
        ``misses``: with a generation's weights, relative to the rule's, a geometric mean over cells; ``misses_tried``:
        with the draws about them.
    """
    if not cells or generations < 1 or pairs < 1 or not sigma > 0 or not rate > 0 or workers < 1:
        raise KvpredictError("evolve_controller: cells must not be empty, and its numbers must be positive")
    rng = np.random.default_rng(seed)

    def misses(cell: tuple[Trace, int], weights: np.ndarray | None) -> float:
        steered = Guarded(**params, controller=None if weights is None else tuple(weights))
        return np.log(simulate(cell[0], steered, cell[1], seed=seed).misses)

    with ThreadPoolExecutor(workers) as pool:

        def trial(some: Sequence[np.ndarray | None]) -> np.ndarray:
            """Return the mean logarithm of misses for each of ``some`` weights."""
            jobs = [pool.submit(misses, cell, weights) for weights in some for cell in cells]
            return np.array([job.result() for job in jobs]).reshape(len(some), len(cells)).mean(1)

        weights = rule_weights()
        rule = trial([None])[0]
        best, best_weights = np.inf, weights
        curves: Curves = {name: {"step": [], "value": []} for name in ("misses", "misses_tried")}
        for generation in range(generations + 1):
            draws = rng.normal(0.0, sigma, (pairs, weights.size)) * SPREAD
            tried = [weights, *(weights + draws), *(weights - draws)]
            found = trial(tried if generation < generations else tried[:1]) - rule
            for name, figure in (
                ("misses", found[0]),
                ("misses_tried", found[1:].mean() if len(found) > 1 else found[0]),
            ):
                curves[name]["step"].append(generation)
                curves[name]["value"].append(float(np.exp(figure)))
            progress(generation, float(np.exp(found[0])))
            if found[0] < best:
                best, best_weights = found[0], weights
            if len(found) > 1:
                ahead = found[1 + pairs :] - found[1 : 1 + pairs]  # of each draw before its mirror image
                weights = weights + rate * (ahead / (np.abs(ahead).max() + 1e-12)) @ draws
    return best_weights, curves
