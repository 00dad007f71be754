"""What all stages share: errors, records, locking, and surviving being killed."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import importlib
import io
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stages import stage
from stages.common import artifacts, progress
from stages.common.errors import UserError
from stages.configuration.schema import AccuracyAware, Tune
from tests import built
from tests.project import ROOT, Project

# A stage that takes its time, and leaves traces while it is at work.
SLOW = '''"""Writes three files slowly."""
import os, sys, time
from stages.common import artifacts
from stages.stage import run

def main(config):
    with artifacts.writing(artifacts.folder("{name}")) as folder:
        for index in range(3):
            (folder / str(index)).write_text("x" * 1000)
            (artifacts.BUILD / "working").write_text(str(os.getpid()))
            time.sleep({seconds} / 3)
    return {{"files": 3}}

if __name__ == "__main__":
    run("{name}", main)
'''
PIPELINE = """
stages:
  config: {cmd: python -m stages.config, deps: [conf, params.yaml], outs: [build/config.json]}
  slow: {cmd: python -m stages.slow, deps: [build/config.json, stages/slow.py], outs: [build/slow, build/records/slow.json]}
"""


@pytest.fixture
def slow(project: Project) -> Project:
    """A project of two stages, configured, the second of which takes a second and a half."""
    project.write("stages/slow.py", SLOW.format(name="slow", seconds=1.5))
    project.write("dvc.yaml", PIPELINE)
    assert project.repro("config").code == 0
    return project


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for a condition, and fail when it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


# ------------------------------------------------------------------------------------------------ errors and records


def test_record(folder: Path) -> None:
    assert stage.guarded("prepare", lambda: {"samples": 3}) == 0
    record = artifacts.read_json(Path("build/records/prepare.json"))
    assert record["stage"] == "prepare"
    assert record["samples"] == 3
    assert 0 <= record["seconds"] < 10
    assert record["cpu_seconds"] > 0
    assert 10 < record["peak_memory_mb"] < 100_000


def test_what_any_killed_stage_left_is_removed_by_the_next_one() -> None:
    for leftover in ("build/.quantize.tmp/model.xml", "build/records/.quantize.json.tmp", "build/reports/.metrics.json.tmp"):
        Path(leftover).parent.mkdir(parents=True, exist_ok=True)
        Path(leftover).write_text("half")
    journal = Path("build/.journal/.study.tmp")  # which a sweep's other jobs write at the same time
    journal.parent.mkdir()
    journal.write_text("theirs")
    assert stage.guarded("track", lambda: None) == 0
    assert list(Path("build").rglob(".*.tmp")) == [journal]


def fail(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("sample 3:\n  NaN"), 1, "prepare: error: sample 3: NaN\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "prepare: error: disk full while writing build/prepare\n"),
        (OSError(errno.EDQUOT, "Quota exceeded", "a.bin"), 1, "prepare: error: disk full while writing a.bin\n"),
        (PermissionError(errno.EACCES, "Permission denied", "a.bin"), 1, "prepare: error: a.bin: Permission denied\n"),
        (KeyboardInterrupt(), 130, "prepare: interrupted\n"),
    ],
)
def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str) -> None:
    assert stage.guarded("prepare", fail(error)) == code
    assert capsys.readouterr().err == line
    assert not artifacts.record("prepare").exists()


def test_out_of_memory_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert stage.guarded("prepare", fail(MemoryError())) == 1
    assert capsys.readouterr().err.startswith("prepare: error: out of memory (peak ")


@pytest.mark.parametrize("error", [ValueError("defect"), OSError(errno.EIO, "Input/output error"), AssertionError()])
def test_defects_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        stage.guarded("prepare", fail(error))


def test_peak_memory_counts_this_process_alone() -> None:
    """Not that of DVC, which started it."""
    code = "from stages.stage import peak_memory_mb; before = peak_memory_mb(); b'x' * 200_000_000; print(before, peak_memory_mb())"
    ballast = bytearray(os.urandom(1) * 300_000_000)
    root = Path(stage.__file__).parent.parent
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    before, after = map(float, result.stdout.split())
    assert before < 150 < 200 < after < 400
    assert len(ballast) == 300_000_000


def test_help_tells_what_a_stage_does(project: Project) -> None:
    outcome = project.run(sys.executable, "-m", "stages.config", "--help")
    assert outcome.code == 0
    assert "python -m stages.config" in outcome.output
    assert "params.yaml is the last layer" in outcome.output
    assert not (project.root / "build").exists()


def test_stage_without_configuration_is_one_line(project: Project) -> None:
    project.write("stages/slow.py", SLOW.format(name="slow", seconds=0))
    outcome = project.run(sys.executable, "-m", "stages.slow")
    assert (outcome.code, outcome.output) == (1, "slow: error: build/config.json is missing; run `dvc repro`\n")


@pytest.mark.parametrize("name", ["collect_statistics", "quantize", "correct_bias", "evaluate", "accuracy_aware", "tune"])
@pytest.mark.parametrize("damaged", [False, True])
def test_a_stage_whose_inputs_are_missing_or_damaged_says_which(
    name: str, damaged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if damaged:
        (tmp_path / "build" / "prepare").mkdir(parents=True)
        (tmp_path / "build" / "prepare" / "model.xml").write_text("<net><lay")
    settings = dataclasses.replace(built.config(), accuracy_aware=AccuracyAware(enabled=True), tune=Tune(enabled=True))
    message = r"cannot be read \(.+\); run `dvc repro --force prepare`" if damaged else "is missing; run `dvc repro`"
    with pytest.raises(UserError, match=f"^build/prepare/model.xml {message}$"):
        importlib.import_module(f"stages.{name}").main(settings)


def test_a_file_where_the_build_folder_should_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "build").write_text("mine")
    assert stage.guarded("prepare", lambda: None) == 1
    assert capsys.readouterr().err == "prepare: error: build is a file, but must be a folder, or not there\n"
    assert (tmp_path / "build").read_text() == "mine"


def test_libraries_cannot_call_home() -> None:
    code = (
        "import os; from stages.stage import guarded; guarded('a', lambda: None); import openvino.tools.ovc.telemetry_utils as t;"
        "print(os.environ['MLFLOW_DISABLE_TELEMETRY'], t.tm.__name__)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(stage.__file__).parent.parent)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["true", "openvino.tools.ovc.telemetry_stub"]


# ------------------------------------------------------------------------------------------------ killed


def test_stages_wait_for_each_other(slow: Project) -> None:
    command = [sys.executable, "-m", "stages.slow"]
    with open(slow.root / "build" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen(command, cwd=slow.root, env=slow.environment(), stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        assert process.stderr.readline() == "slow: waiting for another stage that is running in this folder\n"
        assert process.poll() is None
    assert process.wait(30) == 0
    assert (slow.root / "build" / "slow").is_dir()


def test_killed_stage_leaves_nothing_half_written_and_repro_completes(slow: Project) -> None:
    process = slow.start("repro")
    wait_until((slow.root / "build" / "working").exists)
    os.kill(int((slow.root / "build" / "working").read_text()), signal.SIGKILL)
    assert process.wait(30) != 0
    assert not (slow.root / "build" / "slow").exists()
    outcome = slow.repro()
    assert (outcome.code, outcome.stages) == (0, ["slow"]), outcome.output
    assert sorted(path.name for path in (slow.root / "build").iterdir()) == [".lock", "config.json", "records", "slow", "working"]


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])  # dash stays between DVC and the stage, bash makes way
def test_stage_dies_with_a_killed_dvc_and_repro_completes(slow: Project, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    monkeypatch.setenv("SHELL", shell)
    slow.write("stages/slow.py", SLOW.format(name="slow", seconds=60))
    process = slow.start("repro")
    wait_until(lambda: bool((slow.root / "build" / "working").exists() and (slow.root / "build" / "working").read_text()))
    orphan = int((slow.root / "build" / "working").read_text())
    process.kill()
    process.wait()
    wait_until(lambda: not alive(orphan), seconds=10)
    assert not (slow.root / "build" / "slow").exists()
    slow.write("stages/slow.py", SLOW.format(name="slow", seconds=0))
    outcome = slow.repro()
    assert (outcome.code, outcome.stages) == (0, ["slow"]), outcome.output
    assert not (slow.root / "build" / ".slow.tmp").exists()


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_failed_stage_keeps_what_dvc_can_bring_back(slow: Project) -> None:
    assert slow.repro().code == 0
    before = {path.name: path.read_bytes() for path in (slow.root / "build" / "slow").iterdir()}
    working = (slow.root / "stages" / "slow.py").read_text()
    slow.write("stages/slow.py", working.replace("return {", "raise SystemExit('stopped')\n    return {"))
    assert slow.repro().code != 0
    slow.write("stages/slow.py", working)
    outcome = slow.run(sys.executable, "-m", "dvc", "checkout")
    assert outcome.code == 0, outcome.output
    assert {path.name: path.read_bytes() for path in (slow.root / "build" / "slow").iterdir()} == before
    assert slow.repro().stages == []


# ------------------------------------------------------------------------------------------------ progress


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time, under control."""
    ticking = Clock()
    monkeypatch.setattr("stages.common.progress.time.monotonic", ticking)
    return ticking


def test_progress_is_silent_for_quick_work(clock: Clock) -> None:
    stream = io.StringIO()
    with progress.Progress("prepare", 10, stream=stream) as advance:
        for _ in range(10):
            clock.now += 0.19
            advance()
    assert stream.getvalue() == ""


def test_progress_writes_lines_at_most_every_two_seconds(clock: Clock) -> None:
    stream = io.StringIO()
    with progress.Progress("prepare", 10, stream=stream) as advance:
        for _ in range(10):
            clock.now += 1.0
            advance()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "prepare: 2/10 samples, 8 s left"
    assert lines[-1] == "prepare: 10/10 samples, 0 s left"
    assert len(lines) == 5


def test_progress_of_long_work_gets_sparse(clock: Clock) -> None:
    stream = io.StringIO()
    with progress.Progress("prepare", stream=stream) as advance:
        for _ in range(3600):
            clock.now += 1.0
            advance()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "prepare: 2 samples, 2 s"
    assert len(lines) < 80


def test_progress_of_an_iterable(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in progress.progress(range(4), "prepare", unit="images"):
        clock.now += 3.0
    assert capsys.readouterr().err.splitlines()[0] == "prepare: 1/4 images, 9 s left"


def test_progress_is_a_bar_in_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    advance = progress.Progress("prepare", 4, stream=stream)
    assert advance._bar is not None
    advance._bar.delay = 0
    with advance:
        for _ in range(4):
            advance()
            advance._bar.refresh()
    assert "prepare" in stream.getvalue()
    assert "4/4" in stream.getvalue()


MODULES = sorted(path.stem for path in (ROOT / "stages").glob("*.py") if '__name__ == "__main__"' in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # of runpy: another test has imported it
def test_every_module_that_runs_has_help_with_examples(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_module(f"stages.{module}", run_name="__main__", alter_sys=True)
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: python -m stages.{module}")
    examples = shown.partition("\nExamples:\n")[2]
    assert f"python -m stages.{module}" in examples or f"dvc repro {module}" in examples


@pytest.mark.parametrize("module", [name for name in MODULES if name not in ("sweep", "promote", "translate_pot")])
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_overrides_of_a_stage_belong_elsewhere(module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [module, "quantization.preset=mixed", "+a.b=[1, 2]"])
    with pytest.raises(SystemExit, match=r"^2$"):
        runpy.run_module(f"stages.{module}", run_name="__main__", alter_sys=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{module}: error: quantization.preset=mixed '+a.b=[1, 2]': overrides are not for `stages.{module}`")
    assert "`python -m stages.sweep -m quantization.preset=mixed '+a.b=[1, 2]'`" in line
    assert "`dvc exp run -S quantization.preset=mixed -S '+a.b=[1, 2]'`" in line
