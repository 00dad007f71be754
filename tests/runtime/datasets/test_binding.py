"""Data sets, and the checks that every sample goes through."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages.common.errors import UserError
from stages.runtime.datasets import Arrays, Dataset, Identity, ImageFolder, ModelInput, Sample, Samples, checked, identity, model_inputs
from tests.runtime import models

# ------------------------------------------------------------------------------------------------ arrays


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


# ------------------------------------------------------------------------------------------------ images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, written in an order that is not the sorted one."""
    generator = np.random.default_rng(0)
    for name in ("dog/b.png", "cat/z.png", "dog/a.PNG", "cat/notes.txt", ".hidden/x.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("no image")
        else:
            Image.fromarray(generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path, format="PNG")
    return tmp_path / "images"


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_class_folders_in_sorted_order(folder: Path) -> None:
    dataset = ImageFolder(str(folder))
    assert dataset.classes == ["cat", "dog"]
    assert [dataset[i].target for i in range(len(dataset))] == [0, 1, 1]
    assert [dataset.label(i).removeprefix(f"{folder}{os.sep}") for i in range(3)] == ["cat/z.png", "dog/a.PNG", "dog/b.png"]


def test_images_directly_in_the_folder_are_unlabelled(folder: Path) -> None:
    dataset = ImageFolder(str(folder / "dog"))
    assert [dataset[i].target for i in range(len(dataset))] == [None, None]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_pixels_are_scaled_per_channel(folder: Path, layout: str, color: str) -> None:
    mean, std = [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]
    (array,) = ImageFolder(str(folder), color=color, scale=0.5, mean=mean, std=std, layout=layout)[0].inputs.values()
    expected = pixels(folder / "cat" / "z.png")[:, :, :: 1 if color == "RGB" else -1].astype(np.float64)
    expected = ((expected * 0.5 - mean) / std)[None]
    np.testing.assert_allclose(array, expected.transpose(0, 3, 1, 2) if layout == "NCHW" else expected, rtol=1e-5, atol=1e-5)
    assert array.dtype == np.float32


def test_gray(folder: Path) -> None:
    (array,) = ImageFolder(str(folder), color="GRAY", mean=10)[0].inputs.values()
    np.testing.assert_array_equal(array[0, 0], np.asarray(Image.open(folder / "cat" / "z.png").convert("L")).astype(np.float32) - 10)


def ramp(folder: Path, height: int, width: int) -> ImageFolder | Path:
    """An image whose red is the row, green the column."""
    rows, columns = np.mgrid[:height, :width]
    folder.mkdir()
    Image.fromarray(np.stack([rows, columns, np.full_like(rows, 255)], axis=2).astype(np.uint8)).save(folder / "ramp.png")
    return folder


@pytest.mark.parametrize(
    ("arguments", "corner", "opposite"),
    [
        ({"resize": "stretch"}, (1.5, 2.5), (78.5, 117.5)),  # 80 x 120 to 20 x 20: every 4th row, every 6th column
        ({"resize": "crop"}, (1.5, 21.5), (78.5, 98.5)),  # 80 x 80 of the middle
        ({"resize": "crop", "resize_to": 40}, (20.5, 40.5), (59.5, 79.5)),  # half the size, then 20 x 20 of the middle
        ({"resize": "pad"}, (2.5, 2.5), None),  # 13 x 20, then padding below
    ],
)
def test_ways_to_get_to_the_size(arguments: dict[str, Any], corner: tuple[float, float], opposite: Any, tmp_path: Path) -> None:
    dataset = ImageFolder(str(ramp(tmp_path / "images", 80, 120)), size=[20, 20], pad_value=7, **arguments)
    (array,) = dataset[0].inputs.values()
    assert array.shape == (1, 3, 20, 20)
    # Interpolation mixes a few pixels, which the borders pull inwards.
    np.testing.assert_allclose(array[0, :2, 0, 0], corner, atol=1.5)
    if opposite is not None:
        np.testing.assert_allclose(array[0, :2, -1, -1], opposite, atol=1.5)
    else:
        assert (array[0, 2, :13] == 255).all()
        assert (array[0, :, 13:] == 7).all()


def test_what_is_wrong_with_folders(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="image folder nowhere does not exist"):
        ImageFolder("nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"image folder .*empty has no images \(\.bmp, .*\.webp\)"):
        ImageFolder(str(tmp_path / "empty"))
    (folder / "dog" / "a.PNG").rename(folder / "a.png")
    with pytest.raises(UserError, match="has images both directly in it and in subfolders: label all or none"):
        ImageFolder(str(folder))


@pytest.mark.parametrize("damage", [b"", b"no image", None])
def test_an_unreadable_image_is_named(folder: Path, damage: bytes | None) -> None:
    path = folder / "cat" / "z.png"
    path.write_bytes(path.read_bytes()[:200] if damage is None else damage)
    with pytest.raises(UserError, match=r"cannot read image .*z\.png: ") as error:
        ImageFolder(str(folder))[0]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resize": "zoom"}, "resize is 'zoom', but must be one of stretch, crop, pad"),
        ({"color": "rgb"}, "color is 'rgb', but must be one of RGB, BGR, GRAY"),
        ({"layout": "CHW"}, "layout is 'CHW', but must be one of NCHW, NHWC"),
        ({"interpolation": "box"}, "interpolation is 'box'"),
        ({"size": [224]}, r"size is \[224\], but must be \[height, width\]"),
        ({"mean": [1, 2]}, "mean must be one number or 3, not 2"),
        ({"color": "GRAY", "std": [1, 2, 3]}, "std must be one number or 1, not 3"),
        ({"resize_to": 256}, "resize_to needs size"),
        ({"size": [20, 20], "resize_to": 256}, "resize_to 256 is for resize: crop"),
        ({"size": [20, 20], "resize": "crop", "resize_to": 10}, r"not smaller than size \[20, 20\]"),
    ],
)
def test_wrong_arguments(folder: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ImageFolder(str(folder), **arguments)


# ------------------------------------------------------------------------------------------------ samples of a model

ONE = [ModelInput("x", ("input:0", "x"), (1, -1, 2), np.dtype(np.float32))]
TWO = model_inputs(models.two_inputs())
GOOD = {"image": np.zeros((1, 2, 3)), "tokens": np.zeros((1, 4), np.int32)}


def test_inputs_of_a_model() -> None:
    assert [
        ModelInput("image", ("image",), (1, 2, 3), np.dtype(np.float32)),
        ModelInput("tokens", ("tokens",), (1, -1), np.dtype(np.int64)),
    ] == TWO
    assert [ModelInput.from_json(entry.to_json()) for entry in TWO] == TWO


ARRAY = np.arange(6.0).reshape(1, 3, 2)


@pytest.mark.parametrize("item", [ARRAY, {"x": ARRAY}, {"input:0": ARRAY}, Sample({"": ARRAY}), (ARRAY, None), ARRAY.tolist()])
def test_forms_of_an_item(item: Any) -> None:
    sample = checked(item, ONE, "sample 0")
    assert list(sample.inputs) == ["x"]
    assert sample.inputs["x"].dtype == np.float32
    assert sample.inputs["x"].flags.c_contiguous
    np.testing.assert_array_equal(sample.inputs["x"], ARRAY)
    assert sample.target is None
    assert sample.label == "sample 0"


def test_targets_are_kept() -> None:
    assert checked((ARRAY, 7), ONE, "").target == 7
    assert checked(Sample({"x": ARRAY}, "text"), ONE, "").target == "text"


def test_inputs_are_put_into_the_models_order() -> None:
    sample = checked(dict(reversed(GOOD.items())), TWO, "")
    assert list(sample.inputs) == ["image", "tokens"]
    assert [array.dtype.name for array in sample.inputs.values()] == ["float32", "int64"]


def test_a_scalar_input_stays_a_scalar() -> None:
    assert checked(np.float64(3), [ModelInput("x", ("x",), (), np.dtype(np.float32))], "").inputs["x"].shape == ()


NAN = ARRAY.copy()
NAN[0, 1, 1] = np.nan


@pytest.mark.parametrize(
    ("item", "inputs", "message"),
    [
        (NAN, ONE, r"sample 5: input x has the value nan at \[0, 1, 1\]"),
        (np.where(np.isnan(NAN), -np.inf, NAN), ONE, r"sample 5: input x has the value -inf at \[0, 1, 1\]"),
        (np.zeros((3, 2)), ONE, r"sample 5: input x has shape \[3, 2\], but the model expects \[1, \?, 2\]"),
        (np.zeros((1, 3, 3)), ONE, r"sample 5: input x has shape \[1, 3, 3\], but the model expects \[1, \?, 2\]"),
        (np.zeros((2, 3, 2)), ONE, r"sample 5: input x has shape \[2, 3, 2\]"),
        ({"image": ARRAY}, ONE, r"sample 5 has an input 'image', but the model's inputs are: x"),
        ({"x": ARRAY, "input:0": ARRAY}, ONE, r"sample 5 has no array \(or two\) for input x"),
        ({}, ONE, r"sample 5 has no array \(or two\) for input x"),
        (ARRAY, TWO, r"sample 5 is a single array, but the model has 2 inputs: image, tokens"),
        ({"image": GOOD["image"]}, TWO, r"sample 5 has no array \(or two\) for input tokens"),
        (GOOD | {"extra": ARRAY}, TWO, r"sample 5 has an input 'extra', but the model's inputs are: image, tokens"),
        (GOOD | {"tokens": np.full((1, 2), 0.5)}, TWO, r"sample 5: input tokens is of type float64 with values that int64 cannot hold"),
        (np.full((1, 3, 2), 1e300), ONE, r"sample 5: input x is of type float64 with values that float32 cannot hold"),
        (np.full((1, 3, 2), "a"), ONE, r"sample 5: input x is of type <U1, not numbers"),
        (np.full((1, 3, 2), None), ONE, r"sample 5: input x is of type object, not numbers"),
        ((ARRAY, 1, 2), ONE, r"sample 5 is a tuple of 3, but must be \(inputs, target\)"),
    ],
)
def test_what_is_wrong_with_a_sample(item: Any, inputs: list[ModelInput], message: str) -> None:
    with pytest.raises(UserError, match=message):
        checked(item, inputs, "sample 5")


def test_integers_that_do_not_fit() -> None:
    small = [ModelInput("x", ("x",), (1,), np.dtype(np.uint8))]
    assert checked(np.array([255.0]), small, "").inputs["x"] == 255
    for value in (256, -1):
        with pytest.raises(UserError, match="cannot hold"):
            checked(np.array([value]), small, "")


def test_types_that_numpy_does_not_have() -> None:
    import openvino as ov
    from openvino import opset13 as operations

    x = operations.parameter([1], ov.Type.bf16, name="x")
    with pytest.raises(UserError, match="the model's input x is of type bf16; known are f16, f32"):
        model_inputs(ov.Model([operations.relu(x)], [x]))


# ------------------------------------------------------------------------------------------------ chosen samples


class Counted:
    """Ten samples that know how often they were read."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        return np.full((1, 1, 2), index), index

    def label(self, index: int) -> str:
        return f"file {index}"


def test_samples_in_the_chosen_order_read_when_asked_for() -> None:
    dataset = Counted()
    samples = Samples(dataset, ONE, [7, 2, 5], "calibration")
    assert len(samples) == 3
    assert dataset.read == []
    assert [sample.target for sample in samples] == [7, 2, 5]
    assert dataset.read == [7, 2, 5]
    assert samples[1].label == "calibration sample 2 (file 2)"
    assert [sample.target for sample in samples[:2]] == [7, 2]
    assert samples[-1].target == 5
    assert samples[:2].name == "calibration"


def test_all_samples_by_default() -> None:
    data: Dataset = [ARRAY, ARRAY]
    assert len(list(Samples(data, ONE))) == 2
    assert Samples(data, ONE)[1].label == "data sample 1"


def test_errors_name_the_sample() -> None:
    with pytest.raises(UserError, match=r"validation sample 1: input x has the value nan"):
        list(Samples([ARRAY, NAN], ONE, name="validation"))


def test_a_sample_that_has_changed_is_noticed() -> None:
    dataset = Counted()
    expected = [identity(sample) for sample in Samples(dataset, ONE)]
    assert len(list(Samples(dataset, ONE, expected=expected))) == 10
    assert len(list(Samples(dataset, ONE, expected=expected)[3:5])) == 2
    changed = [*expected[:4], Identity(expected[4].inputs, "other"), *expected[5:]]
    with pytest.raises(UserError, match=r"sample 4 \(file 4\) has changed since the stage `prepare`"):
        list(Samples(dataset, ONE, expected=changed))


# ------------------------------------------------------------------------------------------------ identity


def test_identity_tells_contents_apart() -> None:
    zeros, ones = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
    inputs: list[dict[str, np.ndarray]] = [
        {"x": zeros},
        {"x": ones},
        {"y": zeros},
        {"x": zeros.astype(np.float64)},
        {"x": zeros.reshape(2, 1)},
        {"x": zeros, "y": zeros},
    ]
    targets: list[Any] = [0, "0", 0.0, [0], [0, 0], "", {"a": 0}, {"b": 0}, np.zeros(1), np.int64(0), ["a", "b"], ["ab", ""], False]
    assert len({identity(Sample(given)).inputs for given in inputs}) == len(inputs)
    assert len({identity(Sample({}, target)).target for target in targets}) == len(targets)
    assert identity(Sample({"x": zeros})).target is None


def test_identity_is_of_contents_only() -> None:
    one = {"x": np.arange(6).reshape(2, 3), "y": np.ones(1)}
    other = {"y": np.ones(1), "x": np.arange(6).reshape(3, 2).T.reshape(2, 3) * 0 + np.asfortranarray(np.arange(6).reshape(2, 3))}
    assert identity(Sample(one, {"a": 1, "b": 2}, "one")) == identity(Sample(other, {"b": 2, "a": 1}, "other"))


@pytest.mark.parametrize("target", [object(), np.array([{}], dtype=object), [object()]])
def test_targets_without_identity(target: Any) -> None:
    with pytest.raises(UserError, match=r"sample 3: the target is (of type object|an array of Python objects)"):
        identity(Sample({}, target, "sample 3"))
