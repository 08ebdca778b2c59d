"""The version of this package, apart from it, so that whatever needs only the number imports nothing else."""

__version__ = "0.1.0"
