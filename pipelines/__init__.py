"""What runs, in which order, and what is already done.

A spec comes in, a run with its artifacts goes out. It imports ``clusters`` and, of ``stages``, what is light: the
catalog, configuration, records, formats and readers; never ray, torch or vllm when it is imported.
"""
