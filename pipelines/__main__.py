"""``python -m pipelines`` is ``rondo``."""

from pipelines.cli import main

main()
