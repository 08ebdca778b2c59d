"""The ring of samples against a twin that keeps lists."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvpredict.features.facts import FACTS
from kvpredict.features.samples import LATELY, SHARE, collect, lose, make_samples, record, resolve
from kvpredict.scorers.boosting import make_training
from tests.strategies import THOROUGH

ENTRIES, RING, WIDTH = 4, 5, 2

steps = st.lists(
    st.tuples(st.sampled_from(["record", "resolve", "lose"]), st.integers(0, ENTRIES - 1), st.integers(1, 9)),
    max_size=60,
)


@THOROUGH
@given(steps, st.integers(1, 12))
def test_samples_tell_how_long_they_were_watched_and_what_ended_that(
    made: list[tuple[str, int, int]], horizon: int
) -> None:
    samples, fact = make_samples(RING, WIDTH), np.full(FACTS * ENTRIES, -1)
    twin: list[dict[str, float | None]] = []
    now = 0
    for what, entry, ahead in made:
        now += ahead
        if what == "record":
            row = np.array([[0, 0], [now, entry]], np.float32)
            record(samples, fact, row, 1, entry, now, float(ahead))
            twin.append({"entry": entry, "time": now, "unit": ahead, "due": None})
        else:
            (resolve if what == "resolve" else lose)(
                *((samples, fact, entry, now) if what == "resolve" else (samples, fact, entry))
            )
            for sample in twin:
                if sample["entry"] == entry:
                    sample["entry"] = None
                    sample["due"] = now if what == "resolve" else None
    now += 3
    room = make_training(RING, WIDTH, 1)
    count = collect(samples, now, float(horizon), room, 0, RING, 0)
    expected = {}
    for sample in twin[-RING:]:
        assert sample["time"] is not None
        assert sample["unit"] is not None
        unit, age = sample["unit"], now - sample["time"]
        until = math.inf if sample["due"] is None else sample["due"] - sample["time"]
        watched = min(until, age, horizon * unit)
        weight = 0.5 ** (age / max(LATELY * unit, SHARE * now))
        expected[sample["time"]] = (watched / unit, float(until <= watched), weight)
    assert count == min(len(twin), RING)
    assert set(room.x[:count, 0].astype(int)) == set(expected)
    for i in range(count):
        found = room.time[i], room.used[i], room.weight[i]
        assert np.allclose(found, expected[int(room.x[i, 0])], rtol=1e-5)
