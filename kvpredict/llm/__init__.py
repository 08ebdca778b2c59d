"""KV caches of language models: request traces, the cache of prompt prefixes between requests, adapters to engines."""
