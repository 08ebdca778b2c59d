"""What a causal LM keeps of a text, asked of the model itself: the keys and values in its cache, cut and joined.

Configurations name heads and widths in many ways, and some do not say what is in the cache: one head for all queries,
keys wider than values. So a probe of a few tokens tells the layout. The same probe shows whether the model may be
served from a cache at all: read in pieces, the first of them through blocks cut out and joined again, it must have the
logits that it has of the whole. Models that see later tokens, or count positions in their own way, do not.
"""

import math
from collections.abc import Sequence
from typing import Any

from kvpredict.core.errors import KvpredictError
from kvpredict.llm.kv_pool import Part, torch_module

__all__ = ["cut", "forward", "joined", "new_cache", "parts_of"]

TOKENS, BLOCK = 8, 2  # of a probe, which is read as two blocks, three tokens and one
NOISE = 30  # times as much as rounding is seen to do, where that is more than the dtype lets expect


def new_cache() -> Any:
    """Return an empty cache, which gets its layers as a model fills them: a configuration may count an encoder's."""
    from transformers import DynamicCache

    return DynamicCache()


def forward(model: Any, tokens: Sequence[int], cache: Any, last: int = 1) -> Any:
    """Read the tokens that follow those in the cache; return the logits of the last ones, ``[last, vocabulary]``.

    ``last=0`` is for all of them.
    """
    torch = torch_module()
    ids = torch.tensor([tokens], device=model.device)
    seen = cache.get_seq_length()
    positions = torch.arange(seen, seen + len(tokens), device=model.device)[None]
    out = model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=last)
    return out.logits[0, -last:]


def cut(cache: Any, start: int, stop: int) -> list[Any]:
    """Return views of the keys and values of tokens ``start … stop - 1``: for each layer two ``[H, tokens, D]``."""
    return [held[0, :, start:stop] for layer in cache.layers for held in (layer.keys, layer.values)]


def joined(blocks: Sequence[Any]) -> Any:
    """Return a cache of the text whose blocks follow each other in each tensor, ``[blocks, H, size, D]``."""
    cache = new_cache()
    texts = [part.transpose(0, 1).flatten(1, 2)[None] for part in blocks]  # [1, H, tokens, D]
    for layer, (keys, values) in enumerate(zip(texts[::2], texts[1::2], strict=True)):
        cache.update(keys, values, layer)
    return cache


def parts_of(model: Any, size: int, who: str) -> list[Part]:
    """Return what the keys and values of ``size`` tokens are like, layer by layer, by a probe of a few tokens.

    Raises
    ------
    KvpredictError
        For a model that does not read tokens with such a cache, or has other logits with it; ``who`` is named in it.
    """
    torch = torch_module()
    refusal = f"{who} cannot serve the model type {model.config.model_type!r}"
    try:
        with torch.inference_mode():
            block, off = _probe(model)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a model raises that is called in a way it does not know
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        raise KvpredictError(f"{refusal}: it does not read tokens with a cache of keys and values ({told})") from error
    if off:
        raise KvpredictError(
            f"{refusal}: read in pieces, {TOKENS} tokens have other logits than read at once, by {off:.2g} of their "
            "spread. It may see later tokens (is_decoder=False), or count positions in a way of its own"
        )
    return [Part((part.shape[0], size, part.shape[2]), part.dtype, part.device) for part in block]


def _probe(model: Any) -> tuple[list[Any], float]:
    """Return the keys and values of a block, and how far off the logits are in pieces: 0 where rounding explains it."""
    tokens = _tokens(model)
    offs = []
    # Where a model chooses experts, rounding may tip a choice; it hardly does so in two texts.
    for text in (tokens, tokens[::-1]):
        block, found = _in_pieces(model, text)
        offs.append(_off(found, _logits(model, [text])[0]))
        if offs[-1] <= math.sqrt(torch_module().finfo(model.dtype).eps):
            return block, 0.0
    # What other kernels make of the same numbers may be more than the dtype tells, as with TF32 or quantised weights.
    rounding = _off(_logits(model, [tokens[:1]])[0], _logits(model, [[token] for token in tokens])[0])
    return block, 0.0 if min(offs) <= NOISE * rounding else min(offs)


def _tokens(model: Any) -> list[int]:
    """Return tokens from all over the vocabulary."""
    vocabulary = int(model.get_input_embeddings().num_embeddings)
    return [(2 * k + 1) * vocabulary // (2 * TOKENS) for k in range(TOKENS)]


def _in_pieces(model: Any, tokens: Sequence[int]) -> tuple[list[Any], Any]:
    """Return the first block's keys and values, and the logits of the tokens, ``[TOKENS, vocabulary]``."""
    torch = torch_module()
    first = new_cache()
    logits = [forward(model, tokens[: 2 * BLOCK], first, 0)]
    if first.get_seq_length() != 2 * BLOCK:
        raise ValueError(f"{2 * BLOCK} tokens read leave {first.get_seq_length()} in it")
    blocks = [cut(first, start, start + BLOCK) for start in (0, BLOCK)]
    for part in blocks[0]:
        if part.ndim != 3 or part.shape[1] != BLOCK:
            raise ValueError(f"{BLOCK} tokens are {tuple(part.shape)} in it, not [heads, {BLOCK}, width]")
    cache = joined([torch.stack(parts) for parts in zip(*blocks, strict=True)])
    for piece in (tokens[2 * BLOCK : -1], tokens[-1:]):
        logits.append(forward(model, piece, cache, 0))
    return blocks[0], torch.cat(logits)


def _logits(model: Any, texts: Sequence[Sequence[int]]) -> Any:
    """Return what the model makes of texts of one length by itself, ``[texts, tokens, vocabulary]``."""
    return model(input_ids=torch_module().tensor(texts, device=model.device)).logits


def _off(found: Any, wanted: Any) -> float:
    """Return the distance of logits ``[t, vocabulary]``, at the worst token and as a share of their spread there."""
    found, wanted = (x.double().nan_to_num(0.0, 0.0, 0.0) for x in (found, wanted))
    wanted = wanted - wanted.mean(dim=-1, keepdim=True)
    found = found - found.mean(dim=-1, keepdim=True)
    spread = wanted.norm(dim=-1).clamp_min(1e-300)
    return float(((found - wanted).norm(dim=-1) / spread).max())
