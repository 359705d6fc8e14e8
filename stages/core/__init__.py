"""The mathematics and the records.

Nothing here imports Ray or vLLM, opens a file or talks to a network. Functions take values and return values,
so that every rule can be tested in milliseconds. Reading, writing and scheduling happen one folder up.
"""
