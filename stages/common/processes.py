"""Processes: what one has used so far, and how it ends together with the one that started it.

Without psutil: it does not know the peak of memory on Linux, its import costs each stage 0.03 CPU seconds, and a look at the ancestors,
twice a second, takes it 86 microseconds instead of 26.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

_ORPHAN_CHECK_SECONDS = 0.5


def cpu_seconds() -> float:
    """User and system seconds of this process and the children it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def peak_memory_mb() -> float:
    """Peak resident memory of this process in megabytes (10**6 bytes)."""
    status = Path("/proc/self/status")
    if status.exists():
        # ru_maxrss would start at the size of the parent that forked us, i.e. of DVC.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def die_with_dvc() -> None:
    """End this process soon after the DVC that started it is gone.

    DVC's stages survive its `kill -9`, and would publish results that the next `dvc repro` knows nothing of.
    """
    if "DVC_STAGE" not in os.environ:
        return
    die_with(_ancestors_up_to_dvc(), _ancestors_up_to_dvc, "die-with-dvc")


def die_with(chain: list[int], ancestors: Callable[[], list[int]], name: str) -> None:
    """End this process soon after its `ancestors` are no longer those in `chain`, from a thread called `name`."""

    def watch() -> None:
        while ancestors() == chain:
            time.sleep(_ORPHAN_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name=name).start()


def _ancestors_up_to_dvc() -> list[int]:
    """The process numbers of the parent and its ancestors, up to the first that is no part of the stage.

    DVC starts a stage through a shell, and not every shell makes way for the command: dash stays between them.
    """
    process, chain = os.getppid(), [os.getppid()]
    try:
        while b"\0DVC_STAGE=" in b"\0" + Path(f"/proc/{process}/environ").read_bytes():
            process = parent_of(process)
            chain.append(process)
    except OSError:
        pass  # no /proc, or a process that has just ended
    return chain


def parent_of(process: int) -> int:
    """The number of a process's parent. OSError where there is no /proc, or where the process has ended."""
    status = Path(f"/proc/{process}/stat").read_text()
    return int(status.rpartition(")")[2].split()[1])
