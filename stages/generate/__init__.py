"""The policy answers prompts.

A policy and prompts come in, rollouts go out. It imports ``policy``, ``io``, ``core`` and ``base``.
"""
