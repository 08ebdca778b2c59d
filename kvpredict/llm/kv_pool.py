"""Paged tensors: one slot a block on the device and in pinned host memory, and the copies between them.

What a slot holds is opaque: for a transformer the keys and values of ``block_size`` tokens in every layer, for a
recurrent model its state after them. All memory is taken when the pool is made.
"""

from collections.abc import Sequence
from typing import Any

from kvpredict.core.errors import KvpredictError, MissingExtra

__all__ = ["KVPool", "torch_module"]


def torch_module() -> Any:
    """Return torch; raises ``MissingExtra`` where it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtra(f'tensors need torch: pip install "kvpredict[llm]" ({error})') from error
    return torch


class KVPool:
    """Slots of tensors.

    Parameters
    ----------
    shapes : sequence of tuple
        Shape of each tensor of a slot.
    capacity, host_capacity : int
        Slots on the device and in host memory.
    dtype : torch.dtype
    device : torch.device or str
    """

    def __init__(
        self, shapes: Sequence[tuple[int, ...]], capacity: int, host_capacity: int, dtype: Any, device: Any
    ) -> None:
        torch = torch_module()
        pinned = torch.device(device).type == "cuda"
        self.shapes = [tuple(shape) for shape in shapes]
        self.device = [torch.zeros((capacity, *s), dtype=dtype, device=device) for s in self.shapes]  # [slots, ...]
        self.host = [torch.zeros((host_capacity, *s), dtype=dtype, pin_memory=pinned) for s in self.shapes]
        self.free: tuple[list[int], list[int]] = (list(range(capacity))[::-1], list(range(host_capacity))[::-1])

    @property
    def bytes(self) -> int:
        """Return the memory that the pool takes, both tiers."""
        return sum(t.numel() * t.element_size() for t in (*self.device, *self.host))

    def take(self, tier: int) -> int:
        """Return a free slot of a tier, which is taken then."""
        if not self.free[tier]:
            raise KvpredictError("the pool is full, which the policy should have seen to")
        return self.free[tier].pop()

    def give(self, tier: int, slot: int) -> None:
        """Return a slot."""
        self.free[tier].append(slot)

    def write(self, tier: int, slot: int, values: Sequence[Any]) -> None:
        """Fill a slot of a tier with one tensor for each shape."""
        for pool, value in zip((self.device, self.host)[tier], values, strict=True):
            pool[slot].copy_(value)

    def read(self, slots: Sequence[int]) -> list[Any]:
        """Return the tensors of these slots of the device, ``[len(slots), *shape]`` each."""
        index = torch_module().tensor(list(slots), device=self.device[0].device)
        return [pool.index_select(0, index) for pool in self.device]

    def demote(self, slot: int) -> int:
        """Move a slot to the host tier; return its place there."""
        place = self.take(1)
        for above, below in zip(self.device, self.host, strict=True):
            below[place].copy_(above[slot], non_blocking=False)
        self.give(0, slot)
        return place

    def fetch(self, place: int) -> list[Any]:
        """Return the tensors of a place in the host tier, on the device, and free it."""
        values = [below[place].to(above.device, copy=True) for above, below in zip(self.device, self.host, strict=True)]
        self.give(1, place)
        return values
