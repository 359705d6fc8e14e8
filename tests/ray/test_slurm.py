"""The script for Slurm on two nodes of this machine: each has an address, processes and a /dev/shm of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import specs, tiny
from tests.unit.test_cli import rondo

SRUN = """\
#!/bin/bash
# Runs the command on both nodes, as Slurm would, and ends with the first.
while [ "$1" != ray ]; do shift; done
node() {{
    exec ip netns exec "rondo-$$-$1" unshare --pid --fork --kill-child --mount-proc --mount bash -c \\
        'mount -t tmpfs none /tmp/ray && mount -t tmpfs none /dev/shm && "$@"; exit $?' bash "${{@:2}}"
}}
export GLOO_SOCKET_IFNAME=eth0  # both nodes have the same name, so that it tells nothing
for name in 1 2; do ip netns add "rondo-$$-$name"; done
trap 'for name in 1 2; do ip netns del "rondo-$$-$name"; done' EXIT
ip -n "rondo-$$-1" link add eth0 type veth peer name eth0 netns "rondo-$$-2"
for name in 1 2; do
    ip -n "rondo-$$-$name" addr add "10.77.0.$name/24" dev eth0
    ip -n "rondo-$$-$name" link set eth0 up
    ip -n "rondo-$$-$name" link set lo up
done
(node 2 "$@") & second=$!
(node 1 "$@"); code=$?
kill -9 $second
wait
exit $code
"""


def may_have_nodes() -> bool:
    tried = "ip netns add rondo-try && ip netns exec rondo-try unshare --pid --fork --mount-proc --mount true"
    try:
        return not subprocess.run(["sh", "-c", tried], stderr=subprocess.DEVNULL, check=False).returncode
    finally:
        subprocess.run(["sh", "-c", "ip netns del rondo-try"], stderr=subprocess.DEVNULL, check=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    if not may_have_nodes():
        pytest.skip("this user may not make networks of its own")
    monkeypatch.chdir(tmp_path)
    for name, text in {"srun": SRUN.format(), "scontrol": "#!/bin/sh\nprintf '10.77.0.1\\n10.77.0.2\\n'\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    Path("/tmp/ray").mkdir(exist_ok=True)
    yield tmp_path
    shutil.rmtree(tmp_path / "store", ignore_errors=True)


def test_a_job_of_two_nodes_goes_through(folder: Path) -> None:
    # Two workers with a CPU each have a place only if both nodes are there.
    specs.offline(folder, tiny.save(folder / "model"), resources={"encode": {"workers": 2}})
    (folder / "slurm.yaml").write_text(
        f'kind: slurm\nstore: {folder}/store\nnodes: 2\ncpus_per_node: 1\ntime: "1:00:00"\n'
    )
    script = rondo("submit", "spec.yaml", "--cluster", "slurm.yaml", "--dry-run").stdout
    environment = {**os.environ, "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment |= {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "x[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env=environment, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "7/7 round-1/train" in done.stdout
    assert "done in " in done.stdout
    assert not list(folder.glob(".exit*"))
