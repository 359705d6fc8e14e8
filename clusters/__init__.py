"""Where the driver and the workers run.

A cluster's settings come in, a started Ray or a job for another machine goes out. It imports ``stages.base`` only.
"""
