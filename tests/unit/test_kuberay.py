"""Runs as RayJobs on Kubernetes: the manifest, and what is asked of kubectl. No cluster is needed."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import clusters
from clusters.job import JobSpec, JobStatus
from clusters.kubectl import Kubectl, pinned
from clusters.kuberay import KubeRayCluster
from clusters.rayjob import entry, manifest
from stages.base import StageError
from tests.unit import workspace
from tests.unit.test_cli import rondo
from tests.unit.workspace import SPEC

GOLDEN = Path(__file__).parents[1] / "golden" / "rayjob.yaml"
SMALL = "kind: kuberay\nimage: rondo\nstore: s3://bucket/runs\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return workspace.sent(tmp_path, "k.yaml", SMALL)


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in that notes its arguments and what it is given, and answers with the file ``answer``."""
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n'
        f'case "$*" in *" -f "*) cat >> {tmp_path}/given; echo >> {tmp_path}/given;; esac\n'
        f"test -e {tmp_path}/refuse && {{ cat {tmp_path}/refuse >&2; exit 1; }}\ncat {tmp_path}/answer\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/bin:/usr/bin")
    return tmp_path


def kuberay(**settings: object) -> KubeRayCluster:
    return KubeRayCluster.model_validate(
        {"kind": "kuberay", "image": "rondo:cpu", "store": "s3://bucket/runs", **settings}
    )


def job(folder: Path = Path("/work"), *options: str, spec: str = "sent/spec.yaml") -> JobSpec:
    return JobSpec("tiny-0a1b2c", "tiny", spec, options, folder, folder / spec)


def ray_job(cluster: KubeRayCluster, files: dict[str, bytes] | None = None) -> dict[str, Any]:
    spec: dict[str, Any] = manifest(cluster, job(), files or {})["items"][1]["spec"]
    return spec


def pods(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Of the head, the workers and the submitter."""
    made = spec["rayClusterSpec"]
    groups = [made["headGroupSpec"], *made["workerGroupSpecs"]]
    return [spec["submitterPodTemplate"]["spec"], *(group["template"]["spec"] for group in groups)]


def test_the_manifest_of_the_file_to_copy_is_as_it_was(folder: Path) -> None:
    shutil.copy(Path(clusters.__file__).parent / "kuberay.yaml", folder / "copied.yaml")
    printed = rondo("submit", "sent/spec.yaml", "--cluster", "copied.yaml", "--dry-run", "--set", "train.beta=0.2")
    assert printed.exit_code == 0, printed.output
    made = yaml.safe_load(printed.stdout)
    name = made["items"][0]["metadata"]["name"]
    assert name.startswith("tiny-")
    assert len(name) <= 47
    version = made["items"][1]["spec"]["rayClusterSpec"]["rayVersion"]
    text = printed.stdout.replace(name, "tiny-0a1b2c").replace(version, "2.60.0")
    assert text == GOLDEN.read_text()


def test_the_entry_point_is_a_script_and_the_words_of_the_command_stand_in_it(tmp_path: Path) -> None:
    """KubeRay and Ray put the entry point through three shells."""
    words = ("--set", "a='; touch stolen; $(touch stolen) \"", "--store", "`touch stolen`", "--set", "$(HOME)\n#")
    made = job(Path("/it's $(touch stolen)"), *words, spec="in/-s '$(touch stolen).yaml")
    sent = manifest(kuberay(), made, {"a": b"$(touch stolen)"})
    assert sent["items"][1]["spec"]["entrypoint"] == "sh /rondo/job/run.sh"
    script = sent["items"][0]["data"]["run.sh"].replace("/rondo/job/spec", str(tmp_path))
    (tmp_path / "rondo").write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
    (tmp_path / "rondo").chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, check=True, env={"PATH": f"{tmp_path}:/bin:/usr/bin"}
    )
    assert done.stdout.split("\0")[:-1] == ["run", "./-s '$(touch stolen).yaml", *words]
    assert not list(tmp_path.rglob("stolen"))
    assert yaml.safe_load(yaml.safe_dump(sent)) == sent


def test_files_of_the_folder_stand_where_they_stood(folder: Path) -> None:
    (folder / "sent" / "deep").mkdir()
    (folder / "sent" / "deep" / "raw").write_bytes(b"\xff\xfe")
    (folder / "sent" / ".env").write_text("SECRET=1")
    printed = rondo("submit", "sent/spec.yaml", "--cluster", "k.yaml", "--dry-run")
    config, made = yaml.safe_load(printed.stdout)["items"]
    (volume,) = (each for each in pods(made["spec"])[1]["volumes"] if each["name"] == "job")
    held = config["data"] | config["binaryData"]
    content = {item["path"]: held[item["key"]] for item in volume["configMap"]["items"]}
    assert content["spec/spec.yaml"] == SPEC
    assert content["spec/deep/raw"] == "//4="
    assert not [path for path in content if ".env" in path]
    assert len(content) == len(held)


def test_pods_are_not_root_and_may_nothing(folder: Path) -> None:
    spec = ray_job(kuberay(workers={"gpu": {"gpus": 1, "workers": [0, 2]}}))
    for pod in pods(spec):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert [pod["automountServiceAccountToken"] for pod in pods(spec)] == [False, True, False]
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_settings_stand_where_kuberay_looks_for_them() -> None:
    taint = {"key": "spot", "effect": "NoSchedule"}
    gpu = {"cpus": 16, "memory_gib": 200, "gpus": 8, "workers": 2, "node_selector": {"kind": "h100"},
           "tolerations": [taint], "labels": {"zone": "far"}}  # fmt: skip
    spec = ray_job(
        kuberay(
            workers={"gpu": gpu}, queue="team", service_account="robot", secrets=["one", "two"],
            env={"A": "$(B)", "TOKENIZERS_PARALLELISM": "false"},
            volume={"claim": "disk", "path": "/data"}, store="/data/runs", retries=5, keep_seconds=60,
            time_limit_seconds=99, image_pull_secrets=["pull"], token_auth=False,
        )
    )  # fmt: skip
    assert (spec["backoffLimit"], spec["ttlSecondsAfterFinished"], spec["activeDeadlineSeconds"]) == (5, 60, 99)
    assert spec["suspend"] is True
    made = spec["rayClusterSpec"]
    assert "authOptions" not in made
    assert "enableInTreeAutoscaling" not in made
    assert made["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    (group,) = made["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (2, 2, 2)
    assert group["labels"] == {"zone": "far"}
    pod = group["template"]["spec"]
    assert pod["nodeSelector"] == {"kind": "h100"}
    assert pod["tolerations"] == [{**taint, "operator": "Exists"}]
    assert pod["serviceAccountName"] == "robot"
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"cpu": "16", "memory": "200Gi", "nvidia.com/gpu": "8"}
    assert container["envFrom"] == [{"secretRef": {"name": "one"}}, {"secretRef": {"name": "two"}}]
    assert {"name": "A", "value": "$$(B)"} in container["env"]
    assert {"name": "volume", "mountPath": "/data"} in container["volumeMounts"]
    assert {"name": "volume", "persistentVolumeClaim": {"claimName": "disk"}} in pod["volumes"]
    labels = manifest(kuberay(queue="team"), job(), {})["items"][1]["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "team"


def test_a_cluster_that_grows_is_waited_for_and_one_that_does_not_is_not(folder: Path) -> None:
    grows = SMALL + "workers: {cpu: {workers: [0, 2]}}\n"
    (folder / "grows.yaml").write_text(grows)
    texts = [
        rondo("submit", "sent/spec.yaml", "--cluster", name, "--dry-run").stdout for name in ("grows.yaml", "k.yaml")
    ]
    assert ["--wait 1800" in text for text in texts] == [True, False]
    assert ["enableInTreeAutoscaling: true" in text for text in texts] == [True, False]
    check = ["check", "sent/spec.yaml", "--cluster", "grows.yaml", "--set"]
    by_type = rondo(*check, "resources.train.accelerator_type=H100")
    assert by_type.exit_code == 2
    assert "resources.train: accelerator_type H100: Ray does not know the type of machines" in by_type.stderr
    (folder / "grows.yaml").write_text(SMALL + "workers: {cpu: {workers: [0, 2], labels: {zone: far}}}\n")
    codes = [rondo(*check, f"resources.train.label_selector.zone={zone}").exit_code for zone in ("far", "near")]
    assert codes == [0, 2]
    many = rondo("check", "sent/spec.yaml", "--cluster", "grows.yaml", "--set", "resources.train.workers=5")
    assert many.exit_code == 2
    assert "5 workers with 1 CPUs each; there is room for 4 on nodes with: " in many.stderr


def test_a_folder_in_the_image_does_not_travel(folder: Path) -> None:
    (folder / "k.yaml").write_text(SMALL + "folder: /app/specs\n")
    config, _ = yaml.safe_load(rondo("submit", "sent/spec.yaml", "--cluster", "k.yaml", "--dry-run").stdout)["items"]
    assert list(config["data"]) == ["run.sh"]
    assert "cd /app/specs && exec rondo run ./spec.yaml " in config["data"]["run.sh"]


def test_a_recipe_is_in_the_image() -> None:
    made = JobSpec("quickstart-0a1b2c", "quickstart", "quickstart", (), Path("/work"), None)
    assert entry(kuberay(), made) == "#!/bin/sh\ncd /rondo/job && exec rondo run quickstart\n"


def test_a_folder_that_is_too_large_says_what_is_large(folder: Path, kubectl: Path) -> None:
    (kubectl / "answer").write_text("here\n")
    (folder / "sent" / "big.jsonl").write_bytes(b"x" * (800 << 10))
    for options in ([], ["--dry-run"]):
        found = rondo("submit", "sent/spec.yaml", "--cluster", "k.yaml", *options)
        assert found.exit_code == 1
        assert "holds more than 0.7 MiB: big.jsonl (0.8 MiB)" in found.stderr


@pytest.mark.parametrize(
    ("extra", "message"),
    [("env: {HF_TOKEN: x}", "k.yaml:4 env: HF_TOKEN looks like a secret; put it into a Secret"),
     ("env: {HUB: hf_abcdefghijklmnopqrst}", "HUB looks like a secret"),
     ("env: {URL: 'postgres://u:pw@h/db'}", "URL looks like a secret"),
     ("workers: {headgroup: {}}", "headgroup is what KubeRay calls the head"),
     ("queue: team\nworkers: {a: {workers: [0, 1]}}", "a queue of Kueue takes jobs of a fixed size"),
     ("workers: {a: {workers: [2, 1]}}", "k.yaml:4 workers.a.workers: expected [fewest, most], got [2, 1]"),
     ("workers: {A: {}}", "lower-case letters, digits and hyphens, a letter first"),
     ("nodeselector: {}", "k.yaml:4 nodeselector: unknown key"),
     ("head: {cpu: 3}", "k.yaml:4 head.cpu: unknown key; did you mean 'cpus'?"),
     ("namespace: 'a b'", "k.yaml:4 namespace: expected lower-case letters"),
     ("run_as: 0", "k.yaml:4 run_as: ")],
)  # fmt: skip
def test_mistakes_in_the_file_are_named_at_their_keys(folder: Path, extra: str, message: str) -> None:
    (folder / "k.yaml").write_text(SMALL + extra + "\n")
    found = rondo("submit", "sent/spec.yaml", "--cluster", "k.yaml", "--dry-run")
    assert found.exit_code == 2
    assert message in found.stderr


def test_a_store_on_no_volume_is_refused() -> None:
    with pytest.raises(ValueError, match="is on no volume"):
        kuberay(store="/data/runs")
    with pytest.raises(ValueError, match="is on no volume"):
        kuberay(store="/database/runs", volume={"claim": "disk", "path": "/data"})


def test_a_job_is_made_and_its_files_belong_to_it(folder: Path, kubectl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    (kubectl / "answer").write_text(json.dumps({"kind": "RayJob", "metadata": {"uid": "2"}}))
    (folder / "k.yaml").write_text(SMALL + "namespace: ml\ncontext: far\n")
    sent = rondo("submit", "sent/spec.yaml", "--cluster", "k.yaml")
    assert sent.exit_code == 0, sent.output
    name = sent.stdout.strip()
    where = "--context far --namespace ml"
    assert (kubectl / "asked").read_text().splitlines() == [f"{where} create -f - -o json", f"{where} create -f -"]
    given = (kubectl / "given").read_text()
    job, config = (json.loads(line) for line in given.splitlines())
    assert (job["kind"], config["kind"]) == ("RayJob", "ConfigMap")
    assert (job["metadata"]["name"], config["metadata"]["name"]) == (name, name)
    (owner,) = config["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("RayJob", name, "2")
    records = "".join(path.read_text() for path in (kubectl / "state").rglob("*.json"))
    assert "very_secret" not in given + records
    (kubectl / "answer").write_text("")
    listed = json.loads(rondo("jobs", "--json").stdout)
    assert [(row["job"], row["state"]) for row in listed] == [(name, "gone")]


@pytest.mark.parametrize(
    ("status", "expected"),
    [({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, JobStatus("running")),
     ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, JobStatus("done")),
     ({"jobDeploymentStatus": "Failed", "reason": "AppFailed", "message": "exit 1\nmore"},
      JobStatus("failed", "AppFailed: exit 1")),
     ({"jobDeploymentStatus": "Failed", "jobStatus": "STOPPED"}, JobStatus("stopped")),
     ({"jobDeploymentStatus": "Initializing", "rayClusterStatus": {"desiredWorkerReplicas": 2}},
      JobStatus("pending", "0 of 2 workers are ready")),
     ({"jobDeploymentStatus": "Suspended"}, JobStatus("pending", "in the queue team")), ({},
      JobStatus("pending", "in the queue team"))],
)  # fmt: skip
def test_how_a_job_is(kubectl: Path, status: dict[str, Any], expected: JobStatus) -> None:
    suspended = status.get("jobDeploymentStatus") in (None, "Suspended")
    document = {"metadata": {"labels": {"kueue.x-k8s.io/queue-name": "team"}}, "spec": {"suspend": suspended}}
    (kubectl / "answer").write_text(json.dumps({**document, "status": status}))
    assert Kubectl(kuberay()).status("tiny-0a1b2c") == expected


def test_logs_stop_and_refusals_are_in_words(kubectl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (kubectl / "answer").write_text("a line\n")
    to = Kubectl(kuberay())
    assert to.logs("j-1") == "a line\n"
    to.stop("j-1")
    assert (kubectl / "asked").read_text().splitlines() == ["logs job/j-1 --tail=-1", "delete rayjob j-1 --wait=false"]
    (kubectl / "refuse").write_text("E1128 noise\nerror: You must be logged in\n")
    with pytest.raises(StageError, match=r"Kubernetes refused \(kubectl delete\): error: You must be logged in"):
        to.stop("j-1")
    (kubectl / "bin" / "kubectl").unlink()
    monkeypatch.setenv("PATH", str(kubectl / "bin"))
    with pytest.raises(StageError, match="kubectl is not installed here"):
        to.status("j-1")


def test_a_job_whose_files_are_refused_is_taken_back(folder: Path, kubectl: Path) -> None:
    (kubectl / "answer").write_text(json.dumps({"kind": "RayJob", "metadata": {"uid": "2"}}))
    program = kubectl / "bin" / "kubectl"
    refuse = 'case "$*" in *"create -f -") echo "configmaps is forbidden" >&2; exit 1;; esac'
    program.write_text(program.read_text().replace("#!/bin/sh\n", f"#!/bin/sh\necho $@ >> {kubectl}/asked\n{refuse}\n"))
    with pytest.raises(StageError, match="configmaps is forbidden"):
        Kubectl(kuberay()).submit(job(folder))
    assert (kubectl / "asked").read_text().splitlines()[-1] == "delete rayjob tiny-0a1b2c --wait=false"


def test_a_log_that_may_not_be_read_is_not_an_empty_one(kubectl: Path) -> None:
    (kubectl / "answer").write_text('{"metadata": {}, "spec": {}}')
    for said, expected in (("pods is forbidden", None), ('container "x" is waiting to start: ContainerCreating', "")):
        program = kubectl / "bin" / "kubectl"
        program.write_text(f"#!/bin/sh\ncase $1 in logs) echo '{said}' >&2; exit 1;; esac\ncat {kubectl}/answer\n")
        if expected is None:
            with pytest.raises(StageError, match="pods is forbidden"):
                Kubectl(kuberay()).logs("j-1")
        else:
            assert Kubectl(kuberay()).logs("j-1") == expected


def test_what_is_left_to_kubectl_is_fixed_when_a_job_is_sent(kubectl: Path) -> None:
    (kubectl / "answer").write_text("here\n")
    left = pinned(kuberay())
    assert (left.context, left.namespace) == ("here", "here")
    (kubectl / "answer").write_text("")
    assert pinned(kuberay(context="mine")).namespace == "default"
    said = pinned(kuberay(context="mine", namespace="ours"))
    assert (said.context, said.namespace) == ("mine", "ours")
