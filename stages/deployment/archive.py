"""The package as files: their sums, and an archive of them that is the same to the byte for the same files."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

from stages.common import artifacts

SUMS = "SHA256SUMS"
TIME = 315532800  # of all files, 1 January 1980: the archive does not depend on when it was made


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS of every other file in a folder, as `sha256sum --check` reads it."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    artifacts.write_text(folder / SUMS, "".join(f"{artifacts.file_sha256(folder / name)}  {name}\n" for name in files))


def write_archive(folder: Path, target: Path) -> None:
    """Write a folder as .tar.gz, without what differs from machine to machine: times, owners, rights, order."""
    with (
        open(target, "wb") as file,
        gzip.GzipFile("", "wb", 9, file, TIME) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in [folder, *sorted(folder.rglob("*"))]:
            archive.add(path, path.relative_to(folder.parent).as_posix(), recursive=False, filter=_plain)


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = TIME, 0, 0, "", ""
    entry.mode = 0o755 if entry.isdir() else 0o644
    return entry
