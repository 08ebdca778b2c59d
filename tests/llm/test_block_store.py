"""Whatever is raised, and wherever: nothing stays pinned, no slot is lost, and no block is served that is not whole."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import kvpredict
from kvpredict.core.errors import KvpredictError

torch = pytest.importorskip("torch", reason="needs the LLM packages")
transformers = pytest.importorskip("transformers", reason="needs the LLM packages")

from kvpredict.llm.prefix.policies.learned import Learned  # noqa: E402
from kvpredict.llm.prefix_cache import PrefixCache  # noqa: E402
from kvpredict.llm.states import StateCache  # noqa: E402

pytestmark = pytest.mark.llm

HERE = str(Path(kvpredict.__file__).parent / "llm")
Caches = PrefixCache | StateCache


class Struck(BaseException):
    """As KeyboardInterrupt: from outside, at any moment."""


@contextmanager
def struck(line: int, opcodes: bool = False) -> Iterator[list[int]]:
    """Raise before line number ``line``, from 1, of what runs of this package; yields the count, in a list."""
    count = [0]

    def at_line(frame: FrameType, event: str, _: Any) -> Any:
        frame.f_trace_opcodes = opcodes
        if event == ("opcode" if opcodes else "line"):
            count[0] += 1
            if count[0] == line:
                raise Struck
        return at_line

    def at_call(frame: FrameType, event: str, argument: Any) -> Any:
        return at_line(frame, event, argument) if frame.f_code.co_filename.startswith(HERE) else None

    before = sys.gettrace()
    sys.settrace(at_call)
    try:
        yield count
    finally:
        sys.settrace(before)


@contextmanager
def failing(name: str, call: int) -> Iterator[list[int]]:
    """Let call number ``call``, from 1, of a method of tensors fail as where memory runs out; yields the count."""
    count, real = [0], getattr(torch.Tensor, name)

    def fail(*args: Any, **named: Any) -> Any:
        count[0] += 1
        if count[0] == call:
            raise torch.OutOfMemoryError("for the test")
        return real(*args, **named)

    setattr(torch.Tensor, name, fail)
    try:
        yield count
    finally:
        setattr(torch.Tensor, name, real)


def check(cache: Caches) -> None:
    """Nothing is pinned, and index, tables and pool agree."""
    index, store = cache.index, cache.store
    assert not index.in_progress
    assert not index.pool.running.any()
    for tier, capacity in enumerate((index.capacity, index.host_capacity)):
        held = np.flatnonzero(index.pool.resident[:, tier]).tolist() if tier < index.tiers else []
        assert sorted(store.slot[tier]) == held
        if tier < index.tiers:
            assert index.pool.used[tier] == len(held)
            children = np.bincount(index.pool.parent[held][index.pool.parent[held] >= 0], minlength=len(index.hash))
            assert index.pool.children[:, tier].tolist() == children.tolist()
            heaps = index.policy.traits.heaps
            listed = (index.pool.place[tier * heaps : (tier + 1) * heaps] >= 0).any(axis=0)  # what may be evicted
            assert np.flatnonzero(listed).tolist() == [node for node in held if not children[node]]
        assert sorted([*store.slot[tier].values(), *store.pool.free[tier]]) == list(range(capacity))


def tiny() -> "transformers.PreTrainedModel":
    config = transformers.LlamaConfig(
        vocab_size=31, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=64,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model() -> "transformers.PreTrainedModel":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return tiny()


A, B, C = [1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [1, 2, 11, 12, 13]


class Prompts:
    """A PrefixCache over some blocks in both tiers, and one call that moves all ways between them."""

    def __init__(self, model: "transformers.PreTrainedModel", policy: Any) -> None:
        self.model = model
        self.cache = PrefixCache(model, 3, host_capacity=2, block_size=2, policy=policy, background=False)
        for prompt in (A, A, B, C):
            self.cache.generate([prompt], 1)

    def call(self) -> None:
        self.cache.generate([B, A], 2)

    def right(self) -> None:
        for prompt in (A, B, C, A):
            answer = self.cache.generate([prompt], 1, keep_logits=True)[0]
            with torch.inference_mode():
                wanted = self.model(torch.tensor([prompt])).logits[0, -1:]
            torch.testing.assert_close(answer.logits, wanted, rtol=1e-5, atol=1e-5)


class States:
    """The same with a StateCache."""

    def __init__(self, _: object, policy: Any) -> None:
        torch.manual_seed(1)
        self.rnn, self.table = torch.nn.LSTM(3, 4, batch_first=True).eval(), torch.nn.Embedding(31, 3)
        self.cache = StateCache(self.rnn, self.table, 3, host_capacity=2, block_size=2, policy=policy)
        for prompt in (A, A, B, C):
            self.cache.run(prompt)

    def call(self) -> None:
        self.cache.run(B)

    def right(self) -> None:
        for prompt in (A, B, C, A):
            out, state = self.cache.run(prompt)
            with torch.inference_mode():
                wanted, after = self.rnn(self.table(torch.tensor([prompt])))
            torch.testing.assert_close(out, wanted[:, -out.shape[1] :])
            torch.testing.assert_close(state, after)


MOVES = [(Prompts, "lru"), (Prompts, "lfu"), (Prompts, Learned(every=0.0)), (States, "lru"), (States, "lfu")]
every_way = pytest.mark.parametrize(("kind", "policy"), MOVES, ids=lambda v: getattr(v, "__name__", None) or str(v)[:7])


@every_way
def test_an_interrupt_at_any_line_leaves_nothing_behind(
    model: "transformers.PreTrainedModel", kind: Any, policy: Any
) -> None:
    line, done = 0, False
    while not done:
        line += 1
        host = kind(model, policy)
        try:
            with struck(line) as count:
                host.call()
            done = True
        except Struck:
            check(host.cache)
        host.right()
        check(host.cache)
    assert line == count[0] + 1 > 100


@every_way
@pytest.mark.parametrize("operation", ["copy_", "index_select", "to", "transpose", "__getitem__"])
def test_no_memory_in_any_copy_leaves_nothing_behind(
    model: "transformers.PreTrainedModel", kind: Any, policy: Any, operation: str
) -> None:
    call, done = 0, False
    while not done:
        call += 1
        host = kind(model, policy)
        try:
            with failing(operation, call):
                host.call()
            done = True
        except torch.OutOfMemoryError:
            check(host.cache)
        host.right()
        check(host.cache)
    assert call > 1 or (operation == "transpose" and kind is States)


@pytest.mark.parametrize("policy", ["lru", "lfu"])
def test_an_interrupt_while_an_error_is_put_right_leaves_nothing_behind(
    model: "transformers.PreTrainedModel", policy: Any
) -> None:
    line, done = 0, False
    while not done:
        line += 1
        host = Prompts(model, policy)
        with failing("argmax", 2):  # the second prompt's, when the first has been stored
            try:
                with struck(line):
                    host.call()
            except Struck:
                pass
            except torch.OutOfMemoryError:
                done = True
        host.right()  # puts the rest right
        check(host.cache)


def test_an_error_costs_only_what_is_not_whole(model: "transformers.PreTrainedModel") -> None:
    cache = PrefixCache(model, 8, block_size=2)
    cache.generate([A, B], 1)
    with failing("argmax", 1), pytest.raises(torch.OutOfMemoryError):
        cache.generate([C], 1)
    with failing("copy_", 1), pytest.raises(torch.OutOfMemoryError):
        cache.generate([C], 1)
    assert [answer.cached_tokens for answer in cache.generate([A, B, C], 1)] == [4, 4, 2]


def test_a_call_from_within_another_is_refused(model: "transformers.PreTrainedModel") -> None:
    cache = PrefixCache(model, 8, block_size=2)
    hook = model.register_forward_pre_hook(lambda *_: cache.generate([B], 1) and None)
    with pytest.raises(KvpredictError, match="from within another call"):
        cache.generate([A], 1)
    hook.remove()
    check(cache)
    table = torch.nn.Embedding(31, 3)
    states = StateCache(torch.nn.GRU(3, 4, batch_first=True), lambda ids: states.clear() or table(ids), 8)
    with pytest.raises(KvpredictError, match="from within another call"):
        states.run(A)
    check(states)


def test_threads_take_turns_at_a_state_cache() -> None:
    torch.manual_seed(1)
    rnn, table = torch.nn.GRU(3, 4, batch_first=True).eval(), torch.nn.Embedding(31, 3)
    cache = StateCache(rnn, table, 5, host_capacity=2, block_size=2)
    wrong: list[object] = []

    def ask(seed: int) -> None:
        draw = np.random.default_rng(seed)
        for _ in range(100):
            text = [*(A, B, C)[draw.integers(3)], *draw.integers(0, 31, draw.integers(5)).tolist()]
            try:
                out, _ = cache.run(text)
                with torch.inference_mode():
                    torch.testing.assert_close(out[:, -1], rnn(table(torch.tensor([text])))[0][:, -1])
            except Exception as error:
                wrong.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []
    check(cache)


@pytest.mark.parametrize("policy", ["lru", "arc", "s3fifo", Learned(every=0.0)], ids=lambda v: str(v)[:7])
def test_cleared_caches_serve_the_new_weights(policy: Any) -> None:
    torch.manual_seed(2)
    model = tiny()
    prompts, states = Prompts(model, policy), States(None, policy)
    seen = prompts.cache.index.pool.touches.sum()
    for host, weights in ((prompts, model), (states, states.rnn)):
        host.right()
        with torch.no_grad():
            for weight in weights.parameters():
                weight.add_(torch.randn_like(weight))
        host.cache.clear()
        check(host.cache)
        assert len(host.cache.index) == 0 == len(host.cache.store.slot[1])
        host.right()
        assert len(host.cache.index) == 3
        check(host.cache)
    assert prompts.cache.index.pool.touches.sum() > seen  # what is known of the requests stays
