"""The cache of one sequence's keys and values while a language model decodes: a token budget, and who is kept."""
