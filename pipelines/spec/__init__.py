"""The spec: its models, how it is read, and everything wrong with it.

A YAML file and overrides come in, a ``PipelineSpec`` or a list of problems goes out.
It imports ``fingerprint`` and the ``config`` files, formats and readers of ``stages``.
"""
