"""Features: the schema of a row, and the bounded history that writes rows for training and serving alike."""

from kvpredict.features.schema import Schema

__all__ = ["Schema"]
