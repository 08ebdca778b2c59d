"""Slots of those KV heads of one layer that have equally many: keys, values, positions and memos.

Heads whose budgets differ lie in different buffers, so memory is the sum of the budgets and attention over each buffer
needs no mask: a head's slots are all taken once it is full, and a victim's slot is overwritten. While it fills, tokens
lie in the order in which they came. (A single flat buffer with segment sums was measured beside it and was slower:
``benchmarks/decode.py``.)
"""

import torch
from torch import Tensor

from kvpredict.llm.decode.policy import Held

__all__ = ["Slots"]

ROOM = 64  # columns by which storage without a limit grows at least


class Slots:
    """Buffers of ``size`` slots for the KV heads ``heads`` of a layer.

    Parameters
    ----------
    layer : int
    heads : list of int
        Which of the layer's KV heads.
    size : int
        Slots a head.
    """

    def __init__(self, layer: int, heads: list[int], size: int) -> None:
        self.layer, self.size, self.names = layer, size, heads
        neighbours = heads == list(range(heads[0], heads[0] + len(heads)))
        self.heads: slice | list[int] = slice(heads[0], heads[-1] + 1) if neighbours else heads
        self.count = 0  # columns in use
        self.left = 0  # victims chosen and not yet overwritten
        self.paid: list[Tensor] = []  # attention weights of queries that wait, [B, h, G, 1, size] each
        self.victims: Tensor | None = None  # [B, h, interval] slots, the worst first
        self.turn: Tensor | None = None  # [1] which of them is next; on the device, so that a CUDA graph can move it

    def allocate(self, key: Tensor, value: Tensor, columns: int) -> None:
        """Make the buffers for tensors like ``key`` and ``value``, [B, H, T, D]."""
        batch, heads = key.shape[0], len(self.names)
        self.keys = key.new_zeros((batch, heads, self.size, key.shape[-1]))
        self.values = value.new_zeros((batch, heads, self.size, value.shape[-1]))
        self.position = torch.full((batch, heads, self.size), -1, dtype=torch.int32, device=key.device)
        self.memo = torch.zeros((batch, heads, self.size, columns), device=key.device)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.keys.nbytes + self.values.nbytes

    def held(self, now: Tensor) -> Held:
        """Return the columns in use, as views."""
        n = self.count
        return Held(
            self.layer, self.heads, self.memo[:, :, :n], self.keys[:, :, :n], self.values[:, :, :n],
            self.position[:, :, :n], now,
        )  # fmt: skip

    def append(self, key: Tensor, value: Tensor, position: Tensor, memo: Tensor) -> None:
        """Put tokens ``[B, h, T, …]`` behind those that are there; ``position`` is [B, T]."""
        new = slice(self.count, self.count + key.shape[2])
        self.keys[:, :, new] = key
        self.values[:, :, new] = value
        self.position[:, :, new] = position[:, None]
        self.memo[:, :, new] = memo
        self.count = new.stop

    def overwrite(self, key: Tensor, value: Tensor, position: Tensor, memo: Tensor | None) -> None:
        """Put one token ``[B, h, 1, …]`` into the next victim's slot; without ``memo``, ``note`` adds it later."""
        assert self.victims is not None
        assert self.turn is not None
        slot = self.victims.index_select(2, self.turn)  # [B, h, 1]
        at = slot.unsqueeze(-1)
        self.keys.scatter_(2, at.expand(-1, -1, -1, key.shape[-1]), key)
        self.values.scatter_(2, at.expand(-1, -1, -1, value.shape[-1]), value)
        self.position.scatter_(2, slot, position[:, None].expand(slot.shape))
        columns = at.expand(-1, -1, -1, self.memo.shape[-1])
        if memo is None:
            self.memo.scatter_(2, columns, 0.0)
        elif memo.shape[-1]:
            self.memo.scatter_(2, columns, memo)
        self.turn += 1
        self.left -= 1

    def note(self, memo: Tensor) -> None:
        """Add the memos ``[B, h, n, columns]`` of the last n tokens that were put into victims' slots."""
        assert self.victims is not None
        done = self.victims.shape[2] - self.left
        slot = self.victims[:, :, done - memo.shape[2] : done]
        self.memo.scatter_add_(2, slot.unsqueeze(-1).expand(-1, -1, -1, memo.shape[-1]), memo)

    def choose(self, victims: Tensor) -> None:
        """Take the slots that the next tokens overwrite, [B, h, interval]; in place, where a graph finds them."""
        if self.victims is None or self.turn is None or self.victims.shape != victims.shape:
            self.victims, self.turn = victims, torch.zeros(1, dtype=torch.long, device=victims.device)
        else:
            self.victims.copy_(victims)
            self.turn.zero_()
        self.left = victims.shape[2]

    def joined(self, key: Tensor, value: Tensor, position: Tensor, memo: Tensor) -> "Slots":
        """Return a working copy: what is held and the new tokens behind it."""
        n, both = self.count, Slots(self.layer, self.names, self.count + key.shape[2])
        if n == 0:
            both.keys, both.values, both.memo = key, value, memo.clone()
            both.position = position[:, None].expand(-1, key.shape[1], -1)
        else:
            both.keys = torch.cat([self.keys[:, :, :n], key], 2)
            both.values = torch.cat([self.values[:, :, :n], value], 2)
            new = position[:, None].expand(-1, key.shape[1], -1)
            both.position = torch.cat([self.position[:, :, :n], new], 2)
            both.memo = torch.cat([self.memo[:, :, :n], memo], 2)
        both.count = both.size
        return both

    def keep(self, both: "Slots", columns: Tensor) -> None:
        """Take over ``columns``, [B, h, size], of a working copy."""
        at = columns.unsqueeze(-1)
        for name in ("keys", "values", "memo"):
            source = getattr(both, name)
            torch.gather(source, 2, at.expand(-1, -1, -1, source.shape[-1]), out=getattr(self, name))
        torch.gather(both.position, 2, columns, out=self.position)
        self.count, self.left = self.size, 0

    def reserve(self, columns: int) -> None:
        """Grow, where nothing is evicted, so that ``columns`` more fit; an eighth is added, so that copies are few."""
        need = self.count + columns
        if need <= self.size:
            return
        more = max(need, self.count + self.count // 8, self.count + ROOM) - self.size
        for name in ("keys", "values", "position", "memo"):
            old = getattr(self, name)
            fresh = old.new_full((*old.shape[:2], more, *old.shape[3:]), -1 if name == "position" else 0)
            setattr(self, name, torch.cat([old, fresh], 2))
        self.size += more

    def rows(self, index: Tensor) -> None:
        """Keep the sequences ``index`` of the batch, in that order and as often as they are named."""
        for name in ("keys", "values", "position", "memo", "victims"):
            old = getattr(self, name)
            setattr(self, name, None if old is None else old.index_select(0, index.to(old.device)))
