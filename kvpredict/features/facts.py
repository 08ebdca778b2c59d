"""The places of what a history keeps of a key in whole numbers, a cache line an entry (``History.fact``)."""

FACTS = 8  # for an entry
KEY, LAST, FIRST, INSERTED, EVICTED, SIZE, PLACE, SAMPLE = range(FACTS)
