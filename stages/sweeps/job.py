"""One job of a sweep: a copy of the project with parameters of its own, in which `dvc repro` runs.

A copy has its own params.yaml, dvc.lock and build/. It shares DVC's cache with its cache of runs, what build/ remembers beside
results (`SHARED`), the MLflow store, and the user's data and models, which are linked and not copied.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stages.common import artifacts
from stages.common.errors import UserError
from stages.common.processes import die_with, parent_of
from stages.configuration.loading import load_config
from stages.tracking import runs, store

SWEEP = "SWEEP_PROCESS"  # in the environment of jobs: the number of the sweep's process


@dataclass(frozen=True)
class Job:
    """What a job needs to know.

    Attributes:
        number: Counted from 0, as Hydra does; also the name of the job's folder.
        differences: What sets it apart from the other jobs, e.g. `preset=mixed`.
        overrides: All of the command line's for this job.
        cuts: Stages up to which other jobs do the same, and under which name: they wait for each other there.
        tracking_uri: The MLflow store in a file, which belongs to the project and not to the copy; None: what the configuration says.
        error: What is wrong with its configuration: it will not run.
    """

    number: int
    differences: tuple[str, ...]
    overrides: tuple[str, ...]
    cuts: tuple[tuple[str, str], ...] = ()
    tracking_uri: str | None = None
    error: str | None = None

    @property
    def label(self) -> str:
        """What it is called in tables."""
        return " ".join(self.differences) or "params.yaml"

    @property
    def run_name(self) -> str:
        """What its MLflow run is called: words without their keys, because the UI cuts names at about 20 characters."""
        parts = [difference.partition("=") for difference in self.differences]
        return " ".join(
            value if re.match(r"[a-z]\w*$", value) and value not in ("true", "false", "null") else f"{key}={value}"
            for key, _, value in parts
        )


@dataclass(frozen=True)
class Result:
    """How a job ended.

    Attributes:
        error: None when it succeeded, else one line.
        seconds: Wall time.
        stages: The stages that ran, and did not come from the cache.
        run: Its MLflow run; None where nothing is logged.
    """

    error: str | None
    seconds: float
    stages: tuple[str, ...] = ()
    run: store.Run | None = None


# ------------------------------------------------------------------------------------------------ files of a sweep


def folder_of(sweep: Path, number: int) -> Path:
    """The copy of the project in which a job runs."""
    return sweep / str(number)


def log_of(sweep: Path, number: int) -> Path:
    """What DVC and the stages of a job said."""
    return sweep / f"{number}.log"


def write(sweep: Path, job: Job) -> None:
    """Write down what `run` is to do."""
    artifacts.write_json(sweep / f"{job.number}.job.json", dataclasses.asdict(job))


def read(sweep: Path, number: int) -> Job:
    """What `write` wrote."""
    values = artifacts.read_json(sweep / f"{number}.job.json")
    lists = {name: tuple(values[name]) for name in ("differences", "overrides")}
    return Job(**{**values, **lists, "cuts": tuple((stage, name) for stage, name in values["cuts"])})


def write_result(sweep: Path, number: int, result: Result) -> None:
    """Write down how a job ended."""
    artifacts.write_json(sweep / f"{number}.result.json", dataclasses.asdict(result))


def result_of(sweep: Path, number: int) -> Result:
    """How a job ended; one that left no word was killed, or never started."""
    path = sweep / f"{number}.result.json"
    if not path.exists():
        return Result("was killed, or found the disk full" if log_of(sweep, number).exists() else "did not start", 0.0)
    values = artifacts.read_json(path)
    return Result(values["error"], values["seconds"], tuple(values["stages"]), store.Run(*values["run"]) if values["run"] else None)


# ------------------------------------------------------------------------------------------------ the run


def task(_: object) -> None:
    """What Hydra calls for each job, here or in another process; its own configuration is not needed."""
    from hydra.core.hydra_config import HydraConfig

    _die_with_the_sweep()
    hydra = HydraConfig.get()
    run(Path(hydra.sweep.dir), hydra.job.num)


def run(sweep: Path, number: int) -> None:
    """Run a job and write down how it ended, also where it fails: other jobs go on."""
    job = read(sweep, number)
    started = time.perf_counter()
    error: str | None = "was interrupted"
    stages: list[str] = []
    logged = None
    try:
        error = job.error or _repro(sweep, job, stages)
        if error is None:
            logged = _log(sweep, job)
    except (UserError, OSError) as problem:
        error = " ".join(str(problem).split())
    finally:
        seconds = time.perf_counter() - started
        try:
            write_result(sweep, number, Result(error, round(seconds, 1), tuple(stages), logged))
        except OSError as problem:  # a full disk: other jobs go on, and may find room
            error = f"{error or 'done'}, but cannot say so: {problem.strerror}"
    print(f"{job.number} {job.label}: {'done' if error is None else f'FAILED, {error}'} ({seconds:.0f} s)", flush=True)


def _repro(sweep: Path, job: Job, stages: list[str]) -> str | None:
    """`dvc repro` in the job's folder: None, or what went wrong. Adds the stages that ran to `stages`."""
    with open(log_of(sweep, job.number), "w", encoding="utf-8") as log:
        for stage, name in job.cuts:
            with _only_one(sweep / ".locks" / name):
                if (error := _dvc(sweep, job, ["repro", stage], log, stages)) is not None:
                    return error
        return _dvc(sweep, job, ["repro"], log, stages)


def _dvc(sweep: Path, job: Job, arguments: Sequence[str], log: Any, stages: list[str]) -> str | None:
    last = error = defect = ""
    command = [sys.executable, "-m", "dvc", *arguments]
    with subprocess.Popen(
        command,
        cwd=folder_of(sweep, job.number),
        env=_environment(job),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                log.write(line)
                log.flush()
                if match := re.match(r"Running stage '(\w+)'", line):
                    stages.append(match[1])
                    print(f"{job.number} {job.label}: {match[1]}", flush=True)
                if re.match(r"\w+: error: ", line):
                    error = line.strip()
                if re.match(r"[\w.]+(Error|Exception)\b", line):  # the last line of a traceback
                    defect = f"{stages[-1] if stages else 'dvc'}: {line.strip()}"
                last = line.strip() or last
        except BaseException:
            process.terminate()
            raise
    if process.returncode == 0:
        return None
    return error or defect or last or f"dvc {' '.join(arguments)} failed with exit code {process.returncode}"


def _environment(job: Job) -> dict[str, str]:
    """Of DVC in the copy: this Python first in PATH, nothing of an enclosing DVC run, the sweep's MLflow."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("DVC_") or name == "DVC_NO_ANALYTICS"}
    if job.tracking_uri:
        own["MLFLOW_TRACKING_URI"] = job.tracking_uri
    # Stages and mlflow find the same Python as this process, also where the environment is not activated.
    return own | {runs.LATER: "1", "PATH": os.pathsep.join([str(Path(sys.executable).parent), own.get("PATH", "")])}


def _log(sweep: Path, job: Job) -> store.Run | None:
    """Log a job's result from this process: MLflow takes seconds to import, and a sweep that runs its jobs here does so once."""
    with chdir(folder_of(sweep, job.number)):
        config = load_config()
        if not config.tracking.enabled:
            return None
        run, _ = runs.log(config, job.tracking_uri or store.tracking_uri(config), job.run_name)
    return run


def _die_with_the_sweep() -> None:
    """End this process soon after the sweep above it has been killed; joblib's would go on for minutes, submitit's to their end.

    DVC below it then ends with the first word that nobody reads. Jobs that a cluster has started are none of our business.
    """
    ancestors = partial(_ancestors_up_to, int(os.environ.get(SWEEP, 0)))
    if (chain := ancestors()) and all(thread.name != SWEEP for thread in threading.enumerate()):
        die_with(chain, ancestors, SWEEP)


def _ancestors_up_to(process: int) -> list[int]:
    """The parent of this process and those above it, up to a certain one; empty where that one is not among them."""
    chain = [os.getppid()]
    with suppress(OSError):  # no /proc, or a process that has just ended
        while chain[-1] not in (process, 0):
            chain.append(parent_of(chain[-1]))
    return chain if chain[-1] == process else []


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Wait until no other job is in here: what one of them has built, the others get from DVC's cache."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
