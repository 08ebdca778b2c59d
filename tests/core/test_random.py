"""The random generator: exact, uniform, and different for every seed."""

import numpy as np

from kvpredict.core.random import below, next_u32, seed_random, uniform


def test_follows_the_published_recurrence() -> None:
    state = np.array([2463534242], np.int64)  # Marsaglia's example seed, whose first output he gives
    assert next_u32(state) == 723471715
    assert next_u32(state) == 2497366906


def test_draws_below_are_uniform_and_in_range() -> None:
    rng = seed_random(3)
    drawn = np.bincount([below(rng, 10) for _ in range(20_000)], minlength=10)
    assert drawn.size == 10
    # 2,000 expected, standard deviation 42.
    assert (abs(drawn - 2_000) < 212).all(), drawn
    assert all(below(rng, 1) == 0 for _ in range(50))
    assert all(0 <= below(rng, 2**31 - 1) < 2**31 - 1 for _ in range(200))


def test_uniform_stays_inside() -> None:
    rng = seed_random(4)
    drawn = np.array([uniform(rng) for _ in range(5_000)])
    assert drawn.min() > 0
    assert drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < 0.02


def test_seeds() -> None:
    def first(seed: int) -> int:
        return int(next_u32(seed_random(seed)))

    assert first(7) == first(7)
    assert len({first(seed) for seed in range(500)}) == 500
    assert first(-1) != first(1)
    assert all(seed_random(seed)[0] > 0 for seed in (0, -1, 2**64, -(2**70))), "a state of 0 would stay 0"
