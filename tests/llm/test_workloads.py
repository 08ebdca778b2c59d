"""Generated requests: what their documentation says of them."""

import numpy as np
import pytest

from kvpredict.core.errors import KvpredictError
from kvpredict.llm.continuation import fit_continuation
from kvpredict.llm.hints import FINISH, degraded, hints_of
from kvpredict.llm.prefix import simulate_prefix
from kvpredict.llm.workloads import KINDS, MIXES, generate_requests


@pytest.mark.parametrize("mix", MIXES)
def test_every_mix_is_what_it_says(mix: str) -> None:
    trace = generate_requests(mix, requests=1500, seed=3)
    again = generate_requests(mix, requests=1500, seed=3)
    assert (trace.blocks == again.blocks).all()
    assert len(trace) == len(trace.texts) == 1500
    assert {KINDS[int(k)] for k in trace.hints["kind"]} == set(MIXES[mix])
    assert (trace.prompts == trace.input_tokens // trace.block_size).all()
    assert (np.diff(trace.starts) == (trace.input_tokens + trace.output_tokens) // trace.block_size).all()
    rate = len(trace) / (trace.times[-1] - trace.times[0])
    assert 0.5 < rate / 2.0 < 1.5  # jobs come in bursts
    reuse = simulate_prefix(trace, "lru", trace.unique).prefix_hit_ratio
    assert (reuse > 0.5) == (mix != "batch")


def test_a_turn_begins_with_all_of_the_one_before() -> None:
    trace = generate_requests("chat", requests=300, seed=1)
    before: dict[int, np.ndarray] = {}
    for i, session in enumerate(trace.sessions.tolist()):
        blocks = trace.blocks[trace.starts[i] : trace.starts[i + 1]]
        if session in before:
            assert (blocks[: len(before[session])] == before[session]).all()
        before[session] = blocks


def test_agents_end_in_tool_calls() -> None:
    finish = generate_requests("agent", requests=300).hints["finish"]
    assert (finish == FINISH.index("tool_calls")).mean() > 0.6


def test_text_tells_something_about_continuation() -> None:
    trace = generate_requests("mixed", requests=3000, seed=5)
    half = 1500
    model = fit_continuation(trace.texts[:half], trace.continued[:half], trace.hints["finish"][:half])
    guess = model.predict(trace.texts[half:], trace.hints["finish"][half:])
    truth = trace.continued[half : 2 * half]
    base = max(truth.mean(), 1 - truth.mean())
    assert ((guess > 0.5) == truth).mean() > base + 0.03
    hinted = model.hinted(trace)
    assert hinted.hints["continues"][half:].tolist() == pytest.approx(guess.tolist())
    assert model(trace.texts[half], trace.hints["finish"][half]) == pytest.approx(guess[0])


def test_degraded_hints_are_right_as_often_as_asked() -> None:
    trace = generate_requests("chat", requests=3000, seed=2)
    hint = degraded(trace, 0.8).hints["continues"]
    assert ((hint > 0.5) == trace.continued).mean() == pytest.approx(0.8, abs=0.02)
    assert set(np.round(hint, 6)) == {0.2, 0.8}
    with pytest.raises(KvpredictError, match=r"between 0\.5"):
        degraded(trace, 0.3)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"kvpredict": {"continue": 1}}, "Did you mean 'continues'"),
        ({"kvpredict": {"continues": 1.5}}, "between 0 and 1"),
        ({"kvpredict": {"ttl": "soon"}}, "must be a number"),
        ({"kvpredict": {"finish": 7}}, "between 0 and 3"),
        ({"kvpredict": {"ttl": [1]}}, "must be a number"),
        ({"priority": float("nan")}, "must be a number"),
        ({"kvpredict": 3}, "must be a mapping"),
    ],
)
def test_hints_that_are_mistakes(params: dict, message: str) -> None:
    with pytest.raises(KvpredictError, match=message):
        hints_of(params)


def test_hints_of_others_are_left_alone() -> None:
    assert hints_of({"do_remote_decode": True}) == hints_of(None) == {}
    assert hints_of({"continues": 0.25, "x": 1}) == {"continues": 0.25}


def test_texts_and_nothing_among_the_hints() -> None:
    same, other = (hints_of({"template": text})["template"] for text in ("rag-v2", "rag-v3"))
    assert hints_of({"kvpredict": {"template": "rag-v2", "ttl": None}}) == {"template": same}
    assert same != other
    assert np.float32(same) == same  # as the features hold it
    assert hints_of({"finish": "a reason of tomorrow"}) == {}


@pytest.mark.parametrize("arguments", [{"mix": "chats"}, {"requests": 0}, {"rate": -1.0}, {"block_size": 0}])
def test_generator_names_mistakes(arguments: dict) -> None:
    with pytest.raises(KvpredictError, match=r"mix|requests|rate|block_size"):
        generate_requests(**arguments)
