"""The ring of samples against a twin that keeps lists."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvpredict.features.samples import SOFT, collect, lose, make_samples, record, resolve
from tests.strategies import THOROUGH

ENTRIES, RING, WIDTH = 4, 5, 2

steps = st.lists(
    st.tuples(st.sampled_from(["record", "resolve", "lose"]), st.integers(0, ENTRIES - 1), st.integers(1, 9)),
    max_size=60,
)


@THOROUGH
@given(steps, st.integers(1, 40))
def test_labels_are_the_times_to_the_next_access(made: list[tuple[str, int, int]], horizon: int) -> None:
    samples = make_samples(RING, WIDTH, ENTRIES)
    twin: list[dict[str, float | None]] = []
    now = 0
    for what, entry, ahead in made:
        now += ahead
        if what == "record":
            row = np.array([[0, 0], [now, entry]], np.float32)
            record(samples, row, 1, entry, now, float(ahead))
            twin.append({"entry": entry, "time": now, "unit": ahead, "due": None})
        else:
            (resolve if what == "resolve" else lose)(
                *((samples, entry, now) if what == "resolve" else (samples, entry))
            )
            for sample in twin:
                if sample["entry"] == entry:
                    sample["entry"] = None
                    sample["due"] = now if what == "resolve" else None
    now += 3
    x, y = np.zeros((RING, WIDTH), np.float32), np.zeros(RING, np.float32)
    count = collect(samples, now, float(horizon), x, y, 0, len(x), 0)
    expected = {}
    for sample in twin[-RING:]:
        assert sample["time"] is not None
        assert sample["unit"] is not None
        if sample["time"] + horizon <= now:
            distance = horizon if sample["due"] is None else min(horizon, sample["due"] - sample["time"])
            soft = SOFT * sample["unit"]
            expected[sample["time"]] = math.log1p(distance + soft) - math.log1p(sample["unit"] + soft)
    assert {float(t): 0 for t in x[:count, 0]}.keys() == {float(t): 0 for t in expected}.keys()
    for i in range(count):
        assert math.isclose(y[i], expected[int(x[i, 0])], abs_tol=1e-5)
