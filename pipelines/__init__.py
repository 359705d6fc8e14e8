"""What runs, in which order, and what is already done.

A spec comes in, a run with its artifacts goes out. It imports ``clusters`` and the light parts of ``stages``: the
catalog, configuration, records, formats and readers; importing it never imports ray, torch or vllm.
"""
