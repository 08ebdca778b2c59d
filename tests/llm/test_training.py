"""Training beside a live index: nobody waits for it, and its model is adopted between two requests."""

import itertools
import logging
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kvpredict.cache.background import Background
from kvpredict.llm.prefix import simulate_prefix
from kvpredict.llm.prefix.index import PrefixIndex
from kvpredict.llm.prefix.model import Model
from kvpredict.llm.prefix.policies.learned import Learned
from kvpredict.llm.prefix.training import Training
from kvpredict.llm.prefix.turns import Turns
from kvpredict.llm.requests import RequestTrace
from kvpredict.llm.workloads import generate_requests
from kvpredict.scorers.trees import Node, make_trees
from tests.llm.test_simulate import check_pool

TRACE = generate_requests("chat", requests=500, seed=4, block_size=128)


def serve(index: PrefixIndex, trace: RequestTrace, first: int, last: int) -> None:
    for i in range(first, last):
        low, middle, high = trace.starts[i], trace.starts[i] + trace.prompts[i], trace.starts[i + 1]
        now = float(trace.times[i])
        ticket, *_ = index.begin(trace.blocks[low:middle].tolist(), int(trace.input_tokens[i]), now=now)
        index.end(ticket, trace.blocks[middle:high].tolist(), int(trace.output_tokens[i]), now=now)


def test_requests_go_on_while_it_trains_and_adopt_its_model_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    fitted = Learned.fitted

    def held_up(self: Learned, *arguments: Any) -> Model | None:
        begun.set()
        assert go_on.wait(60)
        return fitted(self, *arguments)

    monkeypatch.setattr(Learned, "fitted", held_up)
    index = PrefixIndex(300, Learned(every=60.0, first=100))
    trees = index.state.trees
    serve(index, TRACE, 0, 250)
    assert begun.wait(60)
    serve(index, TRACE, 250, 300)  # the first training is still held up
    assert index.state.trees is trees
    go_on.set()
    index.training.join()
    assert index.state.trees is trees  # adopted by the caller's thread alone
    serve(index, TRACE, 300, 301)
    assert index.state.trees is not trees
    assert index.state.ready[0] == 1
    caches = len(index.pool.used)
    assert len(index._stale) == caches - 1  # each request has one of them ranked anew
    serve(index, TRACE, 301, 300 + caches)
    assert index._stale == []
    serve(index, TRACE, 300 + caches, 400)
    check_pool(index.pool, 1)


def test_without_a_thread_runs_are_repeatable_and_equal_to_a_model_adopted_at_once() -> None:
    hits = []
    for _ in range(2):
        index = PrefixIndex(300, Learned(every=60.0, first=100), background=False)
        serve(index, TRACE, 0, len(TRACE))
        assert index.state.ready[0] == 1
        assert index._stale == []
        hits.append(index.hits[: len(TRACE), 0].copy())
    assert (hits[0] == hits[1]).all()


@pytest.mark.parametrize("live", [False, True])
def test_a_quiet_server_trains_by_what_is_new_and_not_by_the_clock(live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    known = []
    fitted = Learned.fitted

    def noted(self: Learned, turns: Turns, *rest: Any) -> Model | None:
        known.append(int(turns.tally[0]))
        return fitted(self, turns, *rest)

    monkeypatch.setattr(Learned, "fitted", noted)
    trace = replace(TRACE, times=200.0 * np.arange(len(TRACE)))  # between two requests it is time to train
    policy = Learned(every=120.0, first=100, growth=0.2, rounds=5)
    if live:
        serve(PrefixIndex(300, policy, background=False), trace, 0, len(trace))
    else:
        simulate_prefix(trace, policy, 300)
    assert 100 <= known[0] < 120
    assert all(1.2 * a <= b < 1.2 * a + 20 for a, b in itertools.pairwise(known))
    assert known[-1] > 1000


def test_once_its_memory_is_full_a_share_of_that_must_be_new() -> None:
    policy = Learned(rows=1024, growth=0.1)
    turns = policy.state(10, 5, 10).turns
    turns.tally[0] = 499
    assert not policy.grown(turns, 0)
    turns.tally[0] = 50_102
    assert not policy.grown(turns, 50_000)
    turns.tally[0] = 50_103
    assert policy.grown(turns, 50_000)


@pytest.mark.parametrize("background", [True, False])
def test_an_error_in_training_is_logged_and_ends_training_only(
    background: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(Learned, "fitted", failing)
    index = PrefixIndex(300, Learned(every=60.0, first=100), background=background)
    with caplog.at_level(logging.ERROR, "kvpredict.llm"):
        serve(index, TRACE, 0, 300)
        index.training.join()
        serve(index, TRACE, 300, 500)
        index.training.join()
    assert index.training.failed
    assert sum("trains no more" in record.message for record in caplog.records) == 1
    assert len(index) == 300


def test_an_index_that_is_gone_is_not_trained() -> None:
    training = Training(Learned(every=1.0), True)
    turns = Learned().state(10, 5, 10).turns
    assert training.turn(turns, 0.0) is None
    training.turn(turns, 2.0)
    training.join()
    assert training.turn(turns, 2.5) is None  # too little to learn from


def test_train_at_once_ranks_all_anew() -> None:
    index = PrefixIndex(300, Learned(every=0.0, first=100))
    serve(index, TRACE, 0, 300)
    assert index.training is not None
    assert not np.asarray(index.state.ready)[0]
    assert index.train(float(TRACE.times[300]))
    assert index.state.ready[0] == 1
    assert not PrefixIndex(3, "lru").train()
    assert not PrefixIndex(3, Learned(model=Model(make_trees([Node(value=-1.0)])))).train(0.0)


def test_a_training_that_is_over_before_its_submission_returns_does_not_end_all_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    thread = Background(1)
    submit = thread.submit

    def slow(job: Any, *arguments: Any) -> bool:
        taken = submit(job, *arguments)
        thread.join()
        return taken

    monkeypatch.setattr(thread, "submit", slow)
    monkeypatch.setattr("kvpredict.llm.prefix.training._thread", thread)
    index = PrefixIndex(300, Learned(every=30.0, first=400))
    serve(index, TRACE, 0, 50)  # trainings are due, and too few rows for them
    assert index.state.ready[0] == 0
    assert not index.training._busy
    serve(index, TRACE, 50, 400)
    assert index.state.ready[0] == 1
