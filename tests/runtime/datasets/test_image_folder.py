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
