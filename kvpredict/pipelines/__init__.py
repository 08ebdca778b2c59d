"""Pipelines: what the command line runs, each a story; one file a pipeline, found by its module's name.

A pipeline takes a ``Config`` and the folders of the run and returns the result, plain JSON values; ``cli`` writes it
down, draws the report from it and tracks it.
"""
