"""What a training minimises.

Log-probabilities of pairs under policy and reference come in, one loss per pair and detached rewards go out.
It imports ``base``, ``core.tokens`` and torch; its ``config`` no torch.
"""
