"""Hints from text: learned from what came before, and from nothing else."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvpredict.core.errors import KvpredictError
from kvpredict.llm.continuation import with_continuation
from kvpredict.llm.request_files import read_requests
from kvpredict.llm.requests import RequestTrace
from kvpredict.llm.workloads import generate_requests


def chat_log(path: Path, sessions: int = 200) -> Path:
    """Write chats of one to five turns, 10 s apart, whose last message says so."""
    rng = np.random.default_rng(0)
    lines = []
    for s in range(sessions):
        messages = []
        turns = int(rng.integers(1, 6))
        for t in range(turns):
            text = f"question {rng.integers(1000)}" if t < turns - 1 else f"thanks {rng.integers(1000)}"
            messages = [*messages, {"role": "user", "content": text}]
            lines.append({"created": 7 * s + 10 * t, "messages": messages, "session_id": s})
    lines.sort(key=lambda line: line["created"])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_chat_log_teaches_the_hint(tmp_path: Path) -> None:
    trace = read_requests(chat_log(tmp_path / "chat.jsonl"), tokenize=str.encode, texts=True)
    half = len(trace) // 2
    hinted, taught = with_continuation(trace, half)
    hint = hinted.hints["continues"]
    assert ((hint[half:] > 0.5) == trace.continued[half:]).mean() > 0.97
    assert half - 10 < taught < half


def test_what_comes_later_is_not_looked_at() -> None:
    trace = generate_requests("chat", requests=300, seed=3)
    hint = with_continuation(trace, 150)[0].hints["continues"][:150]
    for changed in (
        replace(trace, sessions=np.where(np.arange(300) < 150, trace.sessions, -1)),
        trace.part(0, 150),
        replace(trace, texts=[*trace.texts[:150], *["other"] * 150]),
    ):
        assert (with_continuation(changed, 150)[0].hints["continues"][:150] == hint).all()


def test_turns_that_may_still_come_teach_nothing() -> None:
    # Sessions go on after 100 s; of those that began last that cannot be known yet.
    times = np.arange(200.0)
    trace = RequestTrace.from_lists(times, [[1]] * 200, 16, sessions=np.arange(200) % 100, texts=["a"] * 200)
    with pytest.raises(KvpredictError, match="needs 20 texts and more, as many answers, and both answers"):
        with_continuation(trace, 200)
    uneven = replace(trace, sessions=np.where(np.arange(200) % 3 == 0, np.arange(200) + 1000, np.arange(200) % 100))
    assert with_continuation(uneven, 200)[1] == 100


def test_what_a_client_says_holds() -> None:
    trace = generate_requests("chat", requests=400, seed=1)
    said = np.full(400, np.nan)
    said[7] = 0.125
    hint = with_continuation(trace.with_hints(continues=said), 300)[0].hints["continues"]
    assert hint[7] == 0.125
    assert np.isfinite(hint).all()


def test_traces_that_cannot_teach() -> None:
    trace = generate_requests("chat", requests=100)
    with pytest.raises(KvpredictError, match=r"chat carries no text: .*read_requests\(texts=True\)"):
        with_continuation(replace(trace, texts=None), 50)
    with pytest.raises(KvpredictError, match="nothing to train the predictor on"):
        with_continuation(trace, 0)


def test_what_the_docs_show_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "prefix_cache.md").read_text()
    (block,) = (found for found in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "with_continuation" in found)
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    assert re.match(r"learned from \d+ requests, right of (100|9\d)\.", capsys.readouterr().out)
