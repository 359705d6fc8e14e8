"""The manifest of a run on Kubernetes: a RayJob, and a ConfigMap with its command and the spec's folder.

KubeRay puts a job's entry point into a line of bash, and Ray's job server runs what comes out of it in another shell.
So the entry point is the name of a script, and all that a user wrote stands in the script, quoted once.
"""

from __future__ import annotations

import base64
import importlib.metadata
import shlex
from collections.abc import Mapping
from typing import Any

from clusters.job import JobSpec
from clusters.kuberay import Group, KubeRayCluster, WorkerGroup

PLACE = "/rondo/job"
_CACHE = "/rondo/cache"
_SCRIPT = "run.sh"
_SHM_SHARE = 0.3
"""Of a pod's memory what Ray's objects may take, as Ray has it by default."""
CONTAINER_SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def manifest(cluster: KubeRayCluster, job: JobSpec, files: Mapping[str, bytes]) -> dict[str, Any]:
    """What is sent to Kubernetes. ``files`` are those of the spec's folder by their paths in it."""
    named = metadata(cluster, job, job.id)
    return {
        "apiVersion": "v1",
        "kind": "List",
        "items": [config_map(cluster, job, files, job.id), ray_job(cluster, files, job.id, named)],
    }


def entry(cluster: KubeRayCluster, job: JobSpec) -> str:
    """The script that the job runs."""
    folder = cluster.folder or (f"{PLACE}/spec" if job.travels else PLACE)
    return f"#!/bin/sh\ncd {shlex.quote(folder)} && exec {shlex.join(job.away)}\n"


def config_map(cluster: KubeRayCluster, job: JobSpec, files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """What the pods of a job find at ``PLACE``."""
    text: dict[str, str] = {_SCRIPT: entry(cluster, job)}
    other: dict[str, str] = {}
    for key, content in zip(_keys(files), files.values(), strict=True):
        try:
            text[key] = content.decode()
        except UnicodeDecodeError:
            other[key] = base64.b64encode(content).decode()
    binary = {"binaryData": other} if other else {}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(cluster, job, name), "data": text, **binary}


def _keys(files: Mapping[str, bytes]) -> list[str]:
    """A name in the ConfigMap for each file; a path is none."""
    return [f"file-{number}" for number in range(len(files))]


def metadata(cluster: KubeRayCluster, job: JobSpec, name: str) -> dict[str, Any]:
    """The metadata of an object ``name`` that belongs to a job."""
    labels = {"app.kubernetes.io/name": "rondo", "rondo/pipeline": job.name}
    if cluster.queue:
        labels["kueue.x-k8s.io/queue-name"] = cluster.queue
    namespace = {"namespace": cluster.namespace} if cluster.namespace else {}
    return {"name": name, **namespace, "labels": labels}


def ray_job(cluster: KubeRayCluster, files: Mapping[str, bytes], config: str, named: dict[str, Any]) -> dict[str, Any]:
    """A RayJob with the metadata ``named``, whose pods mount the ConfigMap ``config`` with ``files``."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": named,
        "spec": ray_job_spec(cluster, files, config),
    }


def ray_job_spec(cluster: KubeRayCluster, files: Mapping[str, bytes], config: str) -> dict[str, Any]:
    """What a RayJob says but for its metadata, as a RayCronJob holds it."""
    limit = {"activeDeadlineSeconds": cluster.time_limit_seconds} if cluster.time_limit_seconds else {}
    return {
        "entrypoint": f"sh {PLACE}/{_SCRIPT}",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": cluster.keep_seconds,
        "backoffLimit": cluster.retries,
        **limit,
        **({"suspend": True} if cluster.queue else {}),  # until Kueue lets it in
        "submitterPodTemplate": _submitter(cluster),
        "rayClusterSpec": _ray_cluster(cluster, files, config),
    }


def _ray_cluster(cluster: KubeRayCluster, files: Mapping[str, bytes], config: str) -> dict[str, Any]:
    scaling: dict[str, Any] = {}
    if cluster.grows:
        scaling = {
            "enableInTreeAutoscaling": True,
            "autoscalerOptions": {"idleTimeoutSeconds": 60, "securityContext": CONTAINER_SECURITY},
        }
    return {
        "rayVersion": importlib.metadata.version("ray"),
        **({"authOptions": {"mode": "token"}} if cluster.token_auth else {}),
        **scaling,
        "headGroupSpec": {
            # With workers the head only directs them.
            "rayStartParams": {"num-cpus": "0"} if cluster.workers else {},
            "template": {"spec": _pod(cluster, files, config, "ray-head", cluster.head)},
        },
        "workerGroupSpecs": [_worker_group(cluster, files, config, *each) for each in cluster.workers.items()],
    }


def _worker_group(
    cluster: KubeRayCluster, files: Mapping[str, bytes], config: str, name: str, group: WorkerGroup
) -> dict[str, Any]:
    fewest, most = group.range
    return {
        "groupName": name,
        "replicas": fewest,
        "minReplicas": fewest,
        "maxReplicas": most,
        "rayStartParams": {},
        **({"labels": dict(group.labels)} if group.labels else {}),
        "template": {"spec": _pod(cluster, files, config, "ray-worker", group)},
    }


def _pod(cluster: KubeRayCluster, files: Mapping[str, bytes], config: str, name: str, group: Group) -> dict[str, Any]:
    size = {"cpu": str(group.cpus), "memory": f"{group.memory_gib}Gi"}
    if group.gpus:
        size["nvidia.com/gpu"] = str(group.gpus)
    volumes, mounts = _volumes(cluster, files, config, group)
    container = {
        "name": name,
        "image": cluster.image,
        "resources": {"requests": size, "limits": size},
        "env": [{"name": key, "value": value} for key, value in _environment(cluster).items()],
        "envFrom": [{"secretRef": {"name": secret}} for secret in cluster.secrets],
        "volumeMounts": mounts,
        "securityContext": CONTAINER_SECURITY,
    }
    placed: dict[str, Any] = {}
    if group.node_selector:
        placed["nodeSelector"] = dict(group.node_selector)
    if group.tolerations:
        placed["tolerations"] = [each.model_dump(exclude_none=True) for each in group.tolerations]
    needs_api = name == "ray-head" and cluster.grows  # the autoscaler beside the head asks for pods
    return {
        **account(cluster),
        "automountServiceAccountToken": needs_api,
        "securityContext": pod_security(cluster),
        "containers": [container],
        "volumes": volumes,
        **placed,
    }


def account(cluster: KubeRayCluster) -> dict[str, Any]:
    """Of a pod: as whom it runs, and with which account its image is fetched."""
    found: dict[str, Any] = {}
    if cluster.service_account:
        found["serviceAccountName"] = cluster.service_account
    if cluster.image_pull_secrets:
        found["imagePullSecrets"] = [{"name": secret} for secret in cluster.image_pull_secrets]
    return found


def pod_security(cluster: KubeRayCluster) -> dict[str, Any]:
    """Of a pod: it runs as a user that is not root."""
    user = cluster.run_as
    return {"runAsNonRoot": True, "runAsUser": user, "runAsGroup": user, "fsGroup": user,
            "seccompProfile": {"type": "RuntimeDefault"}}  # fmt: skip


def _environment(cluster: KubeRayCluster) -> dict[str, str]:
    own = {
        "RONDO_CACHE": f"{_CACHE}/copies",
        "RONDO_CACHE_GIB": str(max(1, cluster.cache_gib // 2)),  # the other half is for models of a hub
        "HF_HOME": f"{_CACHE}/huggingface",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    # Kubernetes would read $(NAME) as a variable.
    return own | {name: value.replace("$(", "$$(") for name, value in cluster.env.items()}


def _volumes(
    cluster: KubeRayCluster, files: Mapping[str, bytes], config: str, group: Group
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A pod's volumes, and where they stand in it: the command and the spec, a disk for copies, memory for Ray's
    objects, and the user's own volume."""
    items = [{"key": _SCRIPT, "path": _SCRIPT}]
    items += [{"key": key, "path": f"spec/{path}"} for key, path in zip(_keys(files), files, strict=True)]
    shm = f"{max(1, round(group.memory_gib * _SHM_SHARE))}Gi"
    volumes: list[dict[str, Any]] = [
        {"name": "job", "configMap": {"name": config, "items": items}},
        {"name": "cache", "emptyDir": {"sizeLimit": f"{cluster.cache_gib}Gi"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shm}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "job", "mountPath": PLACE, "readOnly": True},
        {"name": "cache", "mountPath": _CACHE},
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
    ]
    if cluster.volume:
        volumes.append({"name": "volume", "persistentVolumeClaim": {"claimName": cluster.volume.claim}})
        mounts.append({"name": "volume", "mountPath": cluster.volume.path})
    return volumes, mounts


def _submitter(cluster: KubeRayCluster) -> dict[str, Any]:
    """The pod in which KubeRay hands the job to Ray, and whose log is the job's."""
    size = {"cpu": "500m", "memory": "1Gi"}
    container = {
        "name": "ray-job-submitter",
        "image": cluster.image,
        "resources": {"requests": size, "limits": size},
        "securityContext": CONTAINER_SECURITY,
    }
    return {
        "spec": {
            "restartPolicy": "Never",
            **account(cluster),
            "automountServiceAccountToken": False,
            "securityContext": pod_security(cluster),
            "containers": [container],
        }
    }
