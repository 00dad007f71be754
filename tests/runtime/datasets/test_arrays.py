"""Samples from arrays in a file."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stages.common.errors import UserError
from stages.runtime.datasets import Arrays, Samples, array_files, model_inputs
from tests.runtime import models

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def npz(tmp_path: Path) -> Callable[..., str]:
    def write(**arrays: np.ndarray) -> str:
        np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]
        return str(tmp_path / "data.npz")

    return write


def test_arrays_of_one_input(npz: Callable[..., str]) -> None:
    x, y = np.random.default_rng(0).normal(size=(5, 3, 2)), np.arange(5)
    dataset = Arrays(npz(whatever=x, y=y))
    assert len(dataset) == 5
    for index in range(5):
        inputs, target, *_ = dataset[index]
        np.testing.assert_array_equal(inputs[""], x[index][None])
        assert target == index
        assert type(target) is int


def test_arrays_of_several_inputs_by_name(npz: Callable[..., str]) -> None:
    image, ids = np.random.default_rng(0).normal(size=(4, 2, 3)), np.arange(8).reshape(4, 2)
    path = npz(image=image, ids=ids, extra=np.zeros(9), masks=np.zeros((4, 6, 6), int))
    dataset = Arrays(path, inputs={"image": "image", "tokens": "ids"}, targets="masks")
    samples = Samples(dataset, model_inputs(models.two_inputs()))
    assert list(samples[3].inputs) == ["image", "tokens"]
    np.testing.assert_array_equal(samples[3].inputs["tokens"], [[6, 7]])
    np.testing.assert_array_equal(samples[3].inputs["image"], image[3:4].astype(np.float32))
    assert samples[3].target.shape == (6, 6)


def test_arrays_without_targets(npz: Callable[..., str]) -> None:
    path = npz(x=np.zeros((2, 3)))
    assert Arrays(path)[1].target is None
    path = npz(x=np.zeros((2, 3)), y=np.zeros((2, 3)))
    assert set(Arrays(path, targets=None)[0].inputs) == {"x", "y"}


def test_arrays_of_text_targets(npz: Callable[..., str]) -> None:
    assert Arrays(npz(x=np.zeros((2, 3)), y=np.array(["ab", "c"])))[1].target == "c"


def test_arrays_that_have_their_batch_dimension(npz: Callable[..., str]) -> None:
    assert Arrays(npz(x=np.zeros((4, 1, 3))), add_batch=False)[0].inputs[""].shape == (1, 3)


def test_what_is_wrong_with_arrays(npz: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data file nowhere\.npz does not exist"):
        Arrays("nowhere.npz")
    path = npz(x=np.zeros((3, 2)), z=np.zeros((4, 2)))
    with pytest.raises(UserError, match=r"the arrays of .* differ in length: x has 3, z has 4"):
        Arrays(path)
    with pytest.raises(UserError, match=r"has no array w; its arrays are: x, z"):
        Arrays(path, inputs={"image": "w"})
    with pytest.raises(UserError, match="has no array for an input"):
        Arrays(npz(y=np.zeros(3)))
    content = Path(npz(x=np.zeros((300, 2)))).read_bytes()
    for name, damaged in (("half", content[:1000]), ("text", b"no arrays"), ("empty", b"")):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(UserError, match=rf"cannot read .*{name} as \.npz: ") as error:
            Arrays(str(tmp_path / name))
        assert "\n" not in str(error.value)
    np.savez(tmp_path / "objects.npz", x=np.array([{}, []], dtype=object))
    with pytest.raises(UserError, match=r"cannot read .*objects\.npz as \.npz: it holds Python objects"):
        Arrays(str(tmp_path / "objects.npz"))
    np.save(tmp_path / "short.npy", np.zeros((300, 2)))
    (tmp_path / "short.npy").write_bytes((tmp_path / "short.npy").read_bytes()[:-1])
    with pytest.raises(UserError, match=r"cannot read .*short\.npy as \.npy: it is shorter than its header says"):
        Arrays(str(tmp_path / "short.npy"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder .*folder has no \.npy files"):
        Arrays(str(tmp_path / "folder"))
    with pytest.raises(UserError, match=r"x has 0$"):
        Arrays(npz(x=np.float64(3)))


# ------------------------------------------------------------------------------------------------ ways to store them

KINDS: dict[str, np.ndarray] = {
    "float64": np.random.default_rng(0).normal(size=(6, 3, 2)),
    "uint8": np.arange(30, dtype=np.uint8).reshape(6, 5),
    "big endian": np.arange(12, dtype=">f4").reshape(6, 2),
    "bool": np.arange(6) % 2 == 0,
    "text": np.array(["a", "bcd", "", "ü", "e", "f"]),
    "bytes": np.array([b"a", b"bcd", b"", b"d", b"e", b"f"]),
    "columns first": np.asfortranarray(np.random.default_rng(1).normal(size=(6, 4, 3))),
    "nothing in it": np.zeros((6, 0, 3)),
    "one number each": np.arange(6, dtype=np.int16),
}
WAYS = ("npz", "compressed", "npy", "folder")


def stored(way: str, root: Path, **arrays: np.ndarray) -> Arrays:
    """The arrays, written and opened in one of the ways there are."""
    if way == "npz":
        np.savez(root / "a.npz", **arrays)  # type: ignore[arg-type]
    elif way == "compressed":
        np.savez_compressed(root / "a.npz", **arrays)  # type: ignore[arg-type]
    elif way == "npy":
        (array,) = arrays.values()
        np.save(root / "a.npy", array)
        return Arrays(str(root / "a.npy"))
    else:
        for name, array in arrays.items():
            np.save(root / f"{name}.npy", array)
        (root / "._x.npy").write_bytes(b"\0")
        (root / "readme.txt").write_text("no array")
        return Arrays(str(root))
    return Arrays(str(root / "a.npz"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_rows_are_those_of_the_array(tmp_path: Path, way: str, kind: str) -> None:
    array = KINDS[kind]
    dataset = stored(way, tmp_path, x=array)
    assert len(dataset) == 6
    for copy in (dataset, pickle.loads(pickle.dumps(dataset))):
        for index in (5, 0, 3):
            (row,) = copy[index].inputs.values()
            assert row.dtype.newbyteorder("=") == array.dtype.newbyteorder("=")  # which NumPy turns when pickling
            np.testing.assert_array_equal(row, array[index : index + 1])


@pytest.mark.parametrize("way", ["npz", "compressed", "folder"])
def test_targets_in_every_way(tmp_path: Path, way: str) -> None:
    targets = np.array([3, 1, 2])
    dataset = stored(way, tmp_path, image=np.zeros((3, 2)), ids=np.ones((3, 4)), y=targets)
    assert [dataset[index].target for index in range(3)] == [3, 1, 2]
    assert set(dataset[0].inputs) == {"image", "ids"}


def test_rows_are_arrays_of_their_own(tmp_path: Path) -> None:
    """Who writes into one does not change the data set."""
    for way in WAYS:
        (tmp_path / way).mkdir()
        dataset = stored(way, tmp_path / way, x=np.ones((6, 2)))
        dataset[1].inputs[""][:] = 7
        assert (dataset[1].inputs[""] == 1).all()


@pytest.mark.parametrize("way", WAYS)
def test_a_data_set_that_is_sent_needs_no_files(tmp_path: Path, way: str) -> None:
    """To the workers of a cluster, on other machines."""
    sent = pickle.dumps(stored(way, tmp_path, x=KINDS["float64"]))
    for file in tmp_path.iterdir():
        file.unlink()
    np.testing.assert_array_equal(pickle.loads(sent)[4].inputs[""], KINDS["float64"][4:5])


@pytest.mark.parametrize("way", ["npz", "npy", "folder"])
def test_a_large_data_set_is_sent_by_name(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_files, "LARGEST_SENT", 100)
    for name in ("float64", "columns first"):
        sent = pickle.dumps(stored(way, tmp_path, x=KINDS[name]))
        assert len(sent) < 1000
        np.testing.assert_array_equal(pickle.loads(sent)[4].inputs[""], KINDS[name][4:5])


LARGE = """\
import resource, sys
from stages.runtime.datasets import Arrays
dataset = Arrays(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for index in range(len(dataset)):
    assert dataset[index].inputs[""][0, 0, 0] == index
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("way", ["npz", "npy", "folder"])
def test_memory_of_a_row_at_a_time(tmp_path: Path, way: str) -> None:
    """400 MB in rows of 4 MB: a tenth of it is more than enough."""
    rows = np.zeros((100, 1000, 1000), np.float32)
    rows[:, 0, 0] = np.arange(100)
    dataset = stored(way, tmp_path, x=rows)
    command = [sys.executable, "-c", LARGE, dataset.path]
    more = int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
    assert more < 40_000  # kilobytes


def test_compressed_arrays_that_do_not_fit_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = stored("compressed", tmp_path, x=np.zeros((10, 1000)), y=np.arange(10))
    monkeypatch.setattr(array_files, "available_memory", lambda: 79_999)
    with pytest.raises(UserError, match=r"^array x of .*a\.npz takes 0\.0 GB uncompressed, .*written by np\.savez instead of"):
        dataset[0]
    monkeypatch.setattr(array_files, "available_memory", lambda: 80_000)
    assert dataset[3].target == 3


def test_memory_that_is_available() -> None:
    assert (array_files.available_memory() or 0) > 10**6


def test_a_file_that_becomes_shorter_is_one_line(tmp_path: Path) -> None:
    dataset = stored("npy", tmp_path, x=np.ones((6, 2)))
    np.save(tmp_path / "a.npy", np.ones((3, 2)))
    with pytest.raises(UserError, match=r"a\.npy has become shorter since it was opened"):
        dataset[5]
    for index in (6, -1):
        with pytest.raises(IndexError):
            dataset[index]
