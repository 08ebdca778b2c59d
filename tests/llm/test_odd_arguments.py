"""What no argument can be is refused in one sentence that names it, whatever its type."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import kvpredict as kvp
from kvpredict.core.errors import KvpredictError
from kvpredict.llm.blocks import block_hashes
from kvpredict.llm.continuation import fit_continuation
from kvpredict.llm.hints import degraded, session_of
from kvpredict.llm.prefix import Server, fit_prefix, prefix_policy, prefix_policy_names, simulate_prefix
from kvpredict.llm.prefix.index import PrefixIndex
from kvpredict.llm.prefix.policies.learned import Learned
from kvpredict.llm.request_files import read_requests
from kvpredict.llm.requests import RequestTrace
from kvpredict.llm.workloads import generate_requests

NAN, INF = float("nan"), float("inf")
REQUESTS = RequestTrace.from_lists([0, 100, 200], [[1, 2, 3], [1, 2, 4], [1, 2, 3]], 16)
NOTHING = RequestTrace.from_lists([], [], 16)
PLAIN = kvp.Trace.from_keys([1, 2, 1, 3, 1])
in_prefixes = partial(kvp.simulate, semantics="prefix")

Calls = dict[str, Callable[[Any], object]]
SIZES: Calls = {
    "capacity of simulate": lambda v: in_prefixes(REQUESTS, "lru", v),
    "capacity of fit": lambda v: fit_prefix(REQUESTS, v),
    "capacity of PrefixIndex": PrefixIndex,
    "requests of PrefixIndex": lambda v: PrefixIndex(4, requests=v),
    "requests of generate_requests": lambda v: generate_requests(requests=v),
    "block_size of generate_requests": lambda v: generate_requests(requests=9, block_size=v),
    "block_size of block_hashes": lambda v: block_hashes([1, 2], v),
    "block_size of from_lists": lambda v: RequestTrace.from_lists([0], [[1]], v),
}
HOSTS: Calls = {
    "host_capacity of simulate": lambda v: simulate_prefix(REQUESTS, "lru", 4, host_capacity=v),
    "host_capacity of PrefixIndex": lambda v: PrefixIndex(4, host_capacity=v),
    "seed of simulate": lambda v: simulate_prefix(REQUESTS, "lru", 4, seed=v),
    "seed of fit": lambda v: fit_prefix(REQUESTS, 4, seed=v),
    "seed of generate_requests": lambda v: generate_requests(requests=9, seed=v),
}


@pytest.mark.parametrize("given", [None, "5", NAN, INF, -1, 2.5, True, [5], np.array([5, 6])], ids=repr)
@pytest.mark.parametrize("what", [*SIZES, *HOSTS])
def test_a_size_is_a_whole_number(what: str, given: object) -> None:
    name = what.partition(" ")[0]
    with pytest.raises(KvpredictError, match=f"^{name} must be (a whole number|at least)"):
        (SIZES | HOSTS)[what](given)


@pytest.mark.parametrize("what", SIZES)
def test_a_size_is_one_at_least(what: str) -> None:
    with pytest.raises(KvpredictError, match="at least 1, got 0"):
        SIZES[what](0)


@pytest.mark.parametrize(
    "given", [None, 5, "requests.jsonl", [], PLAIN, np.zeros(3), NOTHING], ids=lambda v: type(v).__name__
)
def test_a_trace_is_one_of_requests(given: object) -> None:
    message = "has no requests: nothing to do" if given is NOTHING else "expected a RequestTrace, got .*read_requests"
    calls = [partial(in_prefixes, given, "lru", 4), partial(in_prefixes, given, "learned", 4),
             partial(kvp.fit, given, 4, semantics="prefix")]  # fmt: skip
    if given is not NOTHING:
        calls.append(partial(degraded, given, 0.8))
    for call in calls:
        with pytest.raises(KvpredictError, match=message):
            call()


@pytest.mark.parametrize("given", [None, 5, b"lru", ["lru"], "lruu", kvp.policy("lru"), Learned, "/nowhere"], ids=repr)
def test_a_policy_is_one_for_prefixes(given: object) -> None:
    for call in (partial(in_prefixes, REQUESTS, given, 4), partial(PrefixIndex, 4, given)):
        with pytest.raises(KvpredictError, match="prefix policy"):
            call()


NUMBERS = [(name, f) for name in prefix_policy_names() for f in prefix_policy(name).params() if f != "model"]


@pytest.mark.parametrize("given", ["a", None, NAN, INF, [1]], ids=repr)
@pytest.mark.parametrize(("name", "parameter"), NUMBERS)
def test_parameters_of_policies_are_numbers(name: str, parameter: str, given: object) -> None:
    with pytest.raises(KvpredictError, match=f"prefix policy '{name}': {parameter} must be"):
        prefix_policy(name, **{parameter: given})


def index() -> PrefixIndex:
    return PrefixIndex(4)


def ended_twice() -> None:
    of = index()
    ticket, _, _ = of.begin([1], 5)
    of.end(ticket)
    of.end(ticket)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kvp.simulate(REQUESTS, "lru", 4), "expected a Trace, got RequestTrace"),
        (lambda: kvp.fit(REQUESTS, 4), "expected a Trace, got RequestTrace"),
        (lambda: kvp.fit(PLAIN, 2, hrizon=3), "unknown argument of fit 'hrizon'. Did you mean 'horizon'"),
        (lambda: kvp.fit(REQUESTS, 2, semantics="prefix", evry=3), "'evry'. Did you mean 'every'"),
        (lambda: kvp.simulate(PLAIN, prefix_policy("lru"), 4), "policy must be"),
        (lambda: in_prefixes(REQUESTS, "sieve", 4), "unknown prefix policy 'sieve'"),
        (lambda: in_prefixes(REQUESTS, "lru", 4, unit="bytes"), "unit='bytes' has no effect with semantics='prefix'"),
        (lambda: in_prefixes(REQUESTS, "lru", 4, hots_capacity=1), "Did you mean 'host_capacity'"),
        (lambda: in_prefixes(REQUESTS, "lru", 4, server=5), "server must be a kvpredict.llm.prefix.Server"),
        *((lambda w=w: in_prefixes(REQUESTS, "lru", 4, warmup=w), "cannot split at")
          for w in (None, "0.5", NAN, INF, True, 1.0, 2.5, -1)),
        (lambda: in_prefixes(REQUESTS, "lru", 4, warmup=10**6), "warmup must leave some"),
        (lambda: Server(flops="fast"), "Server: flops must be a finite number, got 'fast'"),
        (lambda: Server(flops=0), "Server: flops must be above 0"),
        (lambda: Learned(model="m"), "model must be a Model"),
        (lambda: generate_requests(rate="a"), "rate must be a finite number"),
        (lambda: degraded(REQUESTS, "a"), "accuracy must be a finite number"),
        *((lambda at=at: REQUESTS.head(at), f"cannot split at {at}") for at in (None, -1, NAN, 1.0, 2.5)),
        (lambda: REQUESTS.capacity("a"), "fraction must be a finite number"),
        (lambda: REQUESTS.with_hints(continues="a"), "continues must be a list of numbers"),
        (lambda: RequestTrace.from_lists(["a"], [[1]], 16), "times must be a list of numbers"),
        (lambda: RequestTrace.from_lists(None, [[1]], 16), "times must be a list of numbers"),
        (lambda: RequestTrace.from_lists([0], 5, 16), "blocks must be a list"),
        *((lambda b=b: RequestTrace.from_lists([0], [b], 16), "blocks must be a list of whole numbers")
          for b in (5, ["a"], [1.5], [2**70], [[1]])),
        (lambda: RequestTrace.from_lists([0], [[1]], 16, ["a"]), "input_tokens must be a list"),
        (lambda: RequestTrace.from_lists([0], [[1]], 16, sessions=["a"]), "sessions must be a list of whole numbers"),
        (lambda: RequestTrace.from_lists([0], [[1]], 16, session=[1]), "Did you mean 'sessions'"),
        (lambda: read_requests(None), "expected the path of a trace file, got NoneType"),
        (lambda: kvp.read_trace(5), "expected the path of a trace file, got int"),
        (lambda: block_hashes([1.5]), "tokens must be one prompt's sequence of ints"),
        (lambda: block_hashes("ab"), "tokens must be one prompt's sequence of ints"),
        (lambda: block_hashes([1], salt="a"), "salt must be at most 64 bytes"),
        (lambda: session_of("a"), "free parameters must be a mapping"),
        (lambda: fit_continuation(None, None), "texts must be a list of texts"),
        (lambda: PrefixIndex(4, clock=5), "clock must be a callable"),
        (lambda: index().begin(None, 5), "blocks must be the hashes"),
        (lambda: index().begin(["a"], 5), "a block's hash must be a whole number"),
        (lambda: index().begin([2**70], 5), "a block's hash must be a whole number of 64 bits"),
        (lambda: index().begin([1], "a"), "must be numbers"),
        (lambda: index().begin([1], 5, session="a"), "must be numbers"),
        (lambda: index().begin([1], 5, hints={"contnues": 1}), "Did you mean 'continues'"),
        (lambda: index().begin([1], 5, hints={"continues": "a"}), "hint 'continues' must be a number"),
        (lambda: index().begin([1], 5, hints={"priority": 1001}), "'priority' must be between -100 and 100, got 1001"),
        (lambda: index().end(7), "no request in progress has the ticket 7"),
        (lambda: index().cancel(None), "no request in progress has the ticket None"),
        (ended_twice, "no request in progress has the ticket 0"),
    ],
)  # fmt: skip
def test_odd_calls_are_refused_by_name(call: Callable[[], object], message: str) -> None:
    with pytest.raises(KvpredictError, match=message if "|" in message else re.escape(message)):
        call()
