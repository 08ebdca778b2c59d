"""The prefix cache: which KV blocks to keep between requests. Policies, simulator, learner."""

from kvpredict.llm.prefix.fit import fit_prefix
from kvpredict.llm.prefix.policies import prefix_policy, prefix_policy_names
from kvpredict.llm.prefix.result import PrefixResult, Server
from kvpredict.llm.prefix.simulate import simulate_prefix

__all__ = ["PrefixResult", "Server", "fit_prefix", "prefix_policy", "prefix_policy_names", "simulate_prefix"]
