"""The slow, obvious decode cache: one head of one sequence, a list of tokens, attention by the textbook.

``Spy`` records what arrives in each layer of a real run; ``replay`` lets the twin decide on the same tokens. It knows
nothing of slots, groups, padding, masks or masks' absence.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from kvpredict.llm.decode.policy import QUERY, Arrival, DecodePolicy


@dataclass
class Token:
    position: int
    key: np.ndarray
    value: np.ndarray
    told: float = 0.0  # what the policy remembers


def spied(policy: DecodePolicy, seen: dict[int, list[Arrival]]) -> DecodePolicy:
    """Return the same policy, which also notes all arrivals by layer in ``seen``."""
    base = type(policy)

    class Spy(base):  # type: ignore[misc, valid-type]
        needs = base.needs | {QUERY}

        def arrive(self, new: Arrival) -> Any:
            seen.setdefault(new.layer, []).append(new)
            return super().arrive(new)

    return Spy(**{f.name: getattr(policy, f.name) for f in fields(policy)})  # type: ignore[arg-type]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def unit(x: np.ndarray) -> np.ndarray:
    return x / max(float(np.linalg.norm(x)), 1e-12)


def signed(x: int) -> int:
    """Return what 64 bits hold of ``x``."""
    return (x + (1 << 63)) % (1 << 64) - (1 << 63)


def hashed(position: int, head: int, layer: int, seed: int = 0) -> float:
    salt = head * 1_000_003 + layer * 998_244_353 + seed * 2_147_483_659
    x = signed(position * 0x1E3779B97F4A7C15 + salt)
    x = signed((x ^ (x >> 29)) * 0x3F58476D1CE4E5B9)
    return float((x >> 40) & 0xFFFFFF)


def scores(name: str, held: list[Token], layer: int, head: int) -> list[float]:
    """Return how much each held token is worth."""
    if name == "window":
        return [float(t.position) for t in held]
    if name == "random":
        return [hashed(t.position, head, layer) for t in held]
    if name == "keynorm":
        return [-float(np.linalg.norm(t.key)) for t in held]
    if name == "keydiff":
        mean = unit(np.sum([unit(t.key) for t in held], axis=0))
        return [-float(unit(t.key) @ mean) for t in held]
    if name == "snapkv":
        ordered = sorted(held, key=lambda t: t.position)
        told = [t.told for t in ordered]
        pooled = {t.position: float(np.mean(told[max(0, i - 2) : i + 3])) for i, t in enumerate(ordered)}
        return [pooled[t.position] for t in held]
    assert name in ("h2o", "tova"), name
    return [t.told for t in held]


def note(name: str, held: list[Token], weights: list[np.ndarray], columns: int) -> None:
    """Let the policy remember the attention of a block: for each query, the weights [G, held]."""
    for i, token in enumerate(held):
        got = [w[:, i] for w in weights]
        if name == "h2o":
            token.told += float(np.sum(got))
        elif name == "tova":
            token.told = float(np.mean(got[-1]))
        elif name == "snapkv":
            queries = min(columns, 32)
            token.told = token.told * (1 - queries / 32) + float(np.sum(got[-queries:]))


def replay(
    name: str,
    arrivals: list[Arrival],
    sequence: int,
    head: int,
    *,
    slots: int,
    sinks: int,
    recent: int,
    interval: int,
    window: int | None = None,
    grows_after_prompt: bool = False,
) -> tuple[list[int], list[np.ndarray]]:
    """Return the positions held at the end, and what each real query read, arrays [G, D]."""
    held: list[Token] = []
    queue: list[int] = []
    outputs = []
    layer = arrivals[0].layer

    def ranked(among: list[Token], now: int, reader: int) -> list[int]:
        """Return indices, the first to go first."""
        worth = scores(name, among, layer, head)
        for i, t in enumerate(among):
            if t.position < sinks or t.position >= now - recent:
                worth[i] = np.inf
            if window is not None and t.position <= reader - window:
                worth[i] = -np.inf
        return sorted(range(len(among)), key=lambda i: worth[i])

    for step, arrival in enumerate(arrivals):
        assert arrival.query is not None
        new, queries = [], []
        for t, position in enumerate(arrival.position[sequence].tolist()):
            if position >= 0:
                key, value = (x[sequence, head, t].double().numpy() for x in (arrival.key, arrival.value))
                new.append(Token(position, key, value))
                queries.append((position, arrival.query[sequence, head, :, t].double().numpy()))  # [G, D]
        columns = arrival.position.shape[1]
        evicts = not grows_after_prompt or step == 0
        now = new[-1].position + 1 if new else 0
        if evicts and columns == 1 and new and len(held) >= slots:
            if not queue:
                queue = ranked(held, now, now - 1)[:interval]
            held[queue.pop(0)] = new[0]
        else:
            held = held + new
        weights = []
        for position, query in queries:
            logits = query @ np.array([t.key for t in held]).T / np.sqrt(query.shape[-1])  # [G, held]
            for i, t in enumerate(held):
                if t.position > position or (window is not None and t.position <= position - window):
                    logits[:, i] = -np.inf
            weights.append(np.array([softmax(row) for row in logits]))
            outputs.append(weights[-1] @ np.array([t.value for t in held]))
        if weights:
            note(name, held, weights, columns)
        if evicts and len(held) > slots:
            stays = sorted(ranked(held, now, now)[len(held) - slots :])
            held, queue = [held[i] for i in stays], []
        elif columns > 1:
            queue = []
    return sorted(t.position for t in held), outputs


def to_tensor(outputs: list[np.ndarray]) -> torch.Tensor:
    """Return [queries, G, D]."""
    return torch.tensor(np.array(outputs)).float()
