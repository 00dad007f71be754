"""A sweep that is stopped, however it is done, leaves no process and nothing broken, and can be started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.project import Project
from tests.sweeping import stages_run, sweep, sweep_project

PRESETS = "quantization.preset=performance,mixed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "launcher"),
    [(signal.SIGINT, "basic"), (signal.SIGKILL, "joblib"), (signal.SIGKILL, "submitit_local")],
    ids=lambda value: str(value),
)
def test_stopped_and_started_again(tmp_path: Path, sent: signal.Signals, launcher: str) -> None:
    project = sweep_project(tmp_path)
    stopped = start(project, PRESETS, f"hydra/launcher={launcher}")
    # submitit keeps what its jobs say in files of its own.
    while not any("Running stage 'evaluate'" in log.read_text() for log in project.root.glob("multirun/*/*.log")):
        assert stopped.poll() is None
        time.sleep(0.1)
    os.kill(stopped.pid, sent)
    rest, _ = stopped.communicate(timeout=60)
    if sent == signal.SIGINT:
        assert stopped.returncode == 130
        assert "FAILED, was interrupted" in rest and "1  preset=mixed: FAILED, did not start" in rest
        assert "interrupted: the same command goes on" in rest and "Traceback" not in rest
    end = time.monotonic() + 60
    while list(processes(project.root)) and time.monotonic() < end:
        time.sleep(0.5)
    assert not list(processes(project.root))
    if sent == signal.SIGKILL:
        assert not list(project.root.glob("multirun/*/*.result.json"))  # jobs ended before their time
    again = sweep(project, PRESETS, f"hydra/launcher={launcher}")
    assert again.code == 0, again.output
    # What was done before is not done again.
    assert not {"prepare", "collect_statistics"} & {line.split()[1] for line in stages_run(project)}


def start(project: Project, *overrides: str) -> subprocess.Popen[str]:
    """A sweep as a shell starts it in the foreground."""
    return subprocess.Popen(
        [sys.executable, "-m", "stages.sweep", "-m", *overrides],
        cwd=project.root,
        env=project.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # what runs in the background ignores it
    )


def processes(folder: Path) -> Iterator[str]:
    """The commands of processes that run in a folder or below it."""
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and (process / "cwd").readlink().is_relative_to(folder):
                yield (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it has just ended, or is not ours
