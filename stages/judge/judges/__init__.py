"""The judges there are, each behind ``stages.judge.protocol``."""
