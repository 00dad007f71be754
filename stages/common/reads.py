"""Which files a piece of code opens, wherever in it and in whichever library that does it in Python."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SYSTEM = ("/proc", "/sys", "/dev", "/etc", "/usr")

_listening: list[set[str]] = []
_hooked = False


@contextmanager
def opened_files() -> Iterator[set[str]]:
    """Yield a set that fills with the absolute paths of files that are opened for reading inside the block.

    Python's audit event tells of all that `open` opens. What a library's C code opens by itself is not seen.
    """
    global _hooked
    if not _hooked:
        sys.addaudithook(_hear)  # for good: a hook cannot be taken back
        _hooked = True
    paths: set[str] = set()
    _listening.append(paths)
    try:
        yield paths
    finally:
        _listening.remove(paths)


def users_files(paths: set[str], root: Path) -> list[Path]:
    """Those of `paths` that are a user's: no part of Python, of an installed package, of the system, of stages/ or of build/."""
    prefixes = {Path(sys.prefix), Path(sys.base_prefix)}
    foreign = [*prefixes, *(path.resolve() for path in prefixes), *map(Path, SYSTEM), root / "stages", root / "build"]
    files = [path for name in sorted(paths) if "site-packages" not in name and not name.endswith(".pyc") and (path := Path(name)).is_file()]
    return [path for path in files if not any(path.is_relative_to(folder) for folder in foreign)]


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    if event != "open" or not _listening:
        return
    path, mode = arguments[0], arguments[1]
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if isinstance(path, str) and (mode is None or (isinstance(mode, str) and not set(mode) & set("wxa"))):
        _listening[-1].add(str(Path(path).absolute()))
