"""Schedules on Kubernetes: the manifests of a RayCronJob and of a CronJob. No cluster is needed."""

from __future__ import annotations

import importlib.metadata
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from clusters.job import JobSpec
from clusters.kubectl import readable, taken
from clusters.raycron import cron_job, ray_cron_job, schedule_name
from clusters.rayjob import manifest, ray_job_spec
from stages.base import StageError
from tests.unit.test_kuberay import kuberay, pods

GOLDEN = Path(__file__).parents[1] / "golden"
TICKS = ("0 2 * * *", "Asia/Jakarta")
FILES = {"spec.yaml": b"name: nightly\n", "raw": b"\xff\xfe"}


def nightly(name: str = "nightly") -> JobSpec:
    options = ("--once", "--store", "s3://bucket/runs", "--address", "auto")
    folder = Path("/work")
    return JobSpec("nightly-0a1b2c", name, "sent/spec.yaml", options, folder, folder / "sent/spec.yaml", "schedule")


def by_kind(made: dict[str, Any]) -> dict[str, dict[str, Any]]:
    assert (made["apiVersion"], made["kind"]) == ("v1", "List")
    found = {item["kind"]: item for item in made["items"]}
    assert len(found) == len(made["items"])
    return found


def posted(made: dict[str, Any]) -> dict[str, Any]:
    """The RayJob that a CronJob's pod makes."""
    found: dict[str, Any] = json.loads(by_kind(made)["ConfigMap"]["data"]["rayjob.json"])
    return found


@pytest.mark.parametrize(("form", "golden"), [(ray_cron_job, "raycronjob.yaml"), (cron_job, "cronjob.yaml")])
def test_the_manifests_are_as_they_were(form: Any, golden: str) -> None:
    cluster = kuberay(namespace="ml", secrets=["rondo-store"], image_pull_secrets=["pull"])
    text = readable(form(cluster, nightly(), FILES, *TICKS))
    assert text.replace(importlib.metadata.version("ray"), "2.60.0") == (GOLDEN / golden).read_text()


def test_a_tick_is_the_command_once_in_the_copy_of_the_folder() -> None:
    for form in (ray_cron_job, cron_job):
        config = by_kind(form(kuberay(), nightly(), FILES, *TICKS))["ConfigMap"]
        script = "exec rondo schedule ./spec.yaml --once --store s3://bucket/runs --address auto\n"
        assert config["data"]["run.sh"] == "#!/bin/sh\ncd /rondo/job/spec && " + script
        assert (config["data"]["file-0"], config["binaryData"]) == ("name: nightly\n", {"file-1": "//4="})


def test_kuberay_keeps_the_time() -> None:
    cluster = kuberay(namespace="ml", retries=5, keep_seconds=60, time_limit_seconds=99)
    found = by_kind(ray_cron_job(cluster, nightly(), FILES, *TICKS))
    made = found["RayCronJob"]
    assert made["apiVersion"] == "ray.io/v1"
    assert made["metadata"] == {
        "name": "rondo-nightly", "namespace": "ml",
        "labels": {"app.kubernetes.io/name": "rondo", "rondo/pipeline": "nightly"},
    }  # fmt: skip
    assert set(made["spec"]) == {"schedule", "timeZone", "jobTemplate"}
    assert (made["spec"]["schedule"], made["spec"]["timeZone"]) == TICKS
    template = made["spec"]["jobTemplate"]
    assert template == ray_job_spec(cluster, FILES, "rondo-nightly")
    assert (template["backoffLimit"], template["activeDeadlineSeconds"]) == (5, 99)
    assert "suspend" not in template
    assert found["ConfigMap"]["metadata"]["name"] == "rondo-nightly"


def test_kubernetes_keeps_the_time() -> None:
    made = by_kind(cron_job(kuberay(namespace="ml"), nightly(), FILES, *TICKS))["CronJob"]
    assert made["apiVersion"] == "batch/v1"
    assert (made["metadata"]["name"], made["metadata"]["namespace"]) == ("rondo-nightly", "ml")
    spec = made["spec"]
    assert (spec["schedule"], spec["timeZone"], spec["concurrencyPolicy"]) == (*TICKS, "Forbid")
    assert spec["startingDeadlineSeconds"] == 86_400
    assert (spec["successfulJobsHistoryLimit"], spec["failedJobsHistoryLimit"]) == (1, 3)
    job = spec["jobTemplate"]["spec"]
    assert (job["backoffLimit"], job["activeDeadlineSeconds"]) == (2, 1800)


def test_the_pod_of_a_tick_may_make_rayjobs_and_nothing_else() -> None:
    cluster = kuberay(namespace="ml", service_account="robot", secrets=["one"], image_pull_secrets=["pull"])
    found = by_kind(cron_job(cluster, nightly(), FILES, *TICKS))
    assert list(found) == ["ConfigMap", "ServiceAccount", "Role", "RoleBinding", "CronJob"]
    assert {(item["metadata"]["name"], item["metadata"]["namespace"]) for item in found.values()} == {
        ("rondo-nightly", "ml")
    }
    assert found["ServiceAccount"]["automountServiceAccountToken"] is False
    assert found["Role"]["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}]
    assert found["RoleBinding"]["roleRef"] == {
        "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "rondo-nightly",
    }  # fmt: skip
    assert found["RoleBinding"]["subjects"] == [{"kind": "ServiceAccount", "name": "rondo-nightly", "namespace": "ml"}]
    pod = found["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == ("rondo-nightly", True)
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    assert pod["restartPolicy"] == "Never"
    security = pods(posted(cron_job(cluster, nightly(), FILES, *TICKS))["spec"])[0]["securityContext"]
    assert pod["securityContext"] == security
    assert security["runAsNonRoot"] is True
    (container,) = pod["containers"]
    assert container["image"] == "rondo:cpu"
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert container["command"] == ["python", "-m", "clusters.create_rayjob", "/rondo/job/rayjob.json"]
    assert not {"env", "envFrom"} & set(container)
    (volume,) = pod["volumes"]
    items = [{"key": "rayjob.json", "path": "rayjob.json"}]
    assert volume == {"name": "job", "configMap": {"name": "rondo-nightly", "items": items}}
    assert container["volumeMounts"] == [{"name": "job", "mountPath": "/rondo/job", "readOnly": True}]


def test_the_rayjob_of_a_tick_is_that_of_submit_but_for_its_name() -> None:
    cluster = kuberay(namespace="ml", service_account="robot", workers={"gpu": {"gpus": 1, "workers": [0, 2]}})
    made = posted(cron_job(cluster, nightly(), FILES, *TICKS))
    sent = manifest(cluster, nightly(), FILES)["items"][1]
    assert made["metadata"].pop("generateName") == "rondo-nightly-"
    assert sent["metadata"].pop("name") == "nightly-0a1b2c"
    assert json.dumps(made) == json.dumps(sent).replace("nightly-0a1b2c", "rondo-nightly")
    assert [pod["serviceAccountName"] for pod in pods(made["spec"])] == ["robot"] * 3


def test_without_a_namespace_none_is_named() -> None:
    made = cron_job(kuberay(), nightly(), FILES, *TICKS)
    assert "namespace" not in readable(made) + json.dumps(posted(made))


def test_a_queue_needs_a_label_that_only_the_cronjob_can_give() -> None:
    cluster = kuberay(queue="team")
    with pytest.raises(StageError, match="a queue of Kueue; take the form of a CronJob"):
        ray_cron_job(cluster, nightly(), FILES, *TICKS)
    made = cron_job(cluster, nightly(), FILES, *TICKS)
    assert posted(made)["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert posted(made)["spec"]["suspend"] is True
    # The pod that makes the RayJob waits in no queue.
    assert "metadata" not in by_kind(made)["CronJob"]["spec"]["jobTemplate"]


def test_a_folder_in_the_image_does_not_travel(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("name: nightly\n")
    job = replace(nightly(), file=tmp_path / "spec.yaml")
    assert taken(kuberay(), job) == {"spec.yaml": b"name: nightly\n"}
    cluster = kuberay(folder="/app/specs")
    files = taken(cluster, job)
    assert files == {}
    for form, keys in ((ray_cron_job, ["run.sh"]), (cron_job, ["run.sh", "rayjob.json"])):
        config = by_kind(form(cluster, nightly(), files, *TICKS))["ConfigMap"]
        assert list(config["data"]) == keys
        assert config["data"]["run.sh"].startswith(
            "#!/bin/sh\ncd /app/specs && exec rondo schedule ./spec.yaml --once "
        )


@pytest.mark.parametrize("pipeline", ["a", "7", "n" * 30, "n" * 31, "n" * 63, f"{'n' * 20}-{'n' * 42}"])
def test_names_are_stable_and_within_every_limit(pipeline: str) -> None:
    name = schedule_name(pipeline)
    assert name == schedule_name(pipeline)
    # KubeRay's for a RayCronJob is 36, for a RayJob 47 with 5 random characters; Kubernetes' for a CronJob 52.
    assert len(name) <= 36
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name)
    assert "--" not in name
    for form in (ray_cron_job, cron_job):
        made = form(kuberay(), nightly(pipeline), FILES, *TICKS)
        assert {item["metadata"]["name"] for item in made["items"]} == {name}
        assert {item["metadata"]["labels"]["rondo/pipeline"] for item in made["items"]} == {pipeline}


def test_pipelines_whose_long_names_begin_alike_have_schedules_of_their_own() -> None:
    assert schedule_name("n" * 30) == f"rondo-{'n' * 30}"
    assert len({schedule_name("n" * length) for length in range(1, 64)}) == 63


def test_what_is_printed_can_be_read_back() -> None:
    for form in (ray_cron_job, cron_job):
        made = form(kuberay(), nightly(), FILES, *TICKS)
        assert yaml.safe_load(readable(made)) == made
