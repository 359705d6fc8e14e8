"""Where the driver and the workers run.

A cluster's settings come in, a running Ray or a job for another machine goes out. It imports only ``stages.base``.
"""
