"""Artifacts appear complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.common import artifacts
from stages.common.errors import UserError


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own with 300 kB of room."""
    folder = tmp_path / "full"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_writing_replaces_the_folder(tmp_path: Path) -> None:
    target = tmp_path / "quantize"
    for name in ("first", "second"):
        with artifacts.writing(target) as folder:
            (folder / name).write_text(name)
            (folder / "inner").mkdir()
    assert sorted(path.name for path in target.iterdir()) == ["inner", "second"]
    assert [path.name for path in tmp_path.iterdir()] == ["quantize"]


@pytest.mark.parametrize("error", [UserError("bad"), ValueError("defect"), KeyboardInterrupt(), RuntimeError("unrelated")])
def test_failure_leaves_the_previous_folder_alone(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "quantize"
    with artifacts.writing(target) as folder:
        (folder / "old").write_text("")
    with pytest.raises(type(error)), artifacts.writing(target) as folder:
        (folder / "new").write_text("")
        raise error
    assert [path.name for path in target.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["quantize"]


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    leftover = tmp_path / ".quantize.tmp" / "half.bin"
    leftover.parent.mkdir()
    leftover.write_text("half")
    with artifacts.writing(tmp_path / "quantize") as folder:
        (folder / "whole").write_text("")
    assert [path.name for path in tmp_path.rglob("*")] == ["quantize", "whole"]


def test_full_disk_is_noticed_whoever_writes(full_disk: Path) -> None:
    import numpy as np
    import openvino as ov
    from openvino import opset13 as operations

    with pytest.raises(OSError, match="No space left") as error, artifacts.writing(full_disk / "python") as folder:
        (folder / "data").write_bytes(bytes(400_000))
    assert error.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="No space left"), artifacts.writing(full_disk / "numpy") as folder:
        np.savez(folder / "data.npz", data=np.zeros(400_000))
    # OpenVINO says "basic_ios::clear: iostream error", and has removed its file by then.
    parameter = operations.parameter([1, 400], np.float32)
    weights = operations.constant(np.random.default_rng(0).random((400, 400), np.float32))
    model = ov.Model([operations.matmul(parameter, weights, False, False)], [parameter])
    with pytest.raises(UserError, match=r"cannot write .*openvino: the disk is full"), artifacts.writing(full_disk / "openvino") as folder:
        ov.save_model(model, folder / "model.xml", compress_to_fp16=False)
    # A writer that swallows the error.
    with pytest.raises(OSError, match="No space left"), artifacts.writing(full_disk / "silent") as folder, contextlib.suppress(OSError):
        (folder / "data").write_bytes(bytes(400_000))
    assert list(full_disk.iterdir()) == []


def test_full_disk_keeps_the_previous_json(full_disk: Path) -> None:
    artifacts.write_json(full_disk / "metrics.json", {"accuracy": 0.9})
    with pytest.raises(OSError, match="No space left"):
        artifacts.write_json(full_disk / "metrics.json", {"accuracy": "x" * 400_000})
    assert artifacts.read_json(full_disk / "metrics.json") == {"accuracy": 0.9}
    assert [path.name for path in full_disk.iterdir()] == ["metrics.json"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_json_round_trip(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip" / "value.json"
    artifacts.write_json(path, value)
    assert artifacts.read_json(path) == value
    assert path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_json_refuses_what_is_not_finite_and_says_where(tmp_path: Path, number: float) -> None:
    with pytest.raises(UserError, match=r"NaN or infinite.*: layers\.1\.noise"):
        artifacts.write_json(tmp_path / "a.json", {"layers": [{"noise": 1.0}, {"noise": number}]})
    assert list(tmp_path.iterdir()) == []


def test_json_keeps_the_order_of_keys(tmp_path: Path) -> None:
    artifacts.write_json(tmp_path / "a.json", {"b": 1, "a": 2})
    assert list(artifacts.read_json(tmp_path / "a.json")) == ["b", "a"]


def test_missing_and_corrupt_json_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.json is missing; run `dvc repro`$"):
        artifacts.read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(UserError, match=r"a\.json is not valid JSON .*; remove it and run `dvc repro`$"):
        artifacts.read_json(tmp_path / "a.json")


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert artifacts.file_sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_inputs_are_known_by_all_that_the_stage_before_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def written() -> str:
        artifacts.write_inputs(Path("build/quantize"), "prepare")
        return (tmp_path / "build/quantize/inputs.json").read_text()

    artifacts.write_text(Path("build/prepare/model.xml"), "abc")
    artifacts.write_text(Path("build/prepare/more/a.json"), "{}")
    # echo -n abc | sha256sum, and so on: a line per file as sha256sum writes it.
    lines = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  model.xml\n"
    lines += "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a  more/a.json\n"
    assert json.loads(written()) == {"prepare": hashlib.sha256(lines.encode()).hexdigest()}
    first = written()
    artifacts.write_text(Path("build/prepare/more/a.json"), "{ }")
    second = written()
    Path("build/prepare/more/a.json").rename("build/prepare/more/b.json")
    assert len({first, second, written()}) == 3
