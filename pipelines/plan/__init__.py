"""A spec becomes a graph of steps.

A ``PipelineSpec`` comes in, steps with fingerprints go out. It imports ``spec`` and ``stages.catalog``.
"""
