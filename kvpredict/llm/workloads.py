"""Generated LLM workloads: sessions of people, agents, searches and batches that share one server.

- ``chat``: a person talks. One of a few system prompts, then turns that each add a message and the answer before it.
  Think times are log-normal (median 45 s); after each turn the person goes on with a probability of their own, and the
  message tells a little of it: who is done tends to say so.
- ``agent``: a program loops. A long prompt of tools, then quick steps (median 4 s) that end in a tool call and append
  its result, until a final answer, after which a person may come back minutes later.
- ``rag``: a question over documents. A system prompt, then three documents drawn from a Zipf-like corpus, best first,
  then the question; one in five asks once more.
- ``batch``: a job of similar prompts, seconds apart: one template, then text never seen again. It floods the cache.

Arrivals of sessions are Poisson. Every request carries its session, a text, why it finished, its template and kind.
Blocks that generation filled are in the trace after those of the prompt.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvpredict.core.arguments import real_number, whole_number
from kvpredict.core.errors import KvpredictError, unknown_name
from kvpredict.llm.hints import FINISH
from kvpredict.llm.requests import RequestTrace

__all__ = ["KINDS", "MIXES", "generate_requests"]

KINDS = ("chat", "agent", "rag", "batch")
# Shares of the sessions. A mix of one kind has that kind's name.
MIXES = {kind: {kind: 1.0} for kind in KINDS} | {"mixed": {"chat": 0.55, "agent": 0.2, "rag": 0.2, "batch": 0.05}}

_ASK = ("How does the {} work here?", "Please rewrite the {} so that it is shorter.", "What about the {}?",
        "Could you compare the {} with the other one?", "Show me an example for the {}.")  # fmt: skip
_MORE = (
    "Then we look at the rest, first",
    "I will send the next part in a moment;",
    "Step one of several:",
    "And also,",
)
_DONE = ("Thanks, that is all.", "Perfect, nothing else.", "Great, bye.", "Only one last thing,")
_THINGS = ("contract", "query", "function", "invoice", "letter", "schedule", "test", "report", "recipe", "proof")


@dataclass
class _Turn:
    time: float
    added: tuple[tuple[int, int], ...]  # pieces of content: number, tokens
    output: int
    text: str
    finish: str


@dataclass
class _Session:
    kind: int
    template: int
    turns: list[_Turn] = field(default_factory=list)


class _Content:
    """Numbers pieces of text; what is shared has the same number."""

    def __init__(self) -> None:
        self.count = 0
        self.shared: dict[Any, tuple[int, int]] = {}

    def fresh(self, tokens: float) -> tuple[int, int]:
        self.count += 1
        return self.count, max(1, int(tokens))

    def known(self, name: Any, tokens: float) -> tuple[int, int]:
        if name not in self.shared:
            self.shared[name] = self.fresh(tokens)
        return self.shared[name]


def generate_requests(
    mix: str = "mixed", *, requests: int = 5000, rate: float = 2.0, block_size: int = 64, seed: int = 0
) -> RequestTrace:
    """Generate a trace of requests.

    Parameters
    ----------
    mix : {"mixed", "chat", "agent", "rag", "batch"}, default "mixed"
    requests : int, default 5000
    rate : float, default 2.0
        Requests a second, on average.
    block_size : int, default 64
        Tokens a block; only full blocks have ids.
    seed : int, default 0

    >>> generate_requests("chat", requests=100, seed=1)
    RequestTrace('chat', requests=100, blocks=1901, unique=747)
    """
    if mix not in MIXES:
        raise unknown_name("mix", mix, MIXES)
    requests, block_size = whole_number("requests", requests), whole_number("block_size", block_size)
    seed = whole_number("seed", seed, least=0)
    if not real_number("rate", rate) > 0:
        raise KvpredictError(f"rate must be above 0, got {rate!r}")
    rng = np.random.default_rng(seed)
    content = _Content()
    makers = {"chat": _chat, "agent": _agent, "rag": _rag, "batch": _batch}
    length = {"chat": 3.8, "agent": 8.5, "rag": 1.2, "batch": 40.0}  # turns of a session, about
    shares = MIXES[mix]
    per_second = rate / sum(share * length[kind] for kind, share in shares.items())  # sessions
    sessions: list[_Session] = []
    made, now = 0, 0.0
    # Sessions that began earlier still run when the trace ends, so more are made than are kept.
    while made < 1.5 * requests + 200:
        now += rng.exponential(1.0 / per_second)
        kind = str(rng.choice(list(shares), p=list(shares.values())))
        sessions.append(makers[kind](rng, content, now))
        made += len(sessions[-1].turns)
    return _assemble(sessions, requests, block_size, mix, {"mix": mix, "rate": rate, "seed": seed})


def _think(rng: np.random.Generator, median: float, spread: float) -> float:
    return float(np.exp(rng.normal(np.log(median), spread)))


def _chat(rng: np.random.Generator, content: _Content, start: float) -> _Session:
    template = int(rng.integers(4))
    session = _Session(0, template)
    going_on = rng.beta(3, 1.5)  # one's own habit
    now, added = start, [content.known(("chat", template), 300 + 250 * template)]
    while True:
        goes_on = rng.random() < going_on and len(session.turns) < 30
        says_so = rng.random() < 0.7
        hint = rng.choice(_MORE if goes_on == says_so else _DONE)
        message = rng.gamma(1.5, 120)
        output = int(rng.gamma(2.0, 130)) + 5
        text = f"{hint} {str(rng.choice(_ASK)).format(rng.choice(_THINGS))}"
        added.append(content.fresh(message))
        session.turns.append(_Turn(now, tuple(added), output, text, "stop" if rng.random() < 0.97 else "length"))
        if not goes_on:
            return session
        now += 2 + 0.02 * output + _think(rng, 45, 1.0)
        added = []


def _agent(rng: np.random.Generator, content: _Content, start: float) -> _Session:
    template = 10 + int(rng.integers(3))
    session = _Session(1, template)
    now, added = start, [content.known(("agent", template), 3000 + 900 * template), content.fresh(rng.gamma(2, 150))]
    while True:
        steps = int(rng.geometric(0.15))
        for step in range(steps):
            last = step == steps - 1
            output = int(rng.gamma(2.0, 60)) + 5
            text = f"tool result {rng.choice(_THINGS)} {'ok' if last else 'partial'}"
            session.turns.append(_Turn(now, tuple(added), output, text, "stop" if last else "tool_calls"))
            now += 1 + 0.02 * output + _think(rng, 4 if not last else 200, 0.8)
            added = [content.fresh(rng.gamma(1.2, 350))]
        if rng.random() < 0.7 or len(session.turns) > 60:
            return session


def _rag(rng: np.random.Generator, content: _Content, start: float) -> _Session:
    template = 20
    session = _Session(2, template)
    ranks = np.unique((400 * rng.random(3) ** 3).astype(int))
    documents = [content.known(("document", int(k)), 400 + 97 * (int(k) % 13)) for k in ranks]
    added = [content.known(("rag", template), 400), *documents, content.fresh(rng.gamma(2, 20))]
    text = str(rng.choice(_ASK)).format(rng.choice(_THINGS))
    output = int(rng.gamma(2, 90)) + 5
    session.turns.append(_Turn(start, tuple(added), output, text, "stop"))
    if rng.random() < 0.2:
        later = start + 2 + 0.02 * output + _think(rng, 30, 0.7)
        session.turns.append(_Turn(later, (content.fresh(rng.gamma(2, 20)),), int(rng.gamma(2, 90)) + 5, text, "stop"))
    return session


def _batch(rng: np.random.Generator, content: _Content, start: float) -> _Session:
    """One job; its requests share the template only, so each is a session of its own in the trace."""
    template = 30 + int(rng.integers(2))
    session = _Session(3, template)
    now = start
    for _ in range(int(rng.integers(20, 60))):
        added = (content.known(("batch", template), 200), content.fresh(rng.gamma(4, 500)))
        session.turns.append(_Turn(now, added, int(rng.gamma(2, 20)) + 2, "Summarise the following text.", "stop"))
        now += rng.exponential(0.7)
    return session


def _assemble(
    sessions: list[_Session], requests: int, block_size: int, name: str, info: dict[str, Any]
) -> RequestTrace:
    number: dict[tuple[int, tuple[tuple[int, int], ...]], int] = {}
    order = sorted(
        (turn.time, s, t) for s, session in enumerate(sessions) for t, turn in enumerate(session.turns)
    )[:requests]  # fmt: skip
    chains = [_Chain(block_size, number) for _ in sessions]
    rows = []
    for k, (_, s, t) in enumerate(order):
        session, turn = sessions[s], sessions[s].turns[t]
        batch = session.kind == KINDS.index("batch")
        chain = _Chain(block_size, number) if batch else chains[s]
        for piece in turn.added:
            chain.add(*piece)
        tokens, prompt = chain.tokens, len(chain.blocks)
        chain.add(-1 - s * 1000 - t, turn.output)
        rows.append((list(chain.blocks), tokens, prompt, len(sessions) + k if batch else s))
    turns = [(sessions[s], sessions[s].turns[t]) for _, s, t in order]
    return RequestTrace.from_lists(
        [time for time, _, _ in order],
        [row[0] for row in rows],
        block_size,
        [row[1] for row in rows],
        [turn.output for _, turn in turns],
        prompt_blocks=np.array([row[2] for row in rows], np.int64),
        sessions=np.array([row[3] for row in rows], np.int64),
        hints={
            "finish": np.array([FINISH.index(turn.finish) for _, turn in turns], np.float64),
            "template": np.array([session.template for session, _ in turns], np.float64),
            "kind": np.array([session.kind for session, _ in turns], np.float64),
        },
        texts=tuple(turn.text for _, turn in turns),
        name=name,
        info=info,
    )


class _Chain:
    """A session's tokens, told by pieces, cut into blocks; a block's number stands for all before it."""

    def __init__(self, block_size: int, number: dict[Any, int]) -> None:
        self.size, self.number = block_size, number
        self.blocks: list[int] = []
        self.tokens = 0
        self._open: list[tuple[int, int]] = []  # pieces in the block not yet full: number, offset
        self._parent = -1

    def add(self, piece: int, tokens: int) -> None:
        """Append a piece of text."""
        offset = 0
        while offset < tokens:
            self._open.append((piece, offset))
            step = min(tokens - offset, self.size - self.tokens % self.size)
            offset += step
            self.tokens += step
            if self.tokens % self.size == 0:
                key = (self._parent, tuple(self._open))
                self._parent = self.number.setdefault(key, len(self.number))
                self.blocks.append(self._parent)
                self._open = []
