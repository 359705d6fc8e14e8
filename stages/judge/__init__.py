"""Answers are scored and compared: for new pairs, and for the gate.

Rollouts come in; judgements, pairs, win rates and a promotion go out. It imports ``policy``, ``io``, ``core`` and
``base``.
"""
