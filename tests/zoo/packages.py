"""Files out of wheels, downloaded once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath


def cache() -> Path:
    """Where downloads stay: POT_WORKFLOW_ZOO, or a folder of the user's cache."""
    own = os.environ.get("POT_WORKFLOW_ZOO")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pot-workflow-zoo"


def extract(requirement: str, patterns: Iterable[str], target: Path) -> None:
    """Copy the files of a wheel that match any of the patterns to `target`, without the folder that all patterns share.

    Raises:
        FileNotFoundError: nothing matches.
    """
    patterns = list(patterns)
    shared = PurePosixPath(os.path.commonpath([str(PurePosixPath(pattern).parent).split("*")[0] for pattern in patterns]) or ".")
    with zipfile.ZipFile(wheel(requirement)) as archive:
        members = [name for name in archive.namelist() if any(_matches(name, pattern) for pattern in patterns)]
        if not members:
            raise FileNotFoundError(f"{requirement} has no file like {', '.join(patterns)}")
        for name in members:
            path = target / PurePosixPath(name).relative_to(shared)
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as packed, open(path, "wb") as file:
                shutil.copyfileobj(packed, file)


def wheel(requirement: str) -> Path:
    """The wheel of a requirement `name==version`, from the cache or with pip, which knows the user's index."""
    folder = cache() / "wheels" / requirement
    if not (files := sorted(folder.glob("*.whl"))):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, "--only-binary", ":all:", "--dest", str(folder), requirement], check=True)
        files = sorted(folder.glob("*.whl"))
    return files[0]


def _matches(name: str, pattern: str) -> bool:
    """Whether a member is meant: `**` stands for any folders and files, `*` for any part of a name."""
    if name.endswith("/"):
        return False
    folder, deep, rest = pattern.partition("**")
    if deep:
        return name.startswith(folder) and PurePosixPath(name).match(rest.lstrip("/") or "*")
    return PurePosixPath(name).parent == PurePosixPath(pattern).parent and PurePosixPath(name).match(pattern)
