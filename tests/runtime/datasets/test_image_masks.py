"""Images with masks: which belong together, which class a value is, and that masks go where the images go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages.common.errors import UserError
from stages.runtime.datasets import ImageMasks
from tests.runtime.datasets.test_images import turned


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path)
    return path


def pair(root: Path, mask: np.ndarray, image: str = "images/1.png", name: str = "masks/1.png") -> None:
    """An image of the mask's size, and the mask."""
    save(root / image, np.zeros((*mask.shape[:2], 3), np.uint8))
    save(root / name, mask)


def opened(root: Path, **arguments: Any) -> ImageMasks:
    return ImageMasks(str(root / "images"), str(root / "masks"), **arguments)


MASK = np.array([[0, 1, 2], [2, 1, 1]], dtype=np.uint8)


# ------------------------------------------------------------------------------------------------ which belong together


def test_masks_are_found_by_name(tmp_path: Path) -> None:
    for index, (image, mask) in enumerate((("b.jpg", "b.png"), ("a/1.png", "a/1.tif"), ("a/b/1.PNG", "a/b/1.png"))):
        pair(tmp_path, MASK + np.uint8(index), f"images/{image}", f"masks/{mask}")
    (tmp_path / "images/._b.jpg").write_bytes(b"\0")
    (tmp_path / "masks/.DS_Store").write_bytes(b"\0")
    dataset = opened(tmp_path)
    assert [dataset.label(index) for index in range(len(dataset))] == [
        str(tmp_path / "images" / name) for name in ("a/1.png", "a/b/1.PNG", "b.jpg")
    ]
    for index, more in ((0, 1), (1, 2), (2, 0)):
        np.testing.assert_array_equal(dataset[index].target, MASK + more)
    assert dataset[0].inputs[""].shape == (1, 3, 2, 3)
    assert dataset.notes() == []


@pytest.mark.parametrize(
    ("image", "mask", "arguments"),
    [
        ("images/x_leftImg8bit.png", "masks/x_gtFine_labelIds.png", {"image_ending": "_leftImg8bit", "mask_ending": "_gtFine_labelIds"}),
        ("images/x.jpg", "masks/x_mask.png", {"mask_ending": "_mask"}),
        ("images/x_img.jpg", "masks/x.png", {"image_ending": "_img"}),
    ],
)
def test_names_with_endings(tmp_path: Path, image: str, mask: str, arguments: dict[str, Any]) -> None:
    pair(tmp_path, MASK, image, mask)
    save(tmp_path / "masks/x_gtFine_color.png", MASK)
    np.testing.assert_array_equal(opened(tmp_path, **arguments)[0].target, MASK)


@pytest.mark.parametrize(
    ("image", "mask", "arguments"),
    [
        ("1.jpg", "1_mask.png", {"mask_ending": "_mask"}),
        ("1_image.jpg", "1.png", {"image_ending": "_image"}),
        ("1_sat.jpg", "1_mask.png", {"image_ending": "_sat", "mask_ending": "_mask"}),
    ],
)
def test_one_folder_for_both(tmp_path: Path, image: str, mask: str, arguments: dict[str, Any]) -> None:
    pair(tmp_path, MASK, image, mask)
    dataset = ImageMasks(str(tmp_path), str(tmp_path), **arguments)
    assert len(dataset) == 1
    np.testing.assert_array_equal(dataset[0].target, MASK)
    assert dataset.notes() == []


def test_masks_in_a_folder_within_that_of_the_images(tmp_path: Path) -> None:
    pair(tmp_path, MASK, "1.png", "masks/1.png")
    dataset = ImageMasks(str(tmp_path), str(tmp_path / "masks"))
    assert [dataset.label(index) for index in range(len(dataset))] == [str(tmp_path / "1.png")]


def test_an_image_without_a_mask(tmp_path: Path) -> None:
    pair(tmp_path, MASK)
    save(tmp_path / "images/2.png", MASK)
    save(tmp_path / "images/3.png", MASK)
    with pytest.raises(
        UserError, match=r"^2 of the 3 images in .*images have no mask in .*masks, e\.g\. .*images/2\.png, whose mask is 2\.png:"
    ):
        opened(tmp_path)


def test_two_masks_of_one_image(tmp_path: Path) -> None:
    pair(tmp_path, MASK)
    save(tmp_path / "masks/1.bmp", MASK)
    with pytest.raises(UserError, match=r"1\.bmp and .*1\.png have the same name but for the kind of image"):
        opened(tmp_path)


def test_what_is_not_used_is_said(tmp_path: Path) -> None:
    pair(tmp_path, MASK, "images/1_a.png", "masks/1_m.png")
    save(tmp_path / "images/2_b.png", MASK)
    save(tmp_path / "masks/3_m.png", MASK)
    assert opened(tmp_path, image_ending="_a", mask_ending="_m").notes() == [
        f"left out, as image_ending is of others: 1 .png, e.g. {tmp_path / 'images/2_b.png'}",
        f"left out, as masks of no image: 1 .png, e.g. {tmp_path / 'masks/3_m.png'}",
    ]


# ------------------------------------------------------------------------------------------------ which class a value is


def classes_of(tmp_path: Path, mask: np.ndarray, mode: str | None = None, **arguments: Any) -> np.ndarray:
    save(tmp_path / "images/1.png", np.zeros((*mask.shape[:2], 3), np.uint8))
    save(tmp_path / ("masks/1.tif" if mask.dtype == np.float32 else "masks/1.png"), mask, mode)
    return np.asarray(opened(tmp_path, **arguments)[0].target)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_values_are_class_numbers(tmp_path: Path, kind: type) -> None:
    mask = MASK.astype(kind) + kind(300 if kind is np.uint16 else 0)
    classes = classes_of(tmp_path, mask)
    np.testing.assert_array_equal(classes, mask)
    assert classes.dtype == np.int32


def test_the_numbers_of_a_palette(tmp_path: Path) -> None:
    """As PASCAL VOC's masks are: the colour is for the eye."""
    image = Image.frombytes("P", (3, 2), MASK.tobytes())
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    save(tmp_path / "images/1.png", np.zeros((2, 3, 3), np.uint8))
    (tmp_path / "masks").mkdir()
    image.save(tmp_path / "masks/1.png")
    np.testing.assert_array_equal(opened(tmp_path)[0].target, MASK)
    by_color = opened(tmp_path, values=[[0, 128, 0], [0, 0, 0], [128, 0, 0]])
    np.testing.assert_array_equal(by_color[0].target, np.array([1, 2, 0])[MASK])


@pytest.mark.parametrize("mode", [None, "1", "RGB", "RGBA", "LA"])
def test_black_and_white(tmp_path: Path, mode: str | None) -> None:
    white = np.array([[0, 255, 255], [255, 0, 0]], dtype=np.uint8)
    if mode == "1":
        np.testing.assert_array_equal(classes_of(tmp_path, white, mode), white > 0)
    else:
        np.testing.assert_array_equal(classes_of(tmp_path, white, mode, values=[0, 255]), white > 0)


def test_colours(tmp_path: Path) -> None:
    colors = np.array([[0, 0, 0], [128, 64, 128], [0, 0, 142], [255, 255, 255]], dtype=np.uint8)
    mask = colors[[[0, 1, 2], [3, 2, 1]]]
    values = colors[[2, 0, 1]].tolist()
    np.testing.assert_array_equal(classes_of(tmp_path, mask, values=values, other_label=255), [[1, 2, 0], [255, 0, 2]])
    with pytest.raises(
        UserError, match=r"mask .*1\.png has the value \[255, 255, 255\], which values does not list: list it, or give other_label"
    ):
        classes_of(tmp_path, mask, values=values)
    with pytest.raises(UserError, match=r"mask .*1\.png has colours: give the colour of each class as values"):
        classes_of(tmp_path, mask)


def test_values_in_any_order_and_others(tmp_path: Path) -> None:
    mask = np.array([[7, 26, 33], [0, 33, 255]], dtype=np.uint8)
    np.testing.assert_array_equal(classes_of(tmp_path, mask, values=[33, 7, 26], other_label=9), [[1, 2, 0], [9, 0, 9]])
    with pytest.raises(UserError, match=r"mask .*1\.png has the value 0, which values does not list"):
        classes_of(tmp_path, mask, values=[33, 7, 26])


def test_values_that_are_no_numbers_of_classes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mask .*1\.tif has values that are no whole numbers, e\.g\. 0\.5"):
        classes_of(tmp_path, np.array([[0.0, 0.5]], dtype=np.float32))


# ------------------------------------------------------------------------------------------------ where masks go


WIDE = (np.arange(12) // 3)[None].repeat(6, axis=0).astype(np.uint8)  # 6 x 12, four stripes of three


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, WIDE),
        ({"size": [3, 4]}, [[0, 1, 2, 3]] * 3),
        ({"size": [6, 6], "resize": "crop"}, WIDE[:, 3:9]),
        ({"size": [2, 2], "resize": "crop", "resize_to": 4}, [[1, 2]] * 2),
        ({"size": [8, 12], "resize": "pad", "pad_label": 9}, [*WIDE.tolist(), *([[9] * 12] * 2)]),
        ({"size": [4, 4], "resize": "pad"}, [[0, 1, 2, 3]] * 2 + [[255] * 4] * 2),
        ({"size": [6, 12], "mask_size": [2, 4]}, [[0, 1, 2, 3]] * 2),
        ({"size": [6, 6], "resize": "crop", "mask_size": [1, 2]}, [[1, 2]]),
    ],
)
def test_masks_go_where_images_go(tmp_path: Path, arguments: dict[str, Any], expected: Any) -> None:
    save(tmp_path / "images/1.png", np.repeat(WIDE[..., None], 3, axis=2))
    save(tmp_path / "masks/1.png", WIDE)
    sample = opened(tmp_path, interpolation="nearest", pad_value=arguments.get("pad_label", 255), **arguments)[0]
    np.testing.assert_array_equal(sample.target, expected)
    if "mask_size" not in arguments:
        np.testing.assert_array_equal(sample.inputs[""][0, 1], expected)


def test_images_are_padded_with_black_unless_another_value_is_given(tmp_path: Path) -> None:
    save(tmp_path / "images/1.png", np.full((4, 4, 3), 200, np.uint8))
    save(tmp_path / "masks/1.png", np.ones((4, 4), np.uint8))
    image = opened(tmp_path, size=[4, 6], resize="pad")[0].inputs[""][0]
    np.testing.assert_array_equal(image, np.repeat([[[200.0] * 4 + [0.0] * 2]], 3, axis=0).repeat(4, axis=1))


def test_classes_are_never_mixed(tmp_path: Path) -> None:
    """However images are interpolated: between 0 and 2 there is no 1."""
    mask = 2 * np.random.default_rng(0).integers(0, 2, (31, 47), dtype=np.uint8)
    pair(tmp_path, mask)
    assert set(np.unique(opened(tmp_path, size=[20, 20], interpolation="bicubic")[0].target)) == {0, 2}


def test_an_image_is_turned_to_the_size_of_its_mask(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    upright = np.arange(24, dtype=np.uint8).reshape(4, 6)
    stored = turned(tmp_path / "images/1.png", upright, 6)
    save(tmp_path / "masks/1.png", upright)
    np.testing.assert_array_equal(opened(tmp_path, color="GRAY")[0].inputs[""][0, 0], upright)
    as_stored = np.asarray(Image.open(stored))
    save(tmp_path / "masks/1.png", as_stored)
    np.testing.assert_array_equal(opened(tmp_path, color="GRAY")[0].inputs[""][0, 0], as_stored)
    save(tmp_path / "masks/1.png", np.zeros((8, 12), np.uint8))
    with pytest.raises(UserError, match=r"image .*1\.png has 6 x 4 pixels, but is annotated as 12 x 8$"):
        opened(tmp_path)[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": []}, r"values is \[\], but must be a number or a colour \[red, green, blue\] for each class"),
        ({"values": [0, [1, 2, 3]]}, "must be a number or a colour"),
        ({"values": [[1, 2]]}, "must be a number or a colour"),
        ({"values": [1, 1]}, r"values is \[1, 1\], but must have a value of its own for each class"),
        ({"other_label": 255}, "other_label is 255, but there are no others without values"),
        ({"mask_size": [3]}, r"mask_size is \[3\], but must be \[height, width\]"),
        ({"resize": "zoom"}, "ImageMasks: resize is 'zoom'"),
        ({"image_ending": "_x"}, "has no images with names that end with '_x'"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    pair(tmp_path, MASK)
    with pytest.raises(UserError, match=message):
        opened(tmp_path, **arguments)


def test_folders_that_do_not_exist(tmp_path: Path) -> None:
    for images, masks in (("nowhere", "."), (".", "nowhere")):
        with pytest.raises(UserError, match="image folder nowhere does not exist"):
            ImageMasks(images, masks)
