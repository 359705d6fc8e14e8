"""``rondo train-reward``, the command; ``reward`` does what it says."""

from __future__ import annotations

import typer

from pipelines.commands import connect
from pipelines.commands.common import (
    DEFAULT_STORE,
    AddressOption,
    ClusterOption,
    JsonOption,
    SetOption,
    SpecArgument,
    StoreOption,
    VerboseOption,
    WaitOption,
    loaded_of,
    open_store,
    refuse_all,
)


def train_reward(
    spec: SpecArgument,
    overrides: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    address: AddressOption = None,
    cluster: ClusterOption = None,
    wait: WaitOption = 0,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train the reward model of a spec (its section reward), and nothing else; rondo run uses the same one.

    Exit codes: 0 done, 1 a stage failed, 2 the spec or the usage is wrong, 130 interrupted.
    """
    from pipelines.commands import reward
    from pipelines.spec.problems import SpecError

    ray, opened = connect.ray_for(address, cluster), open_store(store)
    loaded = loaded_of(spec, overrides, ray if isinstance(ray, str) else None, cluster, store=opened)
    try:
        steps = reward.plan(loaded)
    except SpecError as error:
        refuse_all(error)
    raise typer.Exit(reward.train(loaded, steps, opened, as_json, verbose, ray, wait))
