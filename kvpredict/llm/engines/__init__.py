"""Adapters that put prefix policies into serving engines, one engine's interface a file.

They import the engine only when it is there, keep their own index of blocks, and never take the server down: an error
inside the policy is logged once and counted, and the engine goes on with plain LRU. They hold no lock: vLLM and SGLang
call them from the scheduler's thread, and LMCache from several, one at a time, under its backend's own.
"""
