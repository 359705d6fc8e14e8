"""A Ray cluster that is running: jobs go to its job server, by its address."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field

from clusters import folder
from clusters.fields import StorePlace, matching
from clusters.job import JobSpec, JobStatus, NoSuchJob, State
from stages.base import Config, StageError
from stages.io import nodes
from stages.io.nodes import Node

_BOUND = 200 << 20
"""Bytes of the spec's folder: it passes through the memory of Ray's head."""
_SECONDS = 10
"""For which a connection may take."""
_STATES: dict[str, State] = {
    "PENDING": "pending", "RUNNING": "running", "SUCCEEDED": "done", "FAILED": "failed", "STOPPED": "stopped",
}  # fmt: skip
_IMPORT = threading.Lock()
"""Ray cannot be imported by several threads at once."""


class RayCluster(Config):
    kind: Literal["ray"]
    address: Annotated[str, matching(r"https?://[^\s/@]+", "http://HOST:PORT of the cluster's dashboard")]
    """Of the dashboard, where Ray's job server listens, 8265 by default. A token comes from the environment:
    ``RAY_AUTH_MODE=token`` and ``RAY_AUTH_TOKEN``."""
    store: StorePlace
    wait: Annotated[int, Field(ge=0)] = 0
    """Seconds for which the run waits for machines that the cluster adds on demand; 0: it adds none."""

    @property
    def grows(self) -> bool:
        return self.wait > 0


def body(job: JobSpec) -> dict[str, Any]:
    """What Ray's job server is asked for. The entry point is a line for a shell, so every word of it is quoted."""
    place = {} if job.travels is None else {"working_dir": str(job.travels)}
    return {
        "submission_id": job.id,
        "entrypoint": shlex.join(job.away),
        "runtime_env": place,
        "metadata": {"job_name": job.name},
    }


class RayJobs:
    """Talks to the job server of a running cluster."""

    knows = frozenset({nodes.TYPES, nodes.LABELS})

    def __init__(self, cluster: RayCluster) -> None:
        self._address = cluster.address

    def machines(self) -> list[Node]:
        """The cluster's nodes, as they are now."""
        with _asking(self._address):
            answer = self._client()._do_request("GET", "/api/v0/nodes", params={"detail": 1, "limit": 10_000})
            answer.raise_for_status()
            found = answer.json()["data"]["result"]["result"]
            return [
                Node(each["node_ip"], each["resources_total"], each.get("labels") or {})
                for each in found
                if each["state"] == "ALIVE"
            ]

    def show(self, job: JobSpec) -> str:
        import yaml

        return yaml.safe_dump({"POST": f"{self._address}/api/jobs/", **body(job)}, sort_keys=False, width=1000)

    def submit(self, job: JobSpec) -> str:
        """Send the spec's folder and the job; returns its id.

        Raises:
            StageError: the folder is too large, or the cluster does not answer, or refuses.
        """
        sent = body(job)
        with tempfile.TemporaryDirectory() as scratch:
            if job.travels is not None:
                archive = Path(scratch, "spec.zip")
                folder.pack(job.travels, archive, _BOUND)
                sent["runtime_env"] = {"working_dir": str(archive)}
            with _asking(self._address):
                return str(self._client().submit_job(**sent))

    def status(self, job: str) -> JobStatus:
        try:
            with _asking(self._address, job):
                info = self._client().get_job_info(job)
        except NoSuchJob as error:
            return JobStatus("gone", str(error).partition(": ")[2])
        # Of a failed job the message is a sentence of Ray's and the end of the log, which people read anyway.
        detail = (info.message or "").partition("\n")[0].partition(", last available logs")[0]
        return JobStatus(_STATES[info.status.value], "" if info.status.value in ("RUNNING", "SUCCEEDED") else detail)

    def logs(self, job: str) -> str:
        with _asking(self._address, job):
            return str(self._client().get_job_logs(job))

    def stop(self, job: str) -> None:
        """Ask for its end: Ray interrupts the driver, and kills it if it does not end by itself."""
        with _asking(self._address, job):
            self._client().stop_job(job)

    def _client(self) -> Any:
        from ray.job_submission import JobSubmissionClient

        class Client(JobSubmissionClient):  # type: ignore[misc]
            """Does not wait for ever for an answer."""

            def _do_request(self, *words: Any, **options: Any) -> Any:
                return super()._do_request(*words, **{"timeout": _SECONDS * 6, **options})

        # With these Ray would ask the cluster that they name, whatever address it is given.
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            os.environ.pop(name, None)
        # Ray would wait for minutes for a machine that is not there.
        place = urlsplit(self._address)
        port = place.port or (443 if place.scheme == "https" else 80)
        socket.create_connection((place.hostname or "", port), timeout=_SECONDS).close()
        logging.getLogger("ray.dashboard").setLevel(logging.WARNING)  # else it tells of every upload
        return Client(self._address)


@contextlib.contextmanager
def _asking(address: str, job: str | None = None) -> Iterator[None]:
    """Ray's errors in words.

    Raises:
        StageError: instead of any of them.
    """
    with _IMPORT:
        import ray.job_submission  # noqa: F401
        import requests
        from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise StageError(_refused(address, str(error))) from None
    except (OSError, requests.RequestException) as error:
        inner = error.__cause__ or error.__context__
        if isinstance(inner, AuthenticationError):
            raise StageError(_refused(address, str(inner))) from None
        raise StageError(
            f"no Ray cluster answers at {address}. Is this its dashboard's address? `ray start --head` starts one at "
            "http://127.0.0.1:8265; to one elsewhere, a tunnel such as `ssh -L 8265:127.0.0.1:8265 HEAD` leads"
        ) from None
    except (KeyError, ValueError):
        raise StageError(f"what answers at {address} is no Ray dashboard") from None
    except RuntimeError as error:
        if job is not None and "does not exist" in str(error):
            raise NoSuchJob(f"{job}: the cluster at {address} has no such job; rondo jobs lists those sent") from None
        said = re.sub(r"(?s)^Request failed with status code (\d+): .*?(\S[^\n]*)\s*$", r"\1, \2", str(error))
        raise StageError(f"the Ray cluster at {address} refused: {said}") from None


def _refused(address: str, said: str) -> str:
    """What is wrong with the token; Ray says it in the first line, and goes on about files."""
    reason = said.partition("\n")[0]
    return (
        f"the Ray cluster at {address} wants a token: {reason}. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or "
        "RAY_AUTH_TOKEN_PATH) in this shell"
    )
