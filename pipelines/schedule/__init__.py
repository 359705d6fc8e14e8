"""When the ticks of a schedule are due, and how a webhook is told of one that failed.

A cron expression and a time zone come in, due times go out. It may import ``sweep``, ``run``, ``report``, ``plan`` and
``spec``.
"""
