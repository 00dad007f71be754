"""A search for the accuracy budget that is killed, started twice, or loses a worker ends in the same bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages import accuracy_aware, config
from stages.common.artifacts import file_sha256
from stages.configuration.loading import load_config
from stages.configuration.schema import Cluster
from tests.project import ROOT, Project
from tests.test_accuracy_aware import CALIBRATION, KEYS, OPTIONS, WRITTEN, journal_lines, made

pytestmark = pytest.mark.slow

MANY_STEPS = "metrics: [{{name: error}}], maximal_drop: 0.02, tune_hyperparams: true"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which no search has run, with a budget that takes many steps."""
    project = made(tmp_path_factory.mktemp("built") / "project")
    project.params(KEYS.replace("tune_hyperparams: true", MANY_STEPS).format(calibration=CALIBRATION, tuning="false"), *OPTIONS)
    with contextlib.chdir(project.root):
        config.main()
    return project


@pytest.fixture(scope="module")
def whole(built: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A search that nothing disturbed."""
    project = built.copy(tmp_path_factory.mktemp("whole") / "project")
    assert search(project)["holds"]
    assert journal_lines(project.root) > 12
    return project


@pytest.fixture
def project(built: Project, tmp_path: Path) -> Project:
    """A copy of `built`."""
    return built.copy(tmp_path / "project")


def search(project: Project, cluster: Cluster | None = None) -> dict[str, Any]:
    """The stage in this process; what its record gets."""
    with contextlib.chdir(project.root):
        found = load_config()
        return accuracy_aware.main(dataclasses.replace(found, cluster=cluster or found.cluster))


def started(project: Project) -> subprocess.Popen[bytes]:
    """The stage in a process of its own."""
    command = [sys.executable, "-m", "stages.accuracy_aware"]
    return subprocess.Popen(command, cwd=project.root, env=project.environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def wait_for(project: Project, process: subprocess.Popen[bytes], lines: int) -> None:
    """Until so many evaluations are in the journal."""
    while journal_lines(project.root) < lines and process.poll() is None:
        time.sleep(0.001)


def written(project: Project) -> dict[str, str]:
    """SHA-256 of what must be the same."""
    build = project.root / "build"
    files = [*(build / "accuracy_aware" / name for name in WRITTEN), build / "reports" / "accuracy_aware.json"]
    return {path.name: file_sha256(path) for path in files}


def keys(project: Project) -> list[str]:
    """What the journal knows, line by line."""
    (path,) = (project.root / "build" / ".journal").rglob("*.jsonl")
    return [json.loads(line)["key"] for line in path.read_text().splitlines()]


def test_killed_at_five_random_points_it_ends_in_the_same_bytes(project: Project, whole: Project) -> None:
    expected = keys(whole)
    # Not so late that it might be done before it is killed.
    for point in sorted(random.Random(0).sample(range(1, len(expected) - 3), 5)):
        process = started(project)
        wait_for(project, process, point)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    known = journal_lines(project.root)
    found = search(project)
    # The same evaluations in the same order: none of those that were known again, and none more.
    assert keys(project) == expected
    assert (found["evaluated"], found["remembered"] > 0) == (len(expected) - known, True)
    assert written(project) == written(whole)


def test_a_second_search_in_the_folder_says_so_and_stops(project: Project, whole: Project) -> None:
    first = started(project)
    wait_for(project, first, 2)
    os.kill(first.pid, signal.SIGSTOP)  # for as long as the other one waits
    try:
        second = project.run(sys.executable, "-m", "stages.accuracy_aware")
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert second.code == 1
    assert second.errors == [
        "accuracy_aware: error: another stage is still running in this folder, maybe the same search: wait until it is done"
    ]
    assert first.wait() == 0
    assert (keys(project), written(project)) == (keys(whole), written(whole))


@contextlib.contextmanager
def two_terminals(project: Project) -> Iterator[str]:
    """README's Dask cluster, on a free port; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = project.environment() | {"PYTHONPATH": str(project.root)}  # as if the project were installed there
    commands = [line.partition("#")[0].replace("8786", port) for line in (ROOT / "README.md").read_text().splitlines()]
    processes = [
        subprocess.Popen(command.split(), cwd=project.root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for command in commands
        if command.startswith("dask ")
    ]
    assert len(processes) == 2
    try:
        yield f"tcp://127.0.0.1:{port}"
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait()


def test_a_dask_worker_that_is_killed_changes_nothing(project: Project, whole: Project) -> None:
    distributed = pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    killed = threading.Event()
    with two_terminals(project) as address, distributed.Client(address, timeout=60) as client:
        client.wait_for_workers(2, timeout=60)
        victim = next(iter(client.run(os.getpid).values()))

        def kill() -> None:
            while journal_lines(project.root) < 3:
                time.sleep(0.001)
            os.kill(victim, signal.SIGKILL)
            killed.set()

        threading.Thread(target=kill, daemon=True).start()
        found = search(project, Cluster(kind="dask", address=address))
    assert killed.is_set()
    # Workers answer in any order, but the questions are the same.
    assert sorted(keys(project)) == sorted(keys(whole)) and found["evaluated"] == len(keys(whole))
    assert written(project) == written(whole)
