"""Guarded: a learned policy that follows the best of several heuristics where learning does not pay.

*Shadows* (``core.shadow``) run the leaders, heuristics, on every request; the *leader* is the one with the fewest
misses of late. At an eviction a few candidates, some of them objects that the leader has already evicted, are scored by
a model of the time until the next use, plus *lambda* for what the leader still holds. With lambda at its maximum only
objects that the leader has given up go, so the cache holds what the leader holds and misses what it misses. A *guard*
moves lambda: up while this cache misses more than the leader, down while it does not.

The model, small boosted trees, is fitted inside the cache to its own decisions (``features.samples``) and refitted the
more rarely the longer it goes on, often again once another leads; before the first fit the cache follows the leader,
after it the model, until it misses more than the leader. Nothing has to be trained beforehand.

Following the expert that misses less: Gramacy et al., "Adaptive caching by refetching", NIPS 2002. Sampled candidates
and time to the next use as the label: Song et al., "Learning Relaxed Belady for CDN Caching", NSDI 2020. The penalty
that leads back to the best expert exactly is the project's own.
"""

from kvpredict.policies.guarded.policy import LEADERS, SHIPPED, Guarded

__all__ = ["LEADERS", "SHIPPED", "Guarded"]
