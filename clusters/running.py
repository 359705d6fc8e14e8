"""A Ray cluster that is running already: this machine is one of its nodes, or the head's address is given."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import socket
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.base import Resources, StageError
from stages.io import nodes
from stages.io.parts import make_importable
from stages.io.store import Store, StoreError

_SECONDS = 60.0
"""For which a node is waited for."""


def reach(address: str) -> None:
    """See that something listens at the head's address, where Ray itself would wait for minutes. Imports no Ray.

    Raises:
        StageError: nothing does, or it is no such address.
    """
    if address == "auto":
        return
    match = re.fullmatch(r"([^\s/]+):(\d{1,5})", address)
    if match is None:
        raise StageError(
            f"--address (or RAY_ADDRESS) {address}: expected HOST:PORT of a Ray cluster's head, as `ray start --head` "
            "prints it, or auto; a run does not go through the dashboard (http://) or a Ray client (ray://)"
        )
    try:
        socket.create_connection((match[1], int(match[2])), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise StageError(_nobody(address, error)) from None


def _nobody(address: str, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (
        f"no Ray cluster can be joined at {address}: {reason}. Start one with `ray start --head`, and run this on one "
        "of its machines"
    )


def join(address: str, code: Sequence[Path] = ()) -> None:
    """Connect to the cluster at ``address`` (``auto``: the one that this machine belongs to), and send it the files and
    packages of the user's own ``code``.

    Raises:
        StageError: no cluster answers there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    try:
        environment = {"py_modules": [str(path) for path in code]} if code else None
        ray.init(address=address, configure_logging=False, log_to_driver=True, runtime_env=environment)
    except ray.exceptions.RuntimeEnvSetupError as error:
        names = ", ".join(path.name for path in code)
        raise StageError(f"{names} cannot be sent to the cluster: {str(error).strip()}") from None
    except (OSError, RuntimeError, ValueError) as error:
        raise StageError(_without_token(address) or _nobody(address, error)) from None


def _without_token(address: str) -> str | None:
    """What is wrong with the token: Ray speaks of it only in its log. Clusters of Ray 2.60 and newer want one if they
    are not told otherwise."""
    import ray
    from ray._private.services import canonicalize_bootstrap_address

    try:
        ray._raylet.GcsClient(address=canonicalize_bootstrap_address(address))
    except ray.exceptions.AuthenticationError as error:
        reason = str(error).partition(". ")[0].rpartition(": ")[2]
        return (
            f"the Ray cluster at {address} wants a token: {reason}. Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH; on the machine where the cluster was started, Ray finds it in ~/.ray/auth_token"
        )
    except (ray.exceptions.RaySystemError, OSError, RuntimeError, ValueError):
        return None
    return None


def require(
    resources: Mapping[str, Resources],
    store: Store | None = None,
    modules: Sequence[str] = (),
    wait: float = 0,
    say: Callable[[str], object] = print,
) -> None:
    """See that the cluster can do what it is asked for: that the nodes have what a run needs, with the user's own
    ``modules``, if they work on a ``store``, and that every worker has a place, or will have one within ``wait``
    seconds of being asked for.

    Raises:
        StageError: says on a line each what is lacking where.
    """
    found = [] if store is None else faults(store, modules)
    nodes.wait_for(wait, say)
    if not wait:
        found += [f"{name}: {what}" for name, what in nodes.unplaceable(resources, nodes.of_cluster())]
    if found:
        raise StageError("the cluster cannot run this:\n" + "\n".join(found))


def faults(store: Store, modules: Sequence[str]) -> list[str]:
    """What the cluster's nodes lack, a line a node: Rondo, this version of it, a module, or a way to the store."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    mark = f"locks/seen-{uuid.uuid4().hex[:8]}"
    store.write(mark, b"")
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    task = ray.remote(num_cpus=0, max_retries=0)(fault)
    waiting = {
        node: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            store, mark, _versions(), modules, sys.path
        )
        for node in addresses
    }
    found = []
    try:
        for node, reference in waiting.items():
            try:
                reason = ray.get(reference, timeout=_SECONDS)
            except ray.exceptions.GetTimeoutError:
                reason = f"did not answer within {_SECONDS:.0f} s; it may have no way to the store {store.name}"
            except ray.exceptions.RuntimeEnvSetupError as error:
                reason = f"cannot take the user's own modules: {(str(error).strip().splitlines() or [''])[-1]}"
            except ray.exceptions.RayError as error:
                reason = f"cannot import Rondo: {(str(error).strip().splitlines() or [''])[-1]}"
            if reason:
                found.append(f"node {addresses[node]}: {reason}")
    finally:
        store.delete(mark)
    return found


def fault(
    store: Store, mark: str, versions: dict[str, str], modules: Sequence[str], importable: Sequence[str]
) -> str | None:
    """What keeps this node from taking part, if anything does."""
    make_importable(importable)
    own = _versions()
    if differ := [
        f"{name} {own[name]}, the driver has {versions[name]}" for name in own if own[name] != versions[name]
    ]:
        return "; ".join(differ)
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        return f"has no module {', '.join(missing)}; install it there, or put it beside the spec: it travels then"
    try:
        if store.read(mark) is None:
            return f"does not see the store {store.name}; use a folder that all nodes see, or a bucket"
    except StoreError as error:
        return f"{error}; it needs a way to the store, and the credentials in the environment that Ray was started in"
    return None


def _versions() -> dict[str, Any]:
    return {
        "Python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "Rondo": importlib.metadata.version("rondo-dpo"),
    }
