"""Log-probabilities of responses under a causal language model, and their gradient.

A model and encoded pairs come in, float32 sums over response tokens go out. It imports ``core.tokens`` and torch.
"""
