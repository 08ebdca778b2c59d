"""A clock that stands still until a test moves it."""


class Clock:
    """Callable like ``time.monotonic``; ``now`` is set by hand."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
