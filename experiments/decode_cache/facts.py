"""Facts for training: plain text hardly ever asks for one thing said once, so some sequences are made to.

A sentence is put somewhere into the prefix, over what stood there, and asked for where the continuation begins. Words
and phrasing differ from those of ``kvpredict.llm.decode.retrieval``, by which policies are judged.
"""

from typing import Any

import numpy as np

__all__ = ["with_facts"]

PREFIX = 768
OWNERS = ("Mara", "the baker", "our neighbour", "Dr. Olsen", "the captain", "Priya", "the librarian", "Tom")
WHAT = ("locker", "bicycle", "room", "parcel", "file", "ticket", "suitcase", "desk")
COLOURS = ("green", "crimson", "silver", "purple", "orange", "white", "golden", "brown")


def with_facts(sequences: list[list[int]], tokenizer: Any, share: float, seed: int = 0) -> list[list[int]]:
    """Return the sequences, a ``share`` of them with two or three facts said and asked for."""
    rng = np.random.default_rng(seed)
    out = []
    for tokens in sequences:
        tokens = list(tokens)
        if rng.random() < share:
            at = PREFIX
            for place in rng.choice(9, size=int(rng.integers(2, 4)), replace=False):
                said, asked = _fact(rng)
                told = tokenizer.encode(said, add_special_tokens=False)
                question = tokenizer.encode(asked, add_special_tokens=False)
                start = 8 + int(place) * 80 + int(rng.integers(0, 30))
                tokens[start : start + len(told)] = told
                tokens[at : at + len(question)] = question
                at += len(question)
        out.append(tokens)
    return out


def _fact(rng: np.random.Generator) -> tuple[str, str]:
    owner, what = str(rng.choice(OWNERS)), str(rng.choice(WHAT))
    if rng.random() < 0.6:
        number = int(rng.integers(100, 1_000_000))
        return f"\nThe number of {owner}'s {what} is {number}.\n", f"\nThe number of {owner}'s {what} is {number}.\n"
    colour = str(rng.choice(COLOURS))
    return f"\n{owner}'s {what} is {colour}.\n", f"\nWhat colour is it? {owner}'s {what} is {colour}.\n"
