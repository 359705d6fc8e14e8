"""From conversations to token ids.

Preference pairs and a tokenizer with its chat template come in, ``EncodedPair`` and Arrow columns of ids and masks go
out. It imports ``records`` and ``errors`` of ``core``.
"""
