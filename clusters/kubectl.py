"""Jobs on Kubernetes, by way of kubectl and what it is allowed to do."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import yaml

from clusters import folder, rayjob
from clusters.job import JobSpec, JobStatus, NoSuchJob, State
from clusters.kuberay import Group, KubeRayCluster, WorkerGroup
from stages.base import StageError
from stages.io import nodes
from stages.io.nodes import Node

_BOUND = 750 << 10
"""Bytes of the spec's folder: a ConfigMap takes 1 MiB, and what is no text grows by a third in it."""
_SECONDS = 120
"""For which kubectl may take."""
_OF_MEMORY = 0.7
"""Of a pod's memory what Ray lends to workers; the rest is for its object store."""
_NOT_YET = ("not found", "waiting to start", "ContainerCreating", "PodInitializing", "timed out waiting")
"""What kubectl says of the log of a pod that has not begun."""
_STATES: dict[str, State] = {
    "Complete": "done", "Failed": "failed", "ValidationFailed": "failed", "Running": "running", "Retrying": "running",
}  # fmt: skip


class Kubectl:
    """Makes a RayJob, asks for it, and deletes it."""

    knows = frozenset({nodes.LABELS})

    def __init__(self, cluster: KubeRayCluster) -> None:
        self._cluster = cluster

    def machines(self) -> list[Node]:
        """The pods of a job, as many of each group as there may be."""
        cluster = self._cluster
        if not cluster.workers:
            return [_node("head", cluster.head)]
        return [_node(name, group) for name, group in cluster.workers.items() for _ in range(group.range[1])]

    def show(self, job: JobSpec) -> str:
        return readable(self._manifest(job))

    def submit(self, job: JobSpec) -> str:
        """Make the RayJob, and its ConfigMap, which goes when it goes. Its pods wait for the ConfigMap.

        Raises:
            StageError: the spec's folder is too large, or kubectl is missing or is refused.
        """
        files, ray_job = self._manifest(job)["items"]
        made = json.loads(self._ask("create", "-f", "-", "-o", "json", given=json.dumps(ray_job)))
        owner = {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": job.id, "uid": made["metadata"]["uid"]}
        files["metadata"]["ownerReferences"] = [owner]
        try:
            self._ask("create", "-f", "-", given=json.dumps(files))
        except StageError:
            self.stop(job.id)
            raise
        return job.id

    def status(self, job: str) -> JobStatus:
        answer = self._ask("get", "rayjob", job, "-o", "json", "--ignore-not-found")
        if not answer.strip():
            return JobStatus("gone", "Kubernetes does not know it (any more)")
        found = json.loads(answer)
        status = found.get("status", {})
        state = status.get("jobDeploymentStatus", "")
        if status.get("jobStatus") == "STOPPED":
            return JobStatus("stopped")
        detail = ": ".join(text for text in (status.get("reason"), status.get("message")) if text).partition("\n")[0]
        if state not in _STATES:
            return JobStatus("pending", detail or _waiting(found, status))
        return JobStatus(_STATES[state], detail if _STATES[state] == "failed" else "")

    def logs(self, job: str) -> str:
        try:
            return self._ask("logs", f"job/{job}", "--tail=-1")
        except StageError as error:
            if not any(words in str(error) for words in _NOT_YET):
                raise
            if self.status(job).state == "gone":
                raise NoSuchJob(f"{job}: Kubernetes has no such RayJob; rondo jobs lists those sent") from None
            return ""

    def stop(self, job: str) -> None:
        self._ask("delete", "rayjob", job, "--wait=false")

    def _manifest(self, job: JobSpec) -> dict[str, Any]:
        return rayjob.manifest(self._cluster, job, taken(self._cluster, job))

    def _ask(self, *arguments: str, given: str | None = None) -> str:
        """What kubectl answers.

        Raises:
            StageError: it is not here, or is refused.
        """
        where = ["--context", self._cluster.context] if self._cluster.context else []
        where += ["--namespace", self._cluster.namespace] if self._cluster.namespace else []
        try:
            done = subprocess.run(
                ["kubectl", *where, *arguments], input=given, capture_output=True, text=True, check=False,
                encoding="utf-8", errors="replace", timeout=_SECONDS,
            )  # fmt: skip
        except FileNotFoundError:
            raise StageError("kubectl is not installed here; jobs reach Kubernetes by way of it") from None
        except subprocess.TimeoutExpired:
            raise StageError(f"kubectl had no answer within {_SECONDS} s; is the cluster reachable?") from None
        if done.returncode:
            # What matters stands last, behind kubectl's own log.
            said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()] or [""]
            raise StageError(f"Kubernetes refused (kubectl {arguments[0]}): {said[-1].strip()}")
        return done.stdout


def taken(cluster: KubeRayCluster, job: JobSpec) -> dict[str, bytes]:
    """The files of the spec's folder that travel with a job, by their paths in it.

    Raises:
        StageError: they are too large.
    """
    if not job.travels or cluster.folder:
        return {}
    found = folder.files(job.travels, _BOUND)
    return {file.relative_to(job.travels).as_posix(): file.read_bytes() for file in found}


def readable(manifest: dict[str, Any]) -> str:
    """A manifest as YAML for people and for ``kubectl apply``."""
    return yaml.dump(manifest, Dumper=_Readable, sort_keys=False, width=120)


class _Readable(yaml.SafeDumper):
    """Without references to what stands elsewhere, and with scripts as blocks."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


_Readable.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def pinned(cluster: KubeRayCluster) -> KubeRayCluster:
    """The settings with kubectl's context and namespace of now, which may be others tomorrow."""
    asked = Kubectl(cluster)
    context = cluster.context or asked._ask("config", "current-context").strip()
    where = Kubectl(cluster.model_copy(update={"context": context}))
    namespace = cluster.namespace or where._ask("config", "view", "--minify", "-o", "jsonpath={..namespace}").strip()
    return cluster.model_copy(update={"context": context, "namespace": namespace or "default"})


def _node(name: str, group: Group) -> Node:
    has = {"CPU": group.cpus, "GPU": group.gpus, "memory": int(group.memory_gib * _OF_MEMORY * 2**30)}
    return Node(name, has, group.labels if isinstance(group, WorkerGroup) else {})


def _waiting(found: dict[str, Any], status: dict[str, Any]) -> str:
    """What a job that has not begun waits for."""
    queue = found["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name")
    if found["spec"].get("suspend") and queue:
        return f"in the queue {queue}"
    pods = status.get("rayClusterStatus", {})
    if "desiredWorkerReplicas" in pods:
        return f"{pods.get('readyWorkerReplicas', 0)} of {pods['desiredWorkerReplicas']} workers are ready"
    return "its Ray cluster is being made"
