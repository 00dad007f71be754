"""Paths and formats of everything that passes between stages.

Every artifact appears complete or not at all: folders and files are written beside their place and renamed into it, so
neither an exception nor `kill -9` leaves half of one behind.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.common.errors import UserError

BUILD = Path("build")
CONFIG = BUILD / "config.json"
RECORDS = BUILD / "records"
REPORTS = BUILD / "reports"


def folder(stage: str) -> Path:
    """The folder that a stage writes, e.g. `build/quantize`."""
    return BUILD / stage


def record(stage: str) -> Path:
    """The record of a stage's run: seconds, CPU seconds and peak memory."""
    return RECORDS / f"{stage}.json"


@contextmanager
def writing(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `target` when the block succeeds and vanishes when it fails.

    Whatever a killed run left in the temporary folder is removed first.

    Raises:
        OSError: with ENOSPC when the block seemed to succeed on a full disk: not every native writer notices.
        UserError: when OpenVINO could not write a file, which it does not explain.
    """
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _check_space(temporary, target)
        _sync(temporary)
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
        temporary.replace(target)
    except RuntimeError as error:
        if "iostream error" not in str(error):
            raise
        # All that a C++ stream says, and what it wrote is gone by now, so the space that is left proves nothing.
        free = shutil.disk_usage(temporary).free / 1e6
        raise UserError(f"cannot write {target}: the disk is full, or not writable ({free:.1f} MB are free)") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers() -> None:
    """Remove what killed stages have left in build/ under temporary names; only for who holds build/'s lock."""
    for folder in (BUILD, RECORDS, REPORTS):
        for path in folder.glob(".*.tmp"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def model_bytes(folder: Path) -> int:
    """Size of the model in a folder, with its weights."""
    return sum((folder / name).stat().st_size for name in ("model.xml", "model.bin"))


def write_inputs(folder: Path, stage: str) -> None:
    """Write down in `folder` what `stage` wrote, by hash, in a stage that depends on it.

    All that the stages before wrote is then known by the folder of the last one: whoever depends on that depends on all of them.
    """
    write_json(folder / "inputs.json", {stage: folder_sha256(BUILD / stage)})


def write_json(path: Path, value: object) -> None:
    """Write `value` as JSON, atomically and with the same bytes for the same value (key order is kept).

    Raises:
        UserError: when a number is NaN or infinite, which JSON cannot hold.
    """
    try:
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise UserError(f"{path}: a value is NaN or infinite and cannot be written: {_not_finite(value)}") from error
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically, creating its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Read a JSON artifact.

    Raises:
        UserError: when the file is missing or corrupt.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run `dvc repro`") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); remove it and run `dvc repro`") from None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: Path) -> str:
    """SHA-256 of the names and contents of all files in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listing = "".join(f"{file_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
    return hashlib.sha256(listing.encode()).hexdigest()


def _check_space(temporary: Path, target: Path) -> None:
    """Raise ENOSPC when the file system that holds `temporary` is full."""
    if shutil.disk_usage(temporary).free == 0:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))


def _sync(directory: Path) -> None:
    """Flush the files of `directory`: some file systems report a full disk only now."""
    for path in directory.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def _not_finite(value: object, key: str = "") -> str:
    """The path of the first NaN or infinity in `value`, e.g. `layers.3.noise`; empty when there is none."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return key or str(value)
    items: list[tuple[object, object]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    return next((found for name, item in items if (found := _not_finite(item, f"{key}.{name}".lstrip(".")))), "")
