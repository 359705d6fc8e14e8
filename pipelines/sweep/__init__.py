"""A sweep: which values of the training's settings are tried, what became of each, and which is best.

A spec with a ``sweep`` section comes in; a record of all trials and a spec with the winner's values go out. It imports
``run``, ``report``, ``plan`` and ``spec``; Ray Tune is behind ``stages.tune``.
"""
