"""The exit code of the command's process, where Ray's library would spoil it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, ctypes, sys, types
import typer
from pipelines import cli

def shutdown():
    print("Ray is shut down")
    {again}

if {loaded}:
    sys.modules["ray"] = types.ModuleType("ray")
    sys.modules["ray"].shutdown = shutdown

@cli.app.command()
def work():
    print("worked")
    {last}

# As a thread of Ray's may, but always: kills the process by a signal when Python is taken apart.
ctypes.pythonapi.Py_AtExit(ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p))
atexit.register(print, "tidied up")
sys.argv = ["rondo", "work"]
cli.main()
"""


def end(last: str, again: str = "pass", loaded: bool = True) -> tuple[int, list[str]]:
    """The exit code of a command whose last line is ``last``, and what it printed; ``again`` is what happens while Ray
    is shut down."""
    program = PROGRAM.format(last=last, again=again, loaded=loaded)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize(
    ("last", "code"),
    [
        ("raise typer.Exit(130)", 130),
        ("raise KeyboardInterrupt", 130),
        ("raise typer.Exit(1)", 1),
        ("raise OSError('the store is gone')", 2),
        ("raise SystemExit('no key')", 1),
        ("raise RuntimeError('a bug')", 1),
        ("pass", 0),
    ],
)
def test_what_happens_when_python_is_taken_apart_does_not_change_the_code(last: str, code: int) -> None:
    assert end(last) == (code, ["worked", "Ray is shut down", "tidied up"])


def test_the_reason_is_still_said() -> None:
    for last, reason in (("sys.exit('no key')", "no key"), ("raise RuntimeError('a bug')", "RuntimeError: a bug")):
        program = PROGRAM.format(last=last, again="pass", loaded=True)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
        assert reason in done.stderr


def test_neither_does_a_second_interrupt() -> None:
    found = end("raise typer.Exit(130)", again="raise KeyboardInterrupt")
    assert found == (130, ["worked", "Ray is shut down", "tidied up"])


def test_without_ray_python_ends_as_ever() -> None:
    code, said = end("raise typer.Exit(130)", loaded=False)
    assert code < 0, "this test's signal has not come"
    assert said == ["worked", "tidied up"]
