"""The distributions that workloads are put together from, vectorised."""

import numpy as np

__all__ = [
    "DAY",
    "arrivals",
    "day_curve",
    "lognormal_sizes",
    "pick",
    "rank_in_group",
    "rhythm",
    "spread_keys",
    "zipf_ranks",
    "zipf_weights",
]

DAY = 86_400.0  # seconds


def zipf_weights(n: int, alpha: float) -> np.ndarray:
    """Return the probability of each rank, float64 ``[n]``: proportional to ``1 / rank**alpha``."""
    weights = np.arange(1, n + 1, dtype=np.float64) ** -alpha
    return weights / weights.sum()


def pick(rng: np.random.Generator, weights: np.ndarray, n: int) -> np.ndarray:
    """Draw ``n`` indices with probability proportional to ``weights``, int64 ``[n]``."""
    cumulative = np.cumsum(weights)
    # A uniform draw times the total may round up to the total itself, one past the last index.
    return np.minimum(np.searchsorted(cumulative, rng.random(n) * cumulative[-1], side="right"), weights.size - 1)


def zipf_ranks(rng: np.random.Generator, n: int, objects: int, alpha: float) -> np.ndarray:
    """Draw ``n`` ranks in ``[0, objects)``, independently, by Zipf's law; rank 0 is the most popular."""
    return pick(rng, zipf_weights(objects, alpha), n)


def spread_keys(rng: np.random.Generator, objects: int, base: int = 0) -> np.ndarray:
    """Return the key of each rank, a permutation of ``base .. base + objects``: a key must not tell its rank."""
    return base + rng.permutation(objects)


def arrivals(rng: np.random.Generator, n: int, rate: float) -> np.ndarray:
    """Return ``n`` times of a Poisson process of ``rate`` a second, in order, float64 ``[n]``."""
    return np.cumsum(rng.exponential(1.0 / rate, n))


def day_curve(days: float, amplitude: float, peak_hour: float) -> np.ndarray:
    """Return the relative rate in each minute of ``days``: a cosine about 1 with its top at ``peak_hour``."""
    hours = np.arange(max(1, round(days * 1440))) / 60.0
    return 1.0 + amplitude * np.cos(2 * np.pi * (hours - peak_hour) / 24.0)


def rhythm(rng: np.random.Generator, n: int, intensity: np.ndarray, span: float) -> np.ndarray:
    """Draw ``n`` times in ``[0, span)``, unordered, from a rate that is ``intensity`` on a grid of equal steps."""
    step = span / intensity.size
    return np.minimum((pick(rng, intensity, n) + rng.random(n)) * step, np.nextafter(span, 0))


def lognormal_sizes(rng: np.random.Generator, n: int, median: float, sigma: float) -> np.ndarray:
    """Draw ``n`` sizes in bytes, int64, lognormal about ``median``, between 1 byte and 1 TiB."""
    return np.clip(median * np.exp(sigma * rng.standard_normal(n)), 1, 2**40).astype(np.int64)


def rank_in_group(counts: np.ndarray) -> np.ndarray:
    """Return 0, 1, … within each group: for counts ``[2, 3]``, ``[0, 1, 0, 1, 2]``."""
    starts = np.cumsum(counts) - counts
    return np.arange(int(counts.sum())) - np.repeat(starts, counts)
