"""Whether something said once, at some depth of a long text, can still be found after eviction.

*Passkey*: a number among filler; *needle*: a made-up fact. The text is read, the cache evicts without having seen the
question, and then the question is asked: found is the answer that comes out greedily, token for token. Passkeys after
arXiv:2305.16300, needles after G. Kamradt's test.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kvpredict.core.errors import KvpredictError
from kvpredict.llm.decode.evaluate import Make
from kvpredict.llm.layers import check_positions

__all__ = ["KINDS", "Found", "retrieve"]

KINDS = ("passkey", "needle")
PLACES = ("Lisbon", "Oslo", "Quito", "Cairo", "Hanoi", "Perth", "Leeds", "Turin")
THINGS = ("violin", "lantern", "kettle", "compass", "ladder", "mirror", "pillow", "hammer")


class Found(NamedTuple):
    """One trial."""

    kind: str
    depth: float  # where it was said, 0 the beginning of the text and 1 its end
    full: bool  # found with everything kept
    kept: bool  # found after eviction


def retrieve(
    model: Any,
    tokenizer: Any,
    filler: Any,
    make: Make,
    *,
    kind: str = "passkey",
    depths: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    trials: int = 1,
    seed: int = 0,
) -> list[Found]:
    """Hide something in ``filler`` at each depth and ask for it, with everything kept and after eviction.

    Parameters
    ----------
    model, tokenizer
    filler : integer array [texts, tokens]
        Trials take them in turn; what is hidden replaces as many of their tokens.
    make : callable
        Makes the cache: ``make(ids, "prefill")``.
    kind : {"passkey", "needle"}
    depths : sequence of float, 0 to 1
    trials : int, default 1
        For each depth.
    seed : int, default 0
        Of numbers and facts.
    """
    import torch
    from transformers import DynamicCache

    if kind not in KINDS:
        raise KvpredictError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    for depth in depths:
        if not 0 <= depth <= 1:
            raise KvpredictError(f"depths must be from 0, the beginning of the text, to 1, its end, got {depth}")
    rng = np.random.default_rng(seed)
    out = []
    for depth in depths:
        for trial in range(trials):
            said, question, answer = _fact(kind, rng)
            told, asked, wanted = (
                tokenizer(t, add_special_tokens=False)["input_ids"] for t in (said, question, answer)
            )
            text = list(map(int, filler[trial % len(filler)]))
            at = int(depth * (len(text) - len(told)))
            if at < 0:
                raise KvpredictError(
                    f"a text of {len(text)} tokens has no room for the {len(told)} of a {kind} to be hidden in it"
                )
            check_positions(model, len(text) + len(asked) + len(wanted), f"asking for a {kind} after the text")
            text[at : at + len(told)] = told
            ids = torch.tensor([text], device=model.device)
            rest = torch.tensor([asked + wanted], device=model.device)
            found = []
            for cache in (DynamicCache(config=model.config), make(torch.cat([ids, rest], 1), "prefill")):
                with torch.no_grad():
                    model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                    logits = model(rest[:, :-1], past_key_values=cache, use_cache=True).logits
                chosen = logits[0, len(asked) - 1 :].argmax(-1)
                found.append(chosen.tolist() == wanted)
            out.append(Found(kind, float(depth), found[0], found[1]))
    return out


def _fact(kind: str, rng: np.random.Generator) -> tuple[str, str, str]:
    """Return what is said, what is asked, and the answer."""
    if kind == "passkey":
        number = str(rng.integers(10_000, 100_000))
        said = f"\nThe pass key is {number}. Remember it. {number} is the pass key.\n"
        return said, "\nWhat is the pass key? The pass key is", f" {number}"
    place, thing = str(rng.choice(PLACES)), str(rng.choice(THINGS))
    said = f"\nThe one thing to bring to {place} is a {thing}.\n"
    return said, f"\nQuestion: what should one bring?\nThe one thing to bring to {place} is a", f" {thing}"
