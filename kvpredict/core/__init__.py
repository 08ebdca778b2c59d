"""Policy contract, engine and the data structures that kernels are made of."""
