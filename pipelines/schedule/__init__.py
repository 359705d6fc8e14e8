"""When the ticks of a schedule are due, which host runs them, and how a webhook is told of one that failed.

A cron expression and a time zone come in, due times go out; a lease in the store keeps hosts apart. It may import
``sweep``, ``run``, ``report``, ``plan`` and ``spec``.
"""
