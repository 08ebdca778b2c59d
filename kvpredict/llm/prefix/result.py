"""What a replay of requests measured, and the model of a server that turns hits into work and time."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvpredict.core.arguments import real_number
from kvpredict.core.errors import KvpredictError

__all__ = ["PrefixResult", "Server"]


@dataclass(frozen=True)
class Server:
    """How long a server takes; defaults are an 8-billion-parameter model in bf16 on one large accelerator.

    A prompt's prefill costs ``2 parameters`` FLOPs a token and ``4 layers width`` a pair of tokens, halved because
    attention is causal. Requests do not queue for each other: times are those of the work itself.

    Parameters
    ----------
    parameters : float, default 8e9
    layers : int, default 32
    width : int, default 4096
        Hidden size.
    flops : float, default 4e14
        FLOPs a second in prefill.
    decode_seconds : float, default 0.02
        Seconds a generated token; a request's blocks stay pinned until its last.
    kv_bytes : float, default 131072
        Bytes of KV a token.
    host_bandwidth : float, default 2.5e10
        Bytes a second from the host tier to the device.
    overhead_seconds : float, default 0.02
        Of each request, before its first token.
    """

    parameters: float = 8e9
    layers: int = 32
    width: int = 4096
    flops: float = 4e14
    decode_seconds: float = 0.02
    kv_bytes: float = 131072.0
    host_bandwidth: float = 2.5e10
    overhead_seconds: float = 0.02

    def __post_init__(self) -> None:
        for name in ("parameters", "layers", "width", "flops", "host_bandwidth"):
            if not real_number(f"Server: {name}", getattr(self, name)) > 0:
                raise KvpredictError(f"Server: {name} must be above 0, got {getattr(self, name)}")
        for name in ("decode_seconds", "kv_bytes", "overhead_seconds"):
            real_number(f"Server: {name}", getattr(self, name), least=0)

    def prefill_flops(self, tokens: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Return the FLOPs of a prefill of ``tokens`` of which the first ``known`` are cached."""
        pairs = (tokens.astype(float) ** 2 - known.astype(float) ** 2) / 2
        return 2 * self.parameters * (tokens - known) + 4 * self.layers * self.width * pairs

    def coefficients(self) -> np.ndarray:
        """Return seconds a prefilled token, a squared token and a generated token, float64 ``[3]``."""
        linear = 2 * self.parameters / self.flops
        return np.array([linear, 2 * self.layers * self.width / self.flops, self.decode_seconds])


@dataclass(frozen=True, eq=False)
class PrefixResult:
    """Counts of one policy on one trace; requests before ``warmup`` are not in them.

    Ratios are over the prompts' blocks, a partial last one included, and over their tokens. ``hit_blocks`` is int32
    ``[total requests, 2]``: blocks found on the device and, after them, in the host tier.
    """

    policy: str
    capacity: int
    host_capacity: int
    requests: int
    blocks: int
    hits: int
    host_hits: int
    tokens: int
    tokens_saved: int
    flops: float
    flops_saved: float
    ttft_p50: float
    ttft_p90: float
    ttft_p99: float
    ttft_mean: float
    seconds: float
    touches: int
    warmup: int
    hit_blocks: np.ndarray = field(repr=False)
    info: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def prefix_hit_ratio(self) -> float:
        """Blocks hit over blocks asked for; nan when none was counted."""
        return self.hits / self.blocks if self.blocks else float("nan")

    @property
    def token_hit_ratio(self) -> float:
        """Prefill tokens saved over prompt tokens."""
        return self.tokens_saved / self.tokens if self.tokens else float("nan")

    @property
    def touches_per_second(self) -> float:
        """Block uses replayed a second, compilation left out."""
        return self.touches / self.seconds if self.seconds > 0 else float("inf")

    def gap_closed(self, lru: "PrefixResult", bound: "PrefixResult") -> float:
        """Return the share of the hits between ``lru`` and ``bound`` that this policy gains; nan without a gap."""
        gap = bound.hits - lru.hits
        return (self.hits - lru.hits) / gap if gap > 0 else float("nan")

    def as_row(self) -> dict[str, Any]:
        """Return the figures of a table's row."""
        names = (
            "policy", "capacity", "host_capacity", "requests", "blocks", "hits", "host_hits", "prefix_hit_ratio",
            "token_hit_ratio", "tokens", "tokens_saved", "flops_saved", "ttft_mean", "ttft_p50", "ttft_p90",
            "ttft_p99", "touches_per_second",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}
