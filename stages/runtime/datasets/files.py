"""Which files of a folder count: not what systems and tools put there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

# Beside what is hidden: resource forks of zip files made on a Mac, thumbnails of Synology and Windows, and the like.
JUNK_FOLDERS = frozenset({"$RECYCLE.BIN", "@eaDir", "System Volume Information", "__MACOSX", "__pycache__", "lost+found"})
JUNK_FILES = frozenset({"Thumbs.db", "desktop.ini"})
# What lies beside images to describe them: nobody takes it for an image that was left out.
DESCRIPTIONS = frozenset({"", ".csv", ".dvc", ".html", ".json", ".log", ".md", ".txt", ".xml", ".yaml", ".yml"})


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's: hidden, or made by a system."""
    return name.startswith(".") or name in JUNK_FOLDERS or name in JUNK_FILES


def folders_in(folder: Path) -> list[Path]:
    """The folders directly in `folder`, sorted by name."""
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not is_junk(entry.name))


def files_in(folder: Path, *, nested: bool = True) -> list[Path]:
    """The files in `folder`, and in the folders in it to any depth, sorted by path. Links are followed, but never in a circle."""
    return sorted(_walk(folder, nested, {folder.resolve()}))


def _walk(folder: Path, nested: bool, seen: set[Path]) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_junk(entry.name):
                continue
            path = folder / entry.name
            if entry.is_file():
                yield path
            elif nested and entry.is_dir() and (place := path.resolve()) not in seen:
                seen.add(place)
                yield from _walk(path, nested, seen)


def left_out(files: Collection[Path], why: str) -> list[str]:
    """A remark on files that are not used, with an example of each kind; nothing about what describes images."""
    kinds = Counter(file.suffix.lower() for file in files)
    examples = {file.suffix.lower(): file for file in reversed(list(files))}
    return [f"left out, as {why}: {count} {kind}, e.g. {examples[kind]}" for kind, count in kinds.items() if kind not in DESCRIPTIONS]
