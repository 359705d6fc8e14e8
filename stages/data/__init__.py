"""From users' files to the token shards that are trained on.

Files, judged pairs and a policy's tokenizer come in; records, a selection, tokens, shards and a quality report go out.
It imports ``policy``, ``io``, ``readers``, ``core`` and ``base``.
"""
