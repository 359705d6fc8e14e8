"""A schedule: when its ticks are due, who runs one, what became of each, and who is told when one fails.

A spec, a cron expression and a time zone come in; runs and a ledger of ticks go out. It imports ``sweep``, ``run``,
``report``, ``plan`` and ``spec``.
"""
