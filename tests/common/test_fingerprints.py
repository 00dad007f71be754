"""Hashes of what users bring: what changes them, and what is not read again."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from stages.common import fingerprints
from stages.common.fingerprints import Fingerprints, paths_in


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two images and what is none of them."""
    monkeypatch.chdir(tmp_path)
    for name, content in (("a/1.png", b"one"), ("a/b/2.png", b"two"), ("a/.hidden", b"x"), ("a/__pycache__/c.pyc", b"y")):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (1e9, 1e9))
    return tmp_path / "images"


def test_of_files_and_folders(folder: Path) -> None:
    one, two = (hashlib.sha256(content).hexdigest() for content in (b"one", b"two"))
    with Fingerprints() as prints:
        assert prints.of(folder / "a" / "1.png") == one
        assert prints.of(folder) == hashlib.sha256(f"{one}  a/1.png\n{two}  a/b/2.png\n".encode()).hexdigest()


@pytest.mark.parametrize("change", ["content", "name", "more", "fewer"])
def test_every_change_of_a_folder_shows(folder: Path, change: str) -> None:
    with Fingerprints() as prints:
        before = prints.of(folder)
    path = folder / "a" / "b" / "2.png"
    if change == "content":
        path.write_bytes(b"TWO")  # as long as before
    elif change == "name":
        path.rename(path.with_name("3.png"))
    elif change == "more":
        (folder / "3.png").write_bytes(b"")
    else:
        path.unlink()
    with Fingerprints() as prints:
        assert prints.of(folder) != before


def test_what_is_known_is_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Fingerprints() as prints:
        before = prints.of(folder)
    (folder / "new.png").write_bytes(b"new")
    read: list[Path] = []

    def file_sha256(path: Path) -> str:
        read.append(path)
        return "0"

    monkeypatch.setattr("stages.common.artifacts.file_sha256", file_sha256)
    with Fingerprints() as prints:
        assert prints.of(folder / "a") != before
        prints.of(folder)
    assert read == [folder / "new.png"]


def test_a_file_just_written_may_change_within_its_time(folder: Path) -> None:
    path = folder / "a" / "1.png"
    now = time.time()
    path.write_bytes(b"abc")
    os.utime(path, (now, now))
    with Fingerprints() as prints:
        before = prints.of(path)
    path.write_bytes(b"xyz")
    os.utime(path, (now, now))
    with Fingerprints() as prints:
        assert prints.of(path) != before


def test_large_folders_by_sizes_and_huge_ones_not_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "LARGEST_FOLDER", 5)
    with Fingerprints() as prints:
        assert (
            prints.of(folder)
            == f"names and sizes {hashlib.sha256(b'3  a/1.png' + bytes([10]) + b'3  a/b/2.png' + bytes([10])).hexdigest()}"
        )
    monkeypatch.setattr(fingerprints, "MOST_FILES", 1)
    with Fingerprints() as prints:
        assert prints.of(folder) == fingerprints.NOT_WATCHED


def test_damaged_memory_is_forgotten(folder: Path) -> None:
    fingerprints.KNOWN_HASHES.parent.mkdir()
    fingerprints.KNOWN_HASHES.write_text("{")
    with Fingerprints() as prints:
        assert len(prints.of(folder)) == 64


def test_which_strings_are_paths(folder: Path) -> None:
    root = folder.parent
    (root / "build").mkdir()
    (root / "build" / "x.json").write_text("{}")
    (root / "list.txt").write_text("")
    section = {
        "_target_": "images",
        "path": "images",
        "more": [{"file": "list.txt"}, ["images/a/1.png"], 3, None, True],
        "no": ["", ".", "..", "/", "missing.png", "a\0b", "x" * 5000, "build", "build/x.json", str(root)],
    }
    assert [str(path) for path in paths_in(section, root)] == ["images", "list.txt", "images/a/1.png"]
