"""One training: the step, the loop, its workers and checkpoints.

A policy, shards and the reference's log-probabilities come in, a policy and its metrics go out.
It imports ``data``, ``policy``, ``io``, ``core`` and ``base``.
"""
