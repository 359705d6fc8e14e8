"""Ray Tune: which values are tried next, which trials go on, and what a trial does on its worker.

A search and trials to make come in, what each trial measured goes out. It imports ``train``, ``score``, ``io`` and
``base``.
"""
