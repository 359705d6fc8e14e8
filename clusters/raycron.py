"""The manifests of a schedule on Kubernetes: a RayJob at every tick of a cron line.

There are two forms. Both take five fields as robfig/cron reads them (a Sunday is 0, not 7) and the name of a time zone,
and both keep their names when they are made again, so that applying a manifest changes the schedule that is there. A
RayJob that is running then sees the new files in its ConfigMap. Apply with ``kubectl apply --server-side``: without it
kubectl keeps a copy of the ConfigMap in an annotation, which takes 256 KiB. RayJobs stay when they have ended.

A **RayCronJob** is KubeRay's own, alpha, behind the operator's feature gate ``RayCronJob``. As of KubeRay 1.7.0:

- ``timeZone`` is new in 1.7.0; 1.6 has no such field, and takes the operator's own time zone. A ``TZ=`` before the
  schedule, which 1.6 let through, 1.7 refuses.
- Its name has at most 36 characters, since a RayJob's, with the tick's minute behind it, has at most 47.
- There is no policy of overlapping and no deadline: RayJobs overlap, and after a pause each missed tick makes one.
- There is no metadata in its template, so a RayJob cannot have the label by which Kueue knows its queue.

A **CronJob** is Kubernetes' own (its ``timeZone`` since 1.27). Its pod makes a RayJob (``create_rayjob``) and ends, so
RayJobs of different ticks may overlap here too. Of missed ticks the last one is made up for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from clusters import rayjob
from clusters.job import JobSpec
from clusters.kuberay import KubeRayCluster
from stages.base import StageError

_NAME_LENGTH = 36
_RAY_JOB = "rayjob.json"
_LATE = 86_400
"""Seconds for which a missed tick is made up for. In a day a line that ticks every quarter of an hour stays below the
100 missed ticks from which on Kubernetes may give a schedule up."""
_PATIENCE = 1800
"""Seconds for which the pod that makes a RayJob may take, most of them for its image: one that never starts must not
keep all later ticks out."""


def ray_cron_job(
    cluster: KubeRayCluster, job: JobSpec, files: Mapping[str, bytes], cron: str, timezone: str
) -> dict[str, Any]:
    """A schedule that KubeRay keeps. ``files`` are those of the spec's folder by their paths in it.

    Raises:
        StageError: the cluster file names a queue of Kueue.
    """
    if cluster.queue:
        raise StageError(
            "a RayCronJob of KubeRay cannot put its RayJobs into a queue of Kueue; take the form of a CronJob"
        )
    name = schedule_name(job.name)
    made = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCronJob",
        "metadata": rayjob.metadata(cluster, job, name),
        "spec": {"schedule": cron, "timeZone": timezone, "jobTemplate": rayjob.ray_job_spec(cluster, files, name)},
    }
    return {"apiVersion": "v1", "kind": "List", "items": [rayjob.config_map(cluster, job, files, name), made]}


def cron_job(
    cluster: KubeRayCluster, job: JobSpec, files: Mapping[str, bytes], cron: str, timezone: str
) -> dict[str, Any]:
    """A schedule that Kubernetes keeps, for operators without RayCronJob; with an account that may make RayJobs and
    nothing else. ``files`` are those of the spec's folder by their paths in it."""
    name = schedule_name(job.name)
    named = rayjob.metadata(cluster, job, name)
    config = rayjob.config_map(cluster, job, files, name)
    generated = {"generateName": f"{name}-"} | {key: value for key, value in named.items() if key != "name"}
    config["data"][_RAY_JOB] = json.dumps(rayjob.ray_job(cluster, files, name, generated), indent=1) + "\n"
    return {
        "apiVersion": "v1",
        "kind": "List",
        "items": [config, *_account(named), _ticks(cluster, named, cron, timezone)],
    }


def schedule_name(pipeline: str) -> str:
    """What a pipeline's schedule and its ConfigMap are called, in either form. Of a long name the end becomes a hash,
    so that no two pipelines share one."""
    name = f"rondo-{pipeline}"
    if len(name) <= _NAME_LENGTH:
        return name
    ending = hashlib.sha256(pipeline.encode()).hexdigest()[:8]
    return f"{name[: _NAME_LENGTH - 9].rstrip('-')}-{ending}"


def _account(named: dict[str, Any]) -> list[dict[str, Any]]:
    """The account of the pods that make RayJobs, and what it may do."""
    rbac = "rbac.authorization.k8s.io"
    account = {"kind": "ServiceAccount", "name": named["name"]}
    account |= {"namespace": named["namespace"]} if "namespace" in named else {}
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": named,
            "automountServiceAccountToken": False,
        },
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "Role",
            "metadata": named,
            "rules": [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}],
        },
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "metadata": named,
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": named["name"]},
            "subjects": [account],
        },
    ]


def _ticks(cluster: KubeRayCluster, named: dict[str, Any], cron: str, timezone: str) -> dict[str, Any]:
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": named,
        "spec": {
            "schedule": cron,
            "timeZone": timezone,
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": _LATE,
            "successfulJobsHistoryLimit": 1,
            "failedJobsHistoryLimit": 3,
            "jobTemplate": {
                "spec": {
                    "backoffLimit": 2,
                    "activeDeadlineSeconds": _PATIENCE,
                    "template": {"spec": _pod(cluster, named["name"])},
                }
            },
        },
    }


def _pod(cluster: KubeRayCluster, name: str) -> dict[str, Any]:
    """The pod of a tick."""
    size = {"cpu": "100m", "memory": "256Mi"}
    container = {
        "name": "create-rayjob",
        "image": cluster.image,
        "command": ["python", "-m", "clusters.create_rayjob", f"{rayjob.PLACE}/{_RAY_JOB}"],
        "resources": {"requests": size, "limits": size},
        "volumeMounts": [{"name": "job", "mountPath": rayjob.PLACE, "readOnly": True}],
        "securityContext": rayjob.CONTAINER_SECURITY,
    }
    return {
        "restartPolicy": "Never",
        **rayjob.account(cluster),
        "serviceAccountName": name,
        "automountServiceAccountToken": True,
        "securityContext": rayjob.pod_security(cluster),
        "containers": [container],
        "volumes": [{"name": "job", "configMap": {"name": name, "items": [{"key": _RAY_JOB, "path": _RAY_JOB}]}}],
    }
