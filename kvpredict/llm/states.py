"""StateCache: the states of a recurrent model, cached by prefix.

An LSTM's or GRU's state after a block stands for all tokens up to there, so the deepest cached block of a prompt is
enough to go on from, whereas attention needs all of them. The same index and pool serve; a slot holds one state.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvpredict.core.errors import KvpredictError
from kvpredict.llm.blocks import block_hashes
from kvpredict.llm.kv_pool import KVPool, check_sizes, torch_module
from kvpredict.llm.prefix.index import PrefixIndex
from kvpredict.llm.prefix.policy import PrefixPolicy
from kvpredict.llm.prefix_cache import BlockStore

__all__ = ["StateCache"]


class StateCache:
    """A cache of recurrent states.

    Parameters
    ----------
    rnn : torch.nn.LSTM, torch.nn.GRU or torch.nn.RNN
        With ``batch_first=True`` and one direction.
    embed : callable
        From token ids ``[1, t]`` to inputs ``[1, t, features]``.
    capacity, host_capacity : int
        States on the device and in host memory.
    block_size : int, default 16
        Tokens between cached states.
    policy : str, path or PrefixPolicy, default "lru"
    """

    def __init__(
        self,
        rnn: Any,
        embed: Any,
        capacity: int,
        *,
        host_capacity: int = 0,
        block_size: int = 16,
        policy: str | Path | PrefixPolicy = "lru",
    ) -> None:
        self._torch = torch_module()
        check_sizes(capacity=capacity, host_capacity=host_capacity, block_size=block_size)
        if not isinstance(rnn, self._torch.nn.RNNBase):
            raise KvpredictError(f"StateCache needs an LSTM, a GRU or an RNN of torch.nn, got {type(rnn).__name__}")
        if not rnn.batch_first or rnn.bidirectional:
            raise KvpredictError("StateCache needs a recurrent model with batch_first=True and one direction")
        if not callable(embed):
            raise KvpredictError(f"embed must be a callable from token ids to inputs, got {type(embed).__name__}")
        weight = next(rnn.parameters())
        self.rnn, self.embed, self.block_size = rnn, embed, block_size
        hidden = (rnn.num_layers, 1, getattr(rnn, "proj_size", 0) or rnn.hidden_size)
        self._pair = isinstance(rnn, self._torch.nn.LSTM)
        shapes = [hidden, (rnn.num_layers, 1, rnn.hidden_size)] if self._pair else [hidden]
        self.index = PrefixIndex(capacity, policy, host_capacity=host_capacity)
        self.store = BlockStore(self.index, KVPool(shapes, capacity, host_capacity, weight.dtype, weight.device))
        self.prompt_tokens = self.cached_tokens = 0

    def run(self, tokens: Sequence[int]) -> tuple[Any, Any]:
        """Return the outputs of the tokens that had to be computed, ``[1, t, hidden]``, and the state after the last.

        The last token is always computed.
        """
        if not len(tokens):
            raise KvpredictError("run needs one token at least")
        blocks = block_hashes(tokens, self.block_size)
        with self._torch.inference_mode():
            ticket, device, host = self.index.begin(blocks.tolist(), len(tokens))
            try:
                self.store.settle()
                start = self.index.requests.start[ticket]
                nodes = self.index.requests.node[start : start + len(blocks)].tolist()
                found = len(self.store.found(ticket, min(device + host, (len(tokens) - 1) // self.block_size)))
                state = None
                if found:
                    parts = [value[0] for value in self.store.read(nodes[found - 1 : found])]
                    state = tuple(parts) if self._pair else parts[0]
                outputs, fresh = [], {}
                for k in range(found, -(-len(tokens) // self.block_size)):
                    piece = list(tokens[k * self.block_size : (k + 1) * self.block_size])
                    ids = self._torch.tensor([piece], device=self.store.pool.device[0].device)
                    out, state = self.rnn(self.embed(ids), state)
                    outputs.append(out)
                    if k < len(nodes):
                        fresh[nodes[k]] = list(state) if self._pair else [state]
            except BaseException:
                self.store.cancel(ticket)
                raise
            self.index.end(ticket)
            self.store.settle(fresh)
        self.prompt_tokens += len(tokens)
        self.cached_tokens += found * self.block_size
        return self._torch.cat(outputs, dim=1), state
