"""What twins of policies that draw random numbers need: the generator of ``kvpredict.core.random``, by its formula."""

__all__ = ["Draws", "swap_remove"]


class Draws:
    """xorshift32 in unbounded integers."""

    def __init__(self, state: int) -> None:
        self.state = state

    def next(self) -> int:
        x = self.state
        x ^= (x << 13) % 2**32
        x ^= x >> 17
        x ^= (x << 5) % 2**32
        self.state = x
        return x

    def below(self, n: int) -> int:
        return self.next() * n // 2**32

    def uniform(self) -> float:
        return self.next() / 2**32


def swap_remove(items: list[int], item: int) -> None:
    """Take ``item`` out; the last one takes its place."""
    at = items.index(item)
    items[at] = items[-1]
    items.pop()
