"""A plan is run: what is committed is skipped, the rest executed and committed.

Steps and a store come in; artifacts, a record, a log and a summary go out. It imports ``plan`` and ``spec``.
"""
