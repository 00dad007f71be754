"""Files and folders that a user names."""

from __future__ import annotations

import os
from pathlib import Path


def is_there(name: str) -> bool:
    """Whether `name` is a file or a folder: neither a pipe, whose reader waits for ever, nor a socket or device."""
    return Path(name).is_file() or Path(name).is_dir()


def of_a_copy(name: str) -> str:
    """What to add to `expected an existing file`: where paths start, or why a copy of the project that DVC has made lacks this one."""
    root = os.environ.get("DVC_ROOT")
    if not root or Path(root).resolve() == Path.cwd() or not (Path(root) / name).exists():
        return "; paths start at the project's folder"
    return (
        f" that git or DVC tracks: the project has it, and this temporary copy of DVC's does not; an absolute path, `dvc add {name}`, "
        f"or `dvc exp run --copy-paths {name}`"
    )
