"""Models on disk: where a base comes from, how policies and adapters are loaded.

A folder, a GGUF file or a hub id (and an adapter) comes in, a policy artifact or a loaded model goes out.
It imports ``io``, ``core`` and ``base``.
"""
