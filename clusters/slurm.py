"""Slurm: one batch job, on whose nodes Ray is started for as long as the run lasts."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from clusters.fields import StorePlace, matching
from clusters.job import JobSpec, JobStatus, State
from stages.base import Config, StageError
from stages.io.nodes import Node

Word = Annotated[str, matching(r"[A-Za-z0-9][A-Za-z0-9_.-]*", "an option's long name without hyphens before it")]
Value = Annotated[str, matching(r"[^\s#'\"\\]+", "a value without white space, quotes, # and backslashes")]
"""What can stand in a line of sbatch options: nothing that ends it or begins another."""
_OWN = ("job-name", "nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "mem", "time", "partition",
        "account", "qos", "export", "output", "error", "chdir", "array", "parsable")  # fmt: skip
_OF_MEMORY = 0.7
"""Of a machine's memory what Ray lends to workers; the rest is for its object store."""


_SECONDS = 60
"""For which Slurm may think."""


class SlurmCluster(Config):
    kind: Literal["slurm"]
    store: StorePlace
    nodes: PositiveInt = 1
    """Whole nodes: of a node only one Ray can be started this way."""
    cpus_per_node: PositiveInt
    gpus_per_node: NonNegativeInt = 0
    memory_gib: PositiveInt | None = None
    """Memory per node; by default what the partition gives."""
    time: Annotated[str, matching(r"(\d+-)?\d{1,3}:\d{2}:\d{2}", "[days-]hours:minutes:seconds")]
    """The most that the job may take, as ``[days-]hours:minutes:seconds``; the same command continues where one that
    ran out of time has stopped."""
    partition: Value | None = None
    account: Value | None = None
    qos: Value | None = None
    options: dict[Word, Value | int | None] = Field(default_factory=dict)
    """Other options of sbatch by their long names, such as ``constraint: h100``; without a value for those that take
    none."""
    setup: tuple[str, ...] = ()
    """Lines of shell that make ``rondo`` and ``ray`` available, such as ``source /opt/rondo/bin/activate``."""
    port: Annotated[int, Field(ge=1024, le=65535)] = 6379
    """Where Ray's head listens."""

    @field_validator("time", mode="before")
    @classmethod
    def _in_quotes(cls, value: Any) -> Any:
        if isinstance(value, int):
            wanted = 'expected [days-]hours:minutes:seconds in quotes, such as "4:00:00"'
            raise ValueError(f"{wanted}; without them YAML reads a number, got {value}")
        return value

    @field_validator("options", mode="before")
    @classmethod
    def _others(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if switches := [name for name, given in value.items() if isinstance(given, bool)]:
            raise ValueError(f"{switches[0]}: an option that takes no value is written {switches[0]}: null")
        if own := [name for name in value if name in _OWN]:
            raise ValueError(f"{own[0]} is set by a key of its own, or by Rondo")
        return value


def script(cluster: SlurmCluster, job: JobSpec) -> str:
    """The batch script. Values of the environment, and with them secrets, reach the job as sbatch hands them on; none
    is written down."""
    own = {
        "job-name": job.name,
        "nodes": cluster.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": cluster.cpus_per_node,
        "gpus-per-node": cluster.gpus_per_node or None,
        "mem": f"{cluster.memory_gib}G" if cluster.memory_gib else None,
        "time": cluster.time,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
    }
    given = {name: value for name, value in own.items() if value is not None}
    others: dict[str, Any] = {"output": "rondo-%j.log", "exclusive": None, **cluster.options}
    ray = ["--num-cpus", str(cluster.cpus_per_node)]
    ray += ["--num-gpus", str(cluster.gpus_per_node)] if cluster.gpus_per_node else []
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH --{name}" + ("" if value is None else f"={value}") for name, value in (given | others).items()),
        "set -eo pipefail",
        f"cd {shlex.quote(str(job.folder))}",
        *cluster.setup,
        "unset RAY_ADDRESS  # that of another cluster",
        "export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300",
        "# Others work on these machines too: Ray asks for a token that only this job's processes know.",
        "RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')",
        "export RAY_AUTH_TOKEN RAY_AUTH_MODE=token",
        "# Ray is started on every node, the command runs on the first, and Ray ends with it.",
        'nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        "head=${nodes%%$'\\n'*}",
        'code="$PWD/.exit-code-$SLURM_JOB_ID"',
        "trap 'rm -f \"$code\"' EXIT",
        "# shellcheck disable=SC2016  # the quoted words are for the bash that srun starts",
        f'srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --cpus-per-task={cluster.cpus_per_node} '
        f'ray symmetric-run --address "$head:{cluster.port}" --min-nodes "$SLURM_JOB_NUM_NODES" {shlex.join(ray)} -- '
        f"""bash -c '"$@"; echo $? > "$0"' "$code" {shlex.join(job.here)} || true""",
        "# Ray's exit code is not the run's: 0 if Ray could not be started, 1 when several nodes were stopped.",
        '[ -s "$code" ] || { echo "the run was not started or was cut off, see above" >&2; exit 1; }',
        'exit "$(cat "$code")"',
    ]
    return "\n".join(lines) + "\n"


class Slurm:
    """Hands jobs to Slurm on this machine."""

    knows: frozenset[str] = frozenset()

    def __init__(self, cluster: SlurmCluster, folder: Path) -> None:
        self._cluster = cluster
        self._folder = folder

    def machines(self) -> list[Node]:
        """What the job gets."""
        cluster = self._cluster
        has: dict[str, float] = {"CPU": cluster.cpus_per_node, "GPU": cluster.gpus_per_node}
        if cluster.memory_gib:
            has["memory"] = int(cluster.memory_gib * _OF_MEMORY * 2**30)
        return [Node(f"node {number}", has) for number in range(1, cluster.nodes + 1)]

    def show(self, job: JobSpec) -> str:
        return script(self._cluster, job)

    def submit(self, job: JobSpec) -> str:
        """Send a job; returns its number.

        Raises:
            StageError: there is no Slurm here, or it refused the job.
        """
        said = self._ask("sbatch", "--parsable", script=script(self._cluster, job)).strip()
        if not re.match(r"\d+", said):
            raise StageError(f"Slurm refused the job: {said}")
        return said.partition(";")[0]

    def status(self, job: str) -> JobStatus:
        """Of a job that ended long ago only Slurm's accounting knows."""
        which = f"--jobs={_number(job)}"
        try:
            answer = self._ask("squeue", "--noheader", "--states=all", which, "--format=%T|%r").strip()
        except StageError as error:
            if "Invalid job id" not in str(error):
                raise
            answer = ""
        if not answer:
            with contextlib.suppress(StageError):  # not every Slurm keeps accounts
                answer = self._ask("sacct", "--noheader", "--parsable2", "--allocations", which, "--format=State")
        if not answer.strip():
            return JobStatus("gone", "Slurm does not know it (any more)")
        state, _, detail = answer.strip().splitlines()[0].partition("|")
        return _status(state.split()[0].rstrip("+"), detail)

    def logs(self, job: str) -> str:
        file = self._folder / f"rondo-{_number(job)}.log"
        return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""

    def stop(self, job: str) -> None:
        self._ask("scancel", _number(job))

    def _ask(self, *command: str, script: str | None = None) -> str:
        """What a program of Slurm answers.

        Raises:
            StageError: there is no Slurm here, or it refuses.
        """
        try:
            done = subprocess.run(
                command, input=script, capture_output=True, encoding="utf-8", errors="replace", check=False,
                cwd=self._folder, timeout=_SECONDS,
            )  # fmt: skip
        except FileNotFoundError:
            raise StageError(f"{command[0]} is not installed here; do this on a machine of the Slurm cluster") from None
        except subprocess.TimeoutExpired:
            raise StageError(f"{command[0]} did not answer within {_SECONDS} s") from None
        if done.returncode:
            raise StageError(f"Slurm refused ({command[0]}): {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout


def _number(job: str) -> str:
    if not re.fullmatch(r"\d+(_\d+)?", job):
        raise StageError(f"{job}: a job of Slurm has a number")
    return job


def _status(said: str, detail: str) -> JobStatus:
    """Slurm's state in Rondo's words; what has failed in another way than by itself says how."""
    states: dict[str, State] = {
        "PENDING": "pending", "CONFIGURING": "pending", "REQUEUED": "pending", "RESIZING": "running",
        "RUNNING": "running", "COMPLETING": "running", "SUSPENDED": "running", "STOPPED": "running",
        "COMPLETED": "done", "CANCELLED": "stopped",
    }  # fmt: skip
    state = states.get(said, "failed")
    shown = detail if state == "pending" else said.lower().replace("_", " ") if said not in states else ""
    return JobStatus(state, shown)
