"""What all stages share: run the body, write its record, and turn errors that the user can fix into one line."""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from stages.common import artifacts
from stages.common.errors import UserError
from stages.common.passwords import without_passwords
from stages.common.processes import cpu_seconds, die_with_dvc, peak_memory_mb
from stages.common.user_code import print_traceback
from stages.configuration.loading import load_config
from stages.configuration.schema import Config

Body = Callable[[Config], dict[str, Any] | None]

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


def run(name: str, body: Body, patience: float | None = None) -> None:
    """Run a stage as the main program: `body` with the checked configuration, then exit if it failed.

    What `body` returns is merged into the stage's record. `--help` prints the documentation of the stage's module.

    patience: seconds to wait for another stage that runs in this folder before giving up; None: for as long as it takes.
    """
    execute(name, lambda: body(load_config()), patience)


def execute(name: str, work: Callable[[], dict[str, Any] | None], patience: float | None = None) -> None:
    """Like `run`, for work that needs no configuration."""
    documentation = sys.modules["__main__"].__doc__
    parser = argparse.ArgumentParser(
        prog=f"python -m stages.{name}", description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    only_options(parser, name)
    code = guarded(name, work, patience)
    if code:
        sys.exit(code)


def only_options(parser: argparse.ArgumentParser, name: str, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of a program that takes no overrides; one that is given is refused in a line that says where it belongs."""
    given, others = parser.parse_known_args(arguments)
    overrides = [other for other in others if re.match(r"[+~]*[\w./@-]+=", other) and not other.startswith("-")]
    if overrides:
        shown, changed = shlex.join(overrides), " ".join(f"-S {shlex.quote(override)}" for override in overrides)
        _say(
            name,
            f"{shown}: overrides are not for `stages.{name}`, which reads what params.yaml says: write it there and run `dvc repro`, or"
            f" build it beside that, `python -m stages.sweep -m {shown}`, or in its place, `dvc exp run {changed}`",
        )
        sys.exit(2)
    if others:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    return given


def guarded(name: str, work: Callable[[], dict[str, Any] | None], patience: float | None = None) -> int:
    """Do `work`, write the record of stage `name`, and return the exit code: 0, 1 after an error, 130 when interrupted.

    Only errors that the user can act on become a line; any other exception is a defect and keeps its traceback.
    """
    quiet_libraries()
    die_with_dvc()
    try:
        with alone(name, patience):
            started = time.perf_counter()
            more = work() or {}
            record = {
                "stage": name,
                "seconds": round(time.perf_counter() - started, 3),
                "cpu_seconds": round(cpu_seconds(), 3),
                "peak_memory_mb": round(peak_memory_mb(), 1),
                **more,
            }
            artifacts.write_json(artifacts.record(name), record)
    except (UserError, OSError) as error:
        return fail(name, error, artifacts.folder(name))
    except MemoryError:
        return _say(name, f"out of memory (peak {peak_memory_mb():.0f} MB)")
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    return 0


def fail(name: str, error: UserError | OSError, place: Path) -> int:
    """Print the one line of an error that the user can mend, and return the exit code; any other is a defect, and raised again.

    place: what was being written, where the error does not say.
    """
    print_traceback(error)
    reason = str(error) if isinstance(error, UserError) else _of_the_disk(error, place)
    if reason is None:
        raise error
    return _say(name, reason)


def _of_the_disk(error: OSError, place: Path) -> str | None:
    """A full disk, or no right to write."""
    named = error.filename2 or error.filename or place
    if error.errno in _FULL_DISK:
        return f"disk full while writing {named}"
    return f"{named}: {error.strerror}" if error.errno in _NOT_WRITABLE else None


def _say(name: str, message: str) -> int:
    print(f"{name}: error: {without_passwords(' '.join(message.split()))}", file=sys.stderr)
    return 1


@contextmanager
def alone(name: str, patience: float | None = None) -> Iterator[None]:
    """Hold the lock of build/: two stages at once would pull each other's outputs from under their feet.

    The kernel releases it when the process ends, however it ends.
    """
    if artifacts.BUILD.exists() and not artifacts.BUILD.is_dir():
        raise UserError(f"{artifacts.BUILD} is a file, but must be a folder, or not there")
    artifacts.BUILD.mkdir(exist_ok=True)
    with open(artifacts.BUILD / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{name}: waiting for another stage that is running in this folder", file=sys.stderr, flush=True)
            _wait_for(lock, patience)
        artifacts.remove_leftovers()
        yield


def _wait_for(lock: TextIO, patience: float | None) -> None:
    """Take the lock when it is free. UserError when it is not within `patience` seconds."""
    if patience is None:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return None
    end = time.monotonic() + patience
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                raise UserError("another stage is still running in this folder, maybe the same search: wait until it is done") from None
            time.sleep(0.1)


def quiet_libraries() -> None:
    """Keep libraries that are imported later from calling home: results must not depend on a network."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # OpenVINO has no switch for it, but falls back to a stub where the package cannot be imported.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
