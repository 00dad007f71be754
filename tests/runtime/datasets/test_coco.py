"""Images with boxes: which files are meant, which way round, and where the boxes are in the model's input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages.common.errors import UserError
from stages.runtime.datasets import CocoImages
from tests.runtime.datasets.test_images import turned

BOX = [2, 1, 3, 2]  # left, top, width, height


class Folder:
    """A folder of images and their annotations, written as they are added."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.entries: list[dict[str, Any]] = []
        self.objects: list[dict[str, Any]] = []
        self.categories = [90, 3, 17]

    def image(self, name: str, size: tuple[int, int] = (12, 8), **listed: Any) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(path)
        self.listed(name, **({"width": size[0], "height": size[1]} | listed))
        return path

    def listed(self, name: str, category: int = 17, **entry: Any) -> None:
        self.entries.append({"id": len(self.entries) + 5, "file_name": name, **entry})
        self.objects.append({"image_id": self.entries[-1]["id"], "category_id": category, "bbox": BOX})

    def read(self, **arguments: Any) -> CocoImages:
        annotations = self.root.parent / "instances.json"
        content = {"images": self.entries, "annotations": self.objects, "categories": [{"id": entry} for entry in self.categories]}
        annotations.write_text(json.dumps(content))
        return CocoImages(str(self.root), str(annotations), **arguments)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "images")


def test_images_in_folders_within_folders(folder: Folder) -> None:
    folder.image("cam0/day1/001.png")
    folder.image("cam1/001.png")
    folder.image("001.png")
    dataset = folder.read()
    names = ["001.png", "cam0/day1/001.png", "cam1/001.png"]
    assert [dataset.label(index) for index in range(3)] == [str(folder.root / name) for name in names]
    assert dataset[1].inputs[""].shape == (1, 3, 8, 12)
    assert dataset.notes() == []


def test_names_with_backslashes(folder: Folder) -> None:
    folder.image("cam0/001.png")
    folder.entries[0]["file_name"] = "cam0\\001.png"
    assert folder.read().label(0) == str(folder.root / "cam0/001.png")


def test_images_that_are_not_listed_are_left_out_and_said(folder: Folder) -> None:
    """Wherever they lie: beside the others, or in a folder that looks like a class."""
    folder.image("1.png")
    for name in ("2.png", "3.jpg", "unused/4.png"):
        folder.image(name)
        folder.entries.pop()
    (folder.root / "._1.png").write_bytes(b"\0")
    dataset = folder.read()
    assert len(dataset) == 1
    why = f"left out, as {folder.root.parent / 'instances.json'} does not list them"
    assert dataset.notes() == [f"{why}: 2 .png, e.g. {folder.root / '2.png'}", f"{why}: 1 .jpg, e.g. {folder.root / '3.jpg'}"]


def test_listed_images_that_do_not_exist(folder: Folder) -> None:
    folder.image("1.png")
    folder.listed("images/2.png")
    folder.listed("images/3.png")
    with pytest.raises(UserError, match=r"instances\.json lists 3 images, of which 2 do not exist, e\.g\. .*images/images/2\.png$"):
        folder.read()


@pytest.mark.parametrize(
    ("arguments", "box"),
    [
        ({}, [2, 1, 5, 3]),
        ({"size": [16, 12]}, [2, 2, 5, 6]),  # stretched: 12 x 8 to 12 x 16
        ({"size": [16, 36], "resize": "pad"}, [4, 2, 10, 6]),  # twice the size, then padding at the right
    ],
)
def test_boxes_in_pixels_of_the_input(folder: Folder, arguments: dict[str, Any], box: list[float]) -> None:
    folder.image("1.png")
    sample = folder.read(**arguments)[0]
    np.testing.assert_allclose(sample.target["boxes"], [box])
    assert sample.target["crowd"].tolist() == [False]


@pytest.mark.parametrize(("numbers", "expected"), [("order", [1, 2, 0]), ("id", [17, 90, 3])])
def test_numbers_of_classes(folder: Folder, numbers: Any, expected: list[int]) -> None:
    for name, category in (("1.png", 17), ("2.png", 90), ("3.png", 3)):
        folder.image(name, category=category)
    dataset = folder.read(class_numbers=numbers)
    assert [dataset[index].target["classes"].tolist() for index in range(3)] == [[number] for number in expected]


@pytest.mark.parametrize(("listed", "upright"), [((12, 8), True), ((8, 12), False), (None, True)])
@pytest.mark.parametrize("orientation", [6, 8])
def test_an_image_is_turned_to_the_size_that_is_listed(
    folder: Folder, listed: tuple[int, int] | None, upright: bool, orientation: int
) -> None:
    """An image of 12 x 8 whose file holds 8 x 12 pixels and an orientation; the bright corner is where the box is."""
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels[1:3, 2:5] = 255
    folder.root.mkdir()
    file = turned(folder.root / "photo.png", pixels, orientation)
    folder.listed("photo.png", **({"width": listed[0], "height": listed[1]} if listed else {}))
    sample = folder.read(size=[16, 24])[0]
    if upright:
        np.testing.assert_allclose(sample.target["boxes"], [[4, 2, 10, 6]])
        assert sample.inputs[""][0, 0, 3:5, 5:9].min() == 255
    else:
        np.testing.assert_allclose(sample.target["boxes"], [[6, 16 / 12, 15, 4]])
        as_stored = Image.fromarray(np.asarray(Image.open(file))).resize((24, 16), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(sample.inputs[""][0, 0], np.asarray(as_stored)[:, :, 0])


def test_an_image_of_another_size_than_listed(folder: Folder) -> None:
    folder.image("1.png", (12, 8), width=24, height=16)
    with pytest.raises(UserError, match=r"image .*1\.png has 12 x 8 pixels, but is annotated as 24 x 16$"):
        folder.read()[0]


def test_stored_pixels_on_request(folder: Folder) -> None:
    folder.root.mkdir()
    turned(folder.root / "photo.png", np.arange(16, dtype=np.uint8).reshape(4, 4), 3)
    folder.listed("photo.png", width=4, height=4)
    upright, stored = folder.read()[0].inputs[""][0, 0], folder.read(exif_orientation=False)[0].inputs[""][0, 0]
    np.testing.assert_array_equal(upright, np.arange(16).reshape(4, 4))
    np.testing.assert_array_equal(stored, upright[::-1, ::-1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resize": "crop"}, "CocoImages: resize is 'crop', but must be one of stretch, pad"),
        ({"class_numbers": "ids"}, "class_numbers is 'ids', but must be one of order, id"),
        ({"size": [4]}, r"CocoImages: size is \[4\]"),
    ],
)
def test_wrong_arguments(folder: Folder, arguments: dict[str, Any], message: str) -> None:
    folder.image("1.png")
    with pytest.raises(UserError, match=message):
        folder.read(**arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is no JSON"), ("[]", "it has no sections"), ("{}", "KeyError 'categories'"), ('{"categories": [{}]}', "KeyError 'id'")],
)
def test_what_is_no_annotation_file(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=message):
        CocoImages(str(tmp_path), str(tmp_path / "a.json"))
    with pytest.raises(UserError, match=r"annotation file .*b\.json does not exist"):
        CocoImages(str(tmp_path), str(tmp_path / "b.json"))
