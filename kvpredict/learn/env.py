"""Environments: a cache as a Gymnasium environment, alone or many at a time.

At every eviction the agent sees the feature rows of a few residents drawn at random, as logarithms, and chooses the one
to go. The reward is the number of hits until the next eviction, so the return of an episode, the whole trace from an
empty cache, is its hits. ``info["distance"]`` tells how long each candidate would have waited for its next use: the
future, for teachers and critics, never for the policy.

Towers et al., "Gymnasium: A Standard Interface for Reinforcement Learning Environments", 2024. Caching as such an
environment, with candidates for actions: Liu et al., "An Imitation Learning Approach for Cache Replacement", ICML 2020.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kvpredict.core.errors import KvpredictError
from kvpredict.features.schema import Schema
from kvpredict.learn.lanes import CEILING, Lanes
from kvpredict.learn.learner import missing_extra
from kvpredict.trace.trace import Trace

try:
    import gymnasium
    from gymnasium.vector import AutoresetMode
    from gymnasium.vector.utils import batch_space
except ImportError as error:
    raise missing_extra("Gymnasium", error) from error

__all__ = ["CacheEnv", "CacheVectorEnv"]


class CacheVectorEnv(gymnasium.vector.VectorEnv):
    """Caches of one capacity, a trace each, that step together in one compiled call.

    Nothing resets itself: a cache whose trace has ended stands still until ``reset(options={"reset_mask": …})``.

    Parameters
    ----------
    traces : sequence of Trace
        One a cache. ``kvpredict.learn.lanes.miniatures`` makes them from one trace.
    capacity : int
        Objects.
    candidates : int, default 16
    schema : Schema, optional
        Names the extra columns of the rows.
    history : float, default 4.0

    Raises
    ------
    KvpredictError
        When a cache would hold all keys of its trace.
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(
        self,
        traces: Sequence[Trace],
        capacity: int,
        candidates: int = 16,
        schema: Schema | None = None,
        history: float = 4.0,
    ) -> None:
        self.lanes = lanes = Lanes(traces, capacity, candidates, schema, history)
        self.num_envs = lanes.count
        shape = (lanes.candidates, lanes.width)
        self.single_observation_space = gymnasium.spaces.Box(-CEILING, CEILING, shape, np.float32)
        self.single_action_space = gymnasium.spaces.Discrete(lanes.candidates)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._rows = np.zeros((self.num_envs, *shape), np.float32)
        self._distance = np.zeros((self.num_envs, lanes.candidates))
        self._begun = np.zeros(self.num_envs, bool)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Empty the caches, or those of ``options["reset_mask"]``, and lead each to its first eviction.

        Cache ``i`` draws its candidates as the policy ``learned`` does with seed ``seed + i``. ``info["hits"]`` are the
        hits before the first eviction, which no action could change.
        """
        super().reset(seed=seed)
        mask = np.asarray((options or {}).get("reset_mask", True))
        if mask.dtype != bool or mask.shape not in ((), (self.num_envs,)):
            raise KvpredictError(f"reset_mask must be true or false for each of {self.num_envs} caches, got {mask!r}")
        for lane in np.flatnonzero(np.broadcast_to(mask, self.num_envs)):
            self.lanes.reset(int(lane), int(self.np_random.integers(2**31)) if seed is None else seed + int(lane))
            self._begun[lane] = True
        hits = np.zeros(self.num_envs, np.int64)
        self.lanes.advance(np.full(self.num_envs, -1), self._rows, self._distance, hits)
        return self._rows.copy(), {"distance": self._distance.copy(), "hits": hits}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Evict the candidates chosen, int64 ``[caches]``, and serve each trace up to the next eviction or its end.

        Raises ``KvpredictError`` before the first ``reset`` of every cache.
        """
        if not self._begun.all():
            raise KvpredictError("the environment is not at its first eviction yet: call reset() before step()")
        hits = np.zeros(self.num_envs, np.int64)
        self.lanes.advance(self._checked(actions), self._rows, self._distance, hits)
        ended = self.lanes.ended()
        info = {"distance": self._distance.copy()}
        return self._rows.copy(), hits.astype(np.float64), ended, np.zeros(self.num_envs, bool), info

    def _checked(self, actions: Any) -> np.ndarray:
        """Return ``actions`` as int64; ``Lanes`` sees to their number and to the highest."""
        given = np.asarray(actions)
        if given.dtype.kind not in "iu" or given.min(initial=0) < 0:
            raise KvpredictError(f"actions must be whole numbers of at least 0, one a cache, got {actions!r}")
        return given.astype(np.int64)


class CacheEnv(gymnasium.Env):
    """One cache.

    Parameters
    ----------
    trace : Trace
    capacity : int
        Objects.
    **params
        As those of ``CacheVectorEnv``.

    >>> env = CacheEnv(Trace.from_keys([1, 2, 3, 1, 2, 3, 1]), capacity=2)
    >>> rows, info = env.reset(seed=0)
    >>> rows.shape, sorted(info["distance"].tolist())
    ((2, 35), [1.0, 2.0])
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(self, trace: Trace, capacity: int, **params: Any) -> None:
        self.many = CacheVectorEnv([trace], capacity, **params)
        self.observation_space = self.many.single_observation_space
        self.action_space = self.many.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Empty the cache and lead it to its first eviction."""
        super().reset(seed=seed)
        rows, info = self.many.reset(seed=int(self.np_random.integers(2**31)) if seed is None else seed)
        return rows[0], {"distance": info["distance"][0], "hits": int(info["hits"][0])}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Evict candidate ``action``, and serve the trace up to the next eviction or its end.

        Raises ``KvpredictError`` before the first ``reset``, and at the end of the trace.
        """
        if self.many.lanes.ended()[0]:
            raise KvpredictError("the trace has ended: call reset() for another episode")
        rows, hits, ended, _, info = self.many.step(np.array([action]))
        return rows[0], float(hits[0]), bool(ended[0]), False, {"distance": info["distance"][0]}
