"""Random request traces: chains grown from earlier ones, so that prefixes are shared and forked; some with hints."""

import numpy as np
from hypothesis import strategies as st

from kvpredict.llm.requests import RequestTrace

HINTS = {
    "priority": [-1.0, 1.0],
    "ttl": [0.0, 1.0, 60.0],
    "pin_tokens": [1.0, 16.0, 17.0, 1e6],
    "pin_seconds": [0.0, 1.0, 60.0],
}


@st.composite
def request_traces(draw: st.DrawFn, most: int = 25, hinted: bool = False) -> RequestTrace:
    chains: list[list[int]] = []
    prompts, number, times, now = [], 0, [], 0.0
    for _ in range(draw(st.integers(1, most))):
        base = draw(st.sampled_from(chains)) if chains and draw(st.booleans()) else []
        base = base[: draw(st.integers(0, len(base)))]
        grown = draw(st.integers(0 if base else 1, 4))
        chains.append([*base, *range(number, number + grown)])
        number += grown
        prompts.append(draw(st.integers(0, len(chains[-1]))))
        now += draw(st.sampled_from([0.0, 0.1, 1.0, 50.0]))
        times.append(now)
    outputs = draw(st.lists(st.integers(0, 100), min_size=len(chains), max_size=len(chains)))
    tokens = [max(1, 16 * p - draw(st.integers(0, 15))) for p in prompts]
    hints = {
        name: np.array([draw(st.sampled_from([np.nan, *values])) for _ in chains])
        for name, values in HINTS.items()
        if hinted and draw(st.booleans())
    }
    return RequestTrace.from_lists(
        times, chains, 16, tokens, outputs, prompt_blocks=np.array(prompts, np.int64), hints=hints
    )
