"""What files and folders hold, by hash: whether what a user brought is what it was.

Content is hashed once; a file of the same size, time and place has the hash that it had.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from stages.common import artifacts

KNOWN_HASHES = artifacts.BUILD / ".hashes.json"  # no artifact: it may be removed at any time
# Of a folder beyond this, names and sizes count instead of contents: reading it would take minutes, each time it is new.
LARGEST_FOLDER = 8_000_000_000
MOST_FILES = 100_000  # of a folder; looking at more would take seconds each time
NOT_WATCHED = "not watched: more than 100000 files"
# A file that was written this shortly before it was hashed can change again without showing another time.
SHORTEST_AGE = 2_000_000_000


class Fingerprints:
    """Hashes of files and folders, remembered in `known`; a context manager that writes there what it learnt."""

    def __init__(self, known: Path = KNOWN_HASHES) -> None:
        self._path = known
        self._known = _read(known)
        self._current: dict[str, list[object]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None and self._current != self._known:
            artifacts.write_text(self._path, json.dumps(self._current))

    def of(self, path: Path) -> str:
        """The SHA-256 of a file; of a folder that of all names and hashes in it, hidden ones left out.

        Beyond `LARGEST_FOLDER` sizes stand for hashes, beyond `MOST_FILES` it is `NOT_WATCHED`.
        """
        if not path.is_dir():
            return self._of_file(path)
        entries = []
        for count, entry in enumerate(_visible_files(path)):
            if count >= MOST_FILES:
                return NOT_WATCHED
            entries.append((Path(entry.path).relative_to(path).as_posix(), entry))
        entries.sort(key=lambda item: item[0])
        large = sum(entry.stat().st_size for _, entry in entries) > LARGEST_FOLDER
        digest = hashlib.sha256()
        for name, entry in entries:
            digest.update(
                f"{entry.stat().st_size if large else self._of_file(Path(entry.path))}  {name}\n".encode("utf-8", "surrogateescape")
            )
        return f"names and sizes {digest.hexdigest()}" if large else digest.hexdigest()

    def _of_file(self, path: Path) -> str:
        return self.recall(path, "", lambda: artifacts.file_sha256(path))

    def recall(self, path: Path, kind: str, find: Callable[[], str]) -> str:
        """What `find` gives for a file: what it gave when the file was the same, under the name `kind`."""
        status = path.stat()
        name = f"{path.absolute()}{kind}"
        identity: list[object] = [status.st_size, status.st_mtime_ns, status.st_ino]
        known = self._known.get(name)
        if known is not None and known[:3] == identity:
            self._current[name] = known
            return str(known[3])
        value = find()
        if time.time_ns() - status.st_mtime_ns > SHORTEST_AGE:
            self._current[name] = [*identity, value]
        return value


def paths_in(values: object, root: Path) -> Iterator[Path]:
    """The files and folders in or outside `root` that strings in `values` name, at any depth; neither `root` itself nor what holds it."""
    if isinstance(values, str):
        path = Path(values)
        if values and "\0" not in values and _is_watchable(path, root):
            yield path
    elif isinstance(values, Mapping):
        for key, value in values.items():
            if key != "_target_":
                yield from paths_in(value, root)
    elif isinstance(values, Iterable):
        for value in values:
            yield from paths_in(value, root)


def _is_watchable(path: Path, root: Path) -> bool:
    try:
        place = path.resolve()
        build = (root / artifacts.BUILD).resolve()
        return not root.resolve().is_relative_to(place) and not place.is_relative_to(build) and (path.is_file() or path.is_dir())
    except OSError:  # too long to be a path, or not to be looked at
        return False


def _visible_files(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__pycache__":
                continue
            if entry.is_dir():
                yield from _visible_files(Path(entry.path))
            elif entry.is_file():
                yield entry


def _read(path: Path) -> dict[str, list[object]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
