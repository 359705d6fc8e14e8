"""Files of artifacts: Arrow tables, quarantine, file names; and how stages use Ray Data and the machine's memory.

Tables and tasks come in, files and streams of tables go out.
It imports ``readers``, ``core`` and ``base``.
"""
