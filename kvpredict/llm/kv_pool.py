"""Paged tensors: one slot a block on the device and in pinned host memory, and the copies between them.

What a slot holds is opaque: for a transformer the keys and values of ``block_size`` tokens in every layer, for a
recurrent model its state after them. All memory is taken when the pool is made.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from kvpredict.core.errors import KvpredictError, MissingExtra

__all__ = ["KVPool", "Part", "torch_module"]


def torch_module() -> Any:
    """Return torch; raises ``MissingExtra`` where it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtra(f'tensors need torch: pip install "kvpredict[llm]" ({error})') from error
    return torch


class Part(NamedTuple):
    """What one tensor of a slot is like."""

    shape: tuple[int, ...]
    dtype: Any  # torch.dtype
    device: Any  # torch.device


class KVPool:
    """Slots of tensors.

    Parameters
    ----------
    parts : sequence of Part
        The tensors of a slot.
    capacity, host_capacity : int
        Slots on the device and in host memory.
    """

    def __init__(self, parts: Sequence[Part], capacity: int, host_capacity: int) -> None:
        torch = torch_module()
        # What is of one kind lies in one row a slot, so that a slot moves between the tiers in one copy.
        widths: dict[tuple[Any, Any], int] = {}
        self._lies: list[tuple[int, int, tuple[int, ...]]] = []  # of each part: in which rows, from where, its shape
        for shape, dtype, device in parts:
            start = widths.setdefault((dtype, device), 0)
            self._lies.append((list(widths).index((dtype, device)), start, shape))
            widths[dtype, device] = start + math.prod(shape)
        self._rows: tuple[list[Any], list[Any]] = (
            [torch.zeros((capacity, w), dtype=t, device=d) for (t, d), w in widths.items()],
            [torch.zeros((host_capacity, w), dtype=t, pin_memory=d.type == "cuda") for (t, d), w in widths.items()],
        )
        self._parts = self._split(self._rows[0]), self._split(self._rows[1])
        self._sizes = capacity, host_capacity
        self.free: tuple[list[int], list[int]] = ([], [])
        for tier in (0, 1):
            self.keep(tier, ())

    @property
    def bytes(self) -> int:
        """Return the memory that the pool takes, both tiers."""
        return sum(t.numel() * t.element_size() for rows in self._rows for t in rows)

    def _split(self, rows: Sequence[Any]) -> list[Any]:
        """Return views of the parts, ``[slots, *shape]`` each, of rows ``[slots, width]``."""
        return [rows[k][:, at : at + math.prod(shape)].unflatten(1, shape) for k, at, shape in self._lies]

    def take(self, tier: int) -> int:
        """Return a free slot of a tier, which is taken then."""
        if not self.free[tier]:
            raise KvpredictError("the pool is full, which the policy should have seen to")
        return self.free[tier].pop()

    def give(self, tier: int, slot: int) -> None:
        """Return a slot."""
        self.free[tier].append(slot)

    def keep(self, tier: int, slots: Iterable[int]) -> None:
        """Have these slots of a tier taken, and no others."""
        taken = set(slots)
        self.free[tier][:] = [slot for slot in range(self._sizes[tier])[::-1] if slot not in taken]

    def write(self, tier: int, slot: int, values: Sequence[Any]) -> None:
        """Fill a slot of a tier with one tensor for each part."""
        for part, value in zip(self._parts[tier], values, strict=True):
            place = part[slot]
            if value.shape != place.shape:  # copying would repeat a smaller one without a word
                raise KvpredictError(f"a tensor of shape {tuple(value.shape)} is no {tuple(place.shape)} of the pool")
            place.copy_(value)

    def read(self, slots: Sequence[int]) -> list[Any]:
        """Return the tensors of these slots of the device, ``[len(slots), *shape]`` each."""
        index = torch_module().tensor(list(slots))
        return self._split([rows.index_select(0, index.to(rows.device)) for rows in self._rows[0]])

    def demote(self, slot: int) -> int:
        """Move a slot to the host tier; return its place there."""
        place = self.take(1)
        for above, below in zip(*self._rows, strict=True):
            below[place].copy_(above[slot], non_blocking=False)
        self.give(0, slot)
        return place

    def fetch(self, place: int) -> list[Any]:
        """Take a place of the host tier out, and free it; return what ``restore`` puts into a slot of the device."""
        rows = [below[place].to(above.device, copy=True) for above, below in zip(*self._rows, strict=True)]
        self.give(1, place)
        return rows

    def restore(self, slot: int, rows: Sequence[Any]) -> None:
        """Fill a slot of the device with what ``fetch`` returned."""
        for above, row in zip(self._rows[0], rows, strict=True):
            above[slot].copy_(row)
