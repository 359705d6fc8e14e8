"""Runs as jobs of a cluster: what would be sent, and what is refused before. No cluster is needed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import clusters
from clusters.job import JobSpec
from clusters.slurm import Slurm, SlurmCluster, script
from tests.unit import workspace
from tests.unit.test_cli import rondo
from tests.unit.workspace import SPEC

SLURM = 'kind: slurm\nstore: /shared/store\nnodes: 2\ncpus_per_node: 8\ngpus_per_node: 1\ntime: "4:00:00"\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    workspace.make(tmp_path)
    (tmp_path / "spec.yaml").write_text(SPEC)
    (tmp_path / "slurm.yaml").write_text(SLURM)
    return tmp_path


def slurm(**settings: object) -> SlurmCluster:
    return SlurmCluster.model_validate(
        {"kind": "slurm", "store": "s3://bucket/runs", "cpus_per_node": 8, "time": "1-00:00:00", **settings}
    )


def job(folder: Path, spec: str = "spec.yaml", *options: str) -> JobSpec:
    return JobSpec("tiny-0a1b2c", "tiny", spec, options, folder, folder / spec)


def runs_in_bash(text: str, folder: Path, srun: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """The script as a shell sees it, with stand-ins for Slurm, Ray and Rondo that show the words they are given."""
    for name, body in {
        "scontrol": 'printf "one\\ntwo\\n"',
        "srun": srun or 'printf "%s\\n" "$@"; while [ "$1" != -- ]; do shift; done; shift; exec "$@"',
        "rondo": 'echo "rondo was run in $PWD, RAY_ADDRESS $RAY_ADDRESS"; exit ${RONDO_EXIT:-0}',
    }.items():
        program = folder / "stand-ins" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/bash\n{body}\n")
        program.chmod(0o755)
    known = {"SLURM_JOB_NODELIST": "x[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "4711"}
    path = f"{folder / 'stand-ins'}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", text], capture_output=True, text=True, check=False, env={"PATH": path, **known, **environment}
    )


def test_a_batch_script_starts_ray_on_every_node_and_the_run_on_the_first(folder: Path) -> None:
    printed = rondo("submit", "spec.yaml", "--cluster", "slurm.yaml", "--dry-run", "--set", "train.beta=0.2")
    assert printed.exit_code == 0, printed.output
    lines = printed.stdout.splitlines()
    assert lines[0] == "#!/bin/bash"
    assert [line for line in lines if line.startswith("#SBATCH")] == [
        "#SBATCH --job-name=tiny", "#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=1", "#SBATCH --cpus-per-task=8",
        "#SBATCH --gpus-per-node=1", "#SBATCH --time=4:00:00", "#SBATCH --output=rondo-%j.log", "#SBATCH --exclusive",
    ]  # fmt: skip
    assert runs_in_bash(printed.stdout, folder).stdout.splitlines() == [
        "--nodes=2", "--ntasks=2", "--cpus-per-task=8", "ray", "symmetric-run", "--address", "one:6379",
        "--min-nodes", "2", "--num-cpus",
        "8", "--num-gpus", "1", "--", "bash", "-c", '"$@"; echo $? > "$0"', f"{folder}/.exit-code-4711", "rondo", "run",
        "spec.yaml", "--set", "train.beta=0.2", "--store", "/shared/store", "--address", "auto",
        f"rondo was run in {folder}, RAY_ADDRESS ",
    ]  # fmt: skip


def test_a_job_ends_as_its_run_does_and_badly_if_there_was_none(folder: Path) -> None:
    text = script(slurm(setup=["echo set up $UNKNOWN", "false || true"]), job(folder))
    good = runs_in_bash(text, folder, RAY_ADDRESS="other:6379")
    assert good.returncode == 0, good.stderr
    assert good.stdout.startswith("set up")
    assert good.stdout.endswith("RAY_ADDRESS \n")
    assert runs_in_bash(text, folder, RONDO_EXIT="3").returncode == 3
    none = runs_in_bash(text, folder, srun="exit 0")
    assert (none.returncode, none.stderr) == (1, "the run was not started or was cut off, see above\n")
    assert not list(folder.glob(".exit*"))


def test_all_settings_stand_in_the_script(folder: Path) -> None:
    settings = {"memory_gib": 100, "partition": "gpu", "account": "a1", "qos": "high", "port": 7000,
                "options": {"constraint": "a|b", "nodelist": "n[1-4]", "requeue": None, "nice": -5}}  # fmt: skip
    text = script(slurm(**settings), job(folder))
    for line in ("--mem=100G", "--partition=gpu", "--account=a1", "--qos=high", "--constraint=a|b", "--nodelist=n[1-4]",
                 "--requeue", "--nice=-5", "--output=rondo-%j.log"):  # fmt: skip
        assert f"#SBATCH {line}\n" in text
    assert '"$head:7000"' in text


def test_the_file_to_copy_is_valid(folder: Path) -> None:
    shutil.copy(Path(clusters.__file__).parent / "slurm.yaml", folder / "copied.yaml")
    printed = rondo("submit", "spec.yaml", "--cluster", "copied.yaml", "--dry-run")
    assert printed.exit_code == 0, printed.output
    assert "#SBATCH --time=12:00:00\n#SBATCH --partition=gpu\n" in printed.stdout
    assert "\nsource /shared/venv/bin/activate\n" in printed.stdout


def test_no_text_becomes_a_word_of_the_shell(tmp_path: Path) -> None:
    hostile = tmp_path / "it's $(touch stolen) `touch stolen`; touch stolen #"
    hostile.mkdir()
    command = (
        "rondo",
        "run",
        "spec.yaml",
        "--set",
        "judge.pattern='; touch stolen; $(touch stolen) \"",
        "--store",
        "a b",
    )
    text = script(slurm(), job(hostile, *command[2:]))
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    words = runs_in_bash(text, tmp_path).stdout.splitlines()
    assert tuple(words[words.index("rondo") : -1]) == command
    assert not list(tmp_path.rglob("stolen"))


@pytest.mark.parametrize(
    ("key", "value"),
    [("partition", "gpu\n#SBATCH --uid=0"), ("account", "a b"), ("options", {"x": "y\nrm"}), ("options", {"--x": "y"}),
     ("time", "4h"), ("time", 14400), ("nodes", 0), ("port", 80), ("store", "runs"), ("options", {"nodes": "9"}),
     ("options", {"output": "x"}), ("options", {"array": "0-3"}), ("options", {"hold": True}),
     ("store", "s3://key:secret@bucket/x"),
    ("options", {"x": "a b"}), ("options", {"x": "'"})],
)  # fmt: skip
def test_what_could_break_the_script_is_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        slurm(**{key: value})


def test_every_mistake_in_a_cluster_file_is_named_at_its_key(folder: Path) -> None:
    (folder / "slurm.yaml").write_text("kind: slurm\nnodes: two\ncpus_per_nod: 8\ntime: 4h\ntime: 4h\n")
    found = rondo("submit", "spec.yaml", "--cluster", "slurm.yaml", "--dry-run")
    assert found.exit_code == 2
    assert " time: expected [days-]hours:minutes:seconds, got '4h'" in found.stderr
    for part in ("slurm.yaml:2 nodes: ", "slurm.yaml:3 cpus_per_nod: unknown key; did you mean 'cpus_per_node'?",
                 "slurm.yaml:5 time: duplicate key", "slurm.yaml store: required, but missing"):  # fmt: skip
        assert part in found.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [("kind: slurn\n", "slurm.yaml:1 kind: unknown kind 'slurn'; did you mean 'slurm'?"),
     ("nodes: 2\n", "slurm.yaml kind: required, but missing (local, ray, ray-up, slurm, kuberay)"),
     ("kind: [slurm]\n", "unknown kind ['slurm']"),
     ("- a\n", "slurm.yaml"), (None, "no such cluster file")],
)  # fmt: skip
def test_a_file_that_describes_no_cluster_is_refused(folder: Path, text: str | None, message: str) -> None:
    file = folder / "slurm.yaml"
    file.unlink() if text is None else file.write_text(text)
    found = rondo("submit", "spec.yaml", "--cluster", "slurm.yaml")
    assert found.exit_code == 2
    assert message in found.stderr


@pytest.mark.parametrize("command", [["submit", "--dry-run"], ["check"]])
def test_what_has_no_place_on_the_cluster_is_said_before_anything_is_sent(folder: Path, command: list[str]) -> None:
    wide = ["--set", "resources.train.workers=3", "--set", "resources.train.gpus=1"]
    found = rondo(*command, "spec.yaml", "--cluster", "slurm.yaml", *wide)
    assert found.exit_code == 2
    assert "spec.yaml resources.train: 3 workers with 1 CPUs, 1 GPUs each; there is room for 2" in found.stderr
    assert "(slurm.yaml)" in found.stderr


def test_of_a_nodes_memory_ray_lends_a_part(folder: Path) -> None:
    (folder / "slurm.yaml").write_text(SLURM + "memory_gib: 100\n")
    codes = [
        rondo("check", "spec.yaml", "--cluster", "slurm.yaml", "--set", f"resources.judge.memory_gib={gib}").exit_code
        for gib in (69, 71)
    ]
    assert codes == [0, 2]


def test_of_two_clusters_the_one_that_is_typed_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert rondo("check", "spec.yaml", "--cluster", "slurm.yaml").exit_code == 0
    both = rondo("check", "spec.yaml", "--cluster", "slurm.yaml", "--address", "127.0.0.1:2")
    assert both.exit_code == 2
    assert "two clusters" in both.stderr


def test_a_recipe_by_name_and_a_spec_in_another_folder_run_where_they_were_asked_for(folder: Path) -> None:
    (folder / "specs").mkdir()
    shutil.copytree(folder / "model", folder / "specs" / "model")
    for name in ("spec.yaml", "train.jsonl", "heldout.jsonl"):
        shutil.copy(folder / name, folder / "specs" / name)
    text = rondo("submit", "specs/spec.yaml", "--cluster", "slurm.yaml", "--dry-run").stdout
    assert f"\ncd {folder}\n" in text
    assert "rondo run specs/spec.yaml" in text


def test_kinds_of_gpus_and_labels_are_left_to_the_cluster(folder: Path) -> None:
    kinds = ["--set", "resources.train.accelerator_type=H100", "--set", "resources.train.label_selector={a: b}"]
    assert rondo("check", "spec.yaml", "--cluster", "slurm.yaml", *kinds).exit_code == 0


def test_a_cluster_may_have_what_this_machine_does_not(folder: Path) -> None:
    more = ["--set", "resources.train.workers=2", "--set", "resources.train.gpus=1", "--set", "resources.train.cpus=8"]
    assert rondo("submit", "spec.yaml", "--cluster", "slurm.yaml", "--dry-run", *more).exit_code == 0


def test_a_job_is_handed_to_slurm_and_its_number_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sbatch = folder / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(
        f'#!/bin/sh\ncat > {folder}/sent; echo "$@" >> {folder}/sent; pwd >> {folder}/sent; echo "4711;cluster"\n'
    )
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    sent = rondo("submit", "spec.yaml", "--cluster", "slurm.yaml")
    assert (sent.exit_code, sent.stdout) == (0, "4711\n")
    (folder / "other").mkdir()
    Slurm(slurm(), folder / "other").submit(job(folder / "other"))
    assert (folder / "sent").read_text().endswith(f"{folder}/other\n")
    rondo("submit", "spec.yaml", "--cluster", "slurm.yaml")
    text = (folder / "sent").read_text()
    assert text.startswith("#!/bin/bash\n#SBATCH --job-name=tiny\n")
    assert text.endswith(f"--parsable\n{folder}\n")
    assert "secret" not in text


def test_without_slurm_and_when_it_refuses_there_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder / "bin"))
    nobody = rondo("submit", "spec.yaml", "--cluster", "slurm.yaml")
    assert nobody.exit_code == 1
    assert nobody.stderr == "sbatch is not installed here; do this on a machine of the Slurm cluster\n"
    (folder / "bin").mkdir()
    sh = shutil.which("sh", path="/bin:/usr/bin")
    (folder / "bin" / "sbatch").write_text(f"#!{sh}\necho 'invalid partition specified: gpu' >&2; exit 1\n")
    (folder / "bin" / "sbatch").chmod(0o755)
    refused = rondo("submit", "spec.yaml", "--cluster", "slurm.yaml")
    assert refused.exit_code == 1
    assert refused.stderr == "Slurm refused (sbatch): invalid partition specified: gpu\n"
