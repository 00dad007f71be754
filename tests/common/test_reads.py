"""Which files a user's code opens."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from stages.common.reads import opened_files, users_files


def test_what_python_opens_for_reading_is_seen(tmp_path: Path) -> None:
    names = [tmp_path / name for name in ("a.txt", "b.npy", "c.npz", "d.png", "e.bin", "f.txt")]
    names[0].write_text("a")
    np.save(names[1], np.zeros(3))
    np.savez(names[2], x=np.zeros(3))
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(names[3])
    names[4].write_bytes(b"e")
    names[5].write_text("before the block")
    with opened_files() as opened:
        names[0].read_text()
        np.load(names[1], mmap_mode="r")
        np.load(names[2])["x"].sum()
        Image.open(names[3]).load()
        os.close(os.open(names[4], os.O_RDONLY))
        with open(tmp_path / "written.txt", "w") as file:
            file.write("x")
        io.BytesIO(b"no file").read()
    names[5].read_text()  # after the block
    assert users_files(opened, tmp_path) == names[:5]


def test_files_of_others_are_left_out(tmp_path: Path) -> None:
    for name in ("stages/own.py", "build/a.json", "lib/site-packages/b.py", "conf/__pycache__/c.pyc", "data/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    paths = {str(path) for path in tmp_path.rglob("*")} | {os.__file__, sys.executable, "/etc/hostname", str(tmp_path / "gone.txt")}
    assert users_files(paths, tmp_path) == [tmp_path / "data" / "d.txt"]
