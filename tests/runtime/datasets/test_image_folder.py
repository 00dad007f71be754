"""Images in a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages.common.errors import UserError
from stages.runtime.datasets import ImageFolder
from stages.runtime.datasets.images import Color, Layout


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
def test_pixels_are_scaled_per_channel(folder: Path, layout: Layout, color: Color) -> None:
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
    with pytest.raises(UserError, match=r"image folder .*empty has no images \(\.avif, .*\.webp\)"):
        ImageFolder(str(tmp_path / "empty"))
    (folder / "dog" / "a.PNG").rename(folder / "a.png")
    with pytest.raises(UserError, match="has images both directly in it and in subfolders: label all or none"):
        ImageFolder(str(folder))


def image(path: Path, value: int = 0) -> Path:
    """A small image of one grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (value,) * 3).save(path, format="PNG")
    return path


def labels(dataset: ImageFolder, root: Path) -> dict[str, int | None]:
    return {str(file.relative_to(root)): target for file, target in dataset.images}


def test_images_in_subfolders_of_a_class_are_of_that_class(tmp_path: Path) -> None:
    for name in ("cat/day2/1.png", "cat/0.png", "dog/day1/a/b/1.png", "dog/day1/2.jfif"):
        image(tmp_path / name)
    expected = {"cat/0.png": 0, "cat/day2/1.png": 0, "dog/day1/2.jfif": 1, "dog/day1/a/b/1.png": 1}
    assert labels(ImageFolder(str(tmp_path)), tmp_path) == expected


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    image(tmp_path / "elsewhere/1.png")
    image(tmp_path / "images/cat/2.png")
    (tmp_path / "images/dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images/cat/more").symlink_to(tmp_path / "images/cat")
    assert labels(ImageFolder(str(tmp_path / "images")), tmp_path / "images") == {"cat/2.png": 0, "dog/1.png": 1}


@pytest.mark.parametrize("junk", ["__MACOSX", "@eaDir", ".ipynb_checkpoints", "$RECYCLE.BIN"])
def test_folders_of_systems_and_tools_are_no_classes(tmp_path: Path, junk: str) -> None:
    for name in ("bee/1.png", "cat/1.png", f"{junk}/1.png", f"bee/{junk}/2.png"):
        image(tmp_path / name)
    (tmp_path / junk / "cat").mkdir()
    dataset = ImageFolder(str(tmp_path))
    assert labels(dataset, tmp_path) == {"bee/1.png": 0, "cat/1.png": 1}
    assert dataset.notes() == []


def test_resource_forks_and_hidden_files_are_no_images(tmp_path: Path) -> None:
    """What a zip file made on a Mac leaves behind."""
    image(tmp_path / "cat/x.jpg")
    (tmp_path / "cat/._x.jpg").write_bytes(b"\0\5\x16\7")
    (tmp_path / "cat/.DS_Store").write_bytes(b"\0")
    (tmp_path / "._cat").write_bytes(b"\0\5\x16\7")
    (tmp_path / "._y.jpg").write_bytes(b"\0\5\x16\7")
    assert labels(ImageFolder(str(tmp_path)), tmp_path) == {"cat/x.jpg": 0}


def test_an_empty_folder_may_be_a_class_or_not(tmp_path: Path) -> None:
    """Whether it counts decides about the numbers of the others, so it must be said."""
    for name in ("bee/1.png", "dog/1.png"):
        image(tmp_path / name)
    (tmp_path / "cat").mkdir()
    with pytest.raises(UserError, match=r"no images in its subfolder cat: remove it, or list all .*, classes: \[bee, cat, dog\]$"):
        ImageFolder(str(tmp_path))
    assert labels(ImageFolder(str(tmp_path), classes=["bee", "cat", "dog"]), tmp_path) == {"bee/1.png": 0, "dog/1.png": 2}
    assert labels(ImageFolder(str(tmp_path), classes=["dog", "bee"]), tmp_path) == {"dog/1.png": 0, "bee/1.png": 1}


def test_classes_in_the_order_that_is_given(tmp_path: Path) -> None:
    for name in ("2/1.png", "10/1.png", "1/1.png"):
        image(tmp_path / name)
    sorted_as_text = ImageFolder(str(tmp_path))
    assert labels(sorted_as_text, tmp_path) == {"1/1.png": 0, "10/1.png": 1, "2/1.png": 2}
    (note,) = sorted_as_text.notes()
    assert "sorted as text, 10 before 2" in note
    by_number = ImageFolder(str(tmp_path), classes=[1, 2, 10])  # type: ignore[list-item] # as YAML reads them
    assert labels(by_number, tmp_path) == {"1/1.png": 0, "2/1.png": 1, "10/1.png": 2}
    with pytest.raises(UserError, match=r"has a subfolder 10, which is not among classes: 1, 2"):
        ImageFolder(str(tmp_path), classes=["1", "2"])
    with pytest.raises(UserError, match="classes names 2 twice"):
        ImageFolder(str(tmp_path), classes=["1", "2", "2", "10"])


def test_parts_of_a_data_set_are_no_classes(tmp_path: Path) -> None:
    for name in ("train/cat/1.png", "val/cat/1.png"):
        image(tmp_path / name)
    with pytest.raises(UserError, match="are train, val, which are no classes: give one of them as path"):
        ImageFolder(str(tmp_path))


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    image(tmp_path / "cat/1.png")
    for name in ("cat/2.heic", "cat/3.heic", "cat/labels.txt", "readme.md"):
        (tmp_path / name).write_bytes(b"")
    assert ImageFolder(str(tmp_path)).notes() == [f"left out, as no image by `extensions`: 2 .heic, e.g. {tmp_path / 'cat/2.heic'}"]


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
