"""fit: train a policy for objects or for the prefixes of LLM requests, by one name."""

from typing import Any

from kvpredict.core.errors import unknown_name

__all__ = ["fit"]


def fit(trace: Any, capacity: int, *, semantics: str = "objects", **settings: Any) -> Any:
    """Train a policy for caches like the one of ``capacity`` on ``trace``.

    Parameters
    ----------
    trace : Trace, or RequestTrace with ``semantics="prefix"``
        The past. Judge the policy on what comes after it.
    capacity : int
        Objects or bytes, or blocks.
    semantics : {"objects", "prefix"}, default "objects"
    **settings
        Of ``kvpredict.learn.fit``, or of ``kvpredict.llm.prefix.fit_prefix``.

    Returns
    -------
    A policy that ``simulate`` takes with the same semantics, with ``save``.
    """
    if semantics == "prefix":
        from kvpredict.llm.prefix.fit import fit_prefix

        return fit_prefix(trace, capacity, **settings)
    if semantics != "objects":
        raise unknown_name("semantics", semantics, ["objects", "prefix"])
    from kvpredict.learn import fit as fit_objects

    return fit_objects(trace, capacity, **settings)
