"""The package's sums, and its archive."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

from stages.deployment.archive import write_archive, write_sums


def package(root: Path) -> Path:
    folder = root / "net-int8"
    (folder / "net-int8/1").mkdir(parents=True)
    (folder / "net-int8/1/model.xml").write_text("<net/>")
    (folder / "README.md").write_text("# net")
    write_sums(folder)
    return folder


def test_sums_are_those_of_sha256sum(tmp_path: Path) -> None:
    folder = package(tmp_path)
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["README.md: OK", "net-int8/1/model.xml: OK"]


def test_the_same_files_make_the_same_archive(tmp_path: Path) -> None:
    archives = []
    for name in ("a", "b"):
        folder = package(tmp_path / name)
        if name == "b":
            os.utime(folder / "README.md", (1, 1))
            (folder / "README.md").chmod(0o600)
        write_archive(folder, tmp_path / f"{name}.tar.gz")
        archives.append((tmp_path / f"{name}.tar.gz").read_bytes())
    assert archives[0] == archives[1]
    with tarfile.open(tmp_path / "a.tar.gz") as archive:
        entries = {entry.name: entry for entry in archive}
        names = ["net-int8", "net-int8/README.md", "net-int8/SHA256SUMS", "net-int8/net-int8", "net-int8/net-int8/1"]
        assert list(entries) == [*names, "net-int8/net-int8/1/model.xml"]
        assert {(entry.mtime, entry.uid, entry.uname, entry.mode) for entry in entries.values() if entry.isfile()} == {
            (315532800, 0, "", 0o644)
        }
        archive.extractall(tmp_path / "out", filter="data")
    assert (tmp_path / "out/net-int8/net-int8/1/model.xml").read_text() == "<net/>"
