"""``rondo sweep`` from spec to winner: its rounds, and the run with the best values."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from pipelines.plan import rounds
from pipelines.run import champions
from pipelines.run import execute as runs
from pipelines.run.store import ArtifactStore
from pipelines.spec import load
from pipelines.spec.load import Loaded
from pipelines.sweep import winner
from pipelines.sweep.one import Options, Sweep
from pipelines.sweep.record import Document
from pipelines.sweep.trials import Point


def execute(loaded: Loaded, store: ArtifactStore, options: Options) -> tuple[Document, int]:
    """Sweep a spec's first round, or every n-th, and go on with the best if the spec says so.

    Returns:
        The last sweep's record, with ``best_spec`` (the file with the values that won) and ``run`` (the record of the
        run with them) where there are such; and the exit code: 0 done, 1 something failed, 130 interrupted.
    """
    settings = loaded.spec.sweep
    assert settings is not None
    last = loaded.spec.rounds if settings.every else 1
    winners: dict[int, Point] = {}
    document: Document = {}
    for number in range(1, last + 1, settings.every or 1):
        spec = winner.resolved(loaded.spec, winners).model_copy(update={"sweep": settings}) if winners else loaded.spec
        document, code = Sweep(replace(loaded, spec=spec), store, options, number).run()
        if code:
            return document, code
        winners[number] = document["trials"][document["winner"] - 1]["point"]
    return _promoted(loaded, store, options, document, winners) if settings.promote else (document, 0)


def _promoted(
    loaded: Loaded, store: ArtifactStore, options: Options, document: Document, winners: dict[int, Point]
) -> tuple[Document, int]:
    """Write the spec with the values that won, and run it."""
    best = winner.resolved(loaded.spec, winners)
    kept = f"sweeps/{document['sweep']}/best.yaml"
    store.store.write(kept, winner.text(best, loaded.path.parent).encode())
    file = winner.write(best, loaded, options.out)
    if file is None:
        chosen, place = replace(loaded, spec=best, overrides=()), f"{store.location.rstrip('/')}/{kept}"
    else:
        chosen, place = load.load(str(file), champion=partial(champions.source, store)), str(file)
    plan = rounds.plan(chosen.spec, chosen.path.parent)
    run, code = runs.execute(chosen, plan, store, options.as_json, options.verbose, options.ray, options.wait)
    return {**document, "best_spec": place, "run": run}, code
