"""How likely a policy considers the responses of pairs, and how it ranks them.

A policy and shards come in; log-probabilities, loss, reward accuracy and margin go out.
It imports ``data``, ``policy``, ``io``, ``core`` and ``base``.
"""
