"""Samples from arrays in a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stages.common.errors import UserError
from stages.runtime.datasets import Arrays, Samples, model_inputs
from tests.runtime import models


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
        inputs, target, _ = dataset[index]
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
    np.save(tmp_path / "plain.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"cannot read .*plain\.npy as \.npz"):
        Arrays(str(tmp_path / "plain.npy"))
    np.savez(tmp_path / "objects.npz", x=np.array([{}, []], dtype=object))
    with pytest.raises(UserError, match=r"cannot read .*objects\.npz as \.npz"):
        Arrays(str(tmp_path / "objects.npz"))
