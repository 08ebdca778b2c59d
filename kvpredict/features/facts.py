"""The places of what a history keeps of a key in whole numbers, a cache line an entry (``History.fact``)."""

FACTS = 8  # for an entry, of which are in use
KEY, LAST, FIRST, INSERTED, EVICTED, SIZE = 0, 1, 2, 3, 4, 5
