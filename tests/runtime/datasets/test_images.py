"""Pixels of image files: upright, in 0 to 255 whatever they are stored as, and where they come to lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from stages.common.errors import UserError
from stages.runtime.datasets import ImageFolder
from stages.runtime.datasets.images import read_image

# The EXIF orientation of an image whose stored rows and columns are made of the upright one by this.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, 3),
}


def turned(path: Path, upright: np.ndarray, orientation: int) -> Path:
    """Save an image as a camera that was held so would."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(np.ascontiguousarray(STORED[orientation](upright))).save(path, exif=exif)
    return path


def only(folder: Path, **arguments: Any) -> np.ndarray:
    """The only image of a folder, [C, H, W]."""
    dataset = ImageFolder(str(folder), **arguments)
    assert len(dataset) == 1
    return dataset[0].inputs[""][0]


@pytest.mark.parametrize("orientation", STORED)
def test_images_are_upright(tmp_path: Path, orientation: int) -> None:
    upright = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    turned(tmp_path / "photo.png", upright, orientation)
    np.testing.assert_array_equal(only(tmp_path), upright.transpose(2, 0, 1))
    np.testing.assert_array_equal(only(tmp_path, exif_orientation=False), STORED[orientation](upright).transpose(2, 0, 1))


def test_jpeg_with_an_orientation(tmp_path: Path) -> None:
    """Left half dark, right half bright, stored lying on its side."""
    upright = np.repeat(np.where(np.arange(32) < 16, 20, 220).astype(np.uint8)[None], 16, axis=0)
    turned(tmp_path / "photo.jpg", upright, 6)
    array = only(tmp_path, size=[16, 32], color="GRAY")
    assert np.abs(array[0] - upright).max() < 10


def test_damaged_exif_is_no_reason_to_stop(tmp_path: Path) -> None:
    Image.new("RGB", (4, 3), (7, 7, 7)).save(tmp_path / "a.png", exif=b"Exif\0\0no TIFF at all")
    assert (only(tmp_path) == 7).all()


def test_sixteen_bits_become_0_to_255(tmp_path: Path) -> None:
    values = np.array([[0, 257, 4096], [32768, 65534, 65535]], dtype=np.uint16)
    for index, name in enumerate(("gray.png", "gray.tif", "big_endian.tif", "gray.pgm")):
        folder = tmp_path / str(index)
        folder.mkdir()
        if name == "gray.pgm":
            (folder / name).write_bytes(b"P5 3 2 65535\n" + values.astype(">u2").tobytes())
        elif name == "big_endian.tif":
            Image.frombytes("I;16B", (3, 2), values.astype(">u2").tobytes()).save(folder / name)
        else:
            Image.fromarray(values).save(folder / name)
        for color, channels in (("GRAY", 1), ("RGB", 3), ("BGR", 3)):
            array = only(folder, color=color)
            assert array.shape == (channels, 2, 3)
            np.testing.assert_allclose(array, np.broadcast_to(values / 257, array.shape), rtol=1e-6, err_msg=f"{name} {color}")


def test_sixteen_bits_are_turned_and_scaled_like_others(tmp_path: Path) -> None:
    fine = np.add.outer(np.arange(8), 1000 * np.arange(12)).astype(np.uint16)
    turned(tmp_path / "scan.png", fine, 6)
    array = only(tmp_path, color="GRAY", size=[4, 6], resize="crop", mean=1.0, std=0.5)
    middle = (fine.reshape(4, 2, 6, 2).mean(axis=(1, 3)) / 257 - 1) / 0.5
    # Bilinear reduction by two weighs pixels of three pairs; inside a ramp that is the mean of the middle one.
    np.testing.assert_allclose(array[0, 1:-1, 1:-1], middle[1:-1, 1:-1], rtol=1e-4)
    padded = only(tmp_path, color="RGB", size=[8, 16], resize="pad", pad_value=9)
    assert (padded[:, :, 12:] == 9).all()
    assert (only(tmp_path, size=[8, 16], resize="pad")[:, :, 12:] == 0).all()
    np.testing.assert_allclose(padded[1, :, :12], fine / 257, rtol=1e-5)


def test_colours_of_sixteen_bits(tmp_path: Path) -> None:
    """Pillow has no such mode and takes the higher byte."""
    import struct
    import zlib

    values = np.random.default_rng(0).integers(0, 65536, (2, 3, 3)).astype(">u2")

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 3, 2, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    (tmp_path / "rgb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    np.testing.assert_allclose(only(tmp_path), (values / 257).transpose(2, 0, 1), atol=1.0)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_other_pixels_stay_as_they_are(tmp_path: Path, kind: type) -> None:
    values = np.array([[-3, 0, 1], [300, 65536, 100000]], dtype=kind) / (np.float32(4) if kind is np.float32 else 1)
    Image.fromarray(values.astype(kind)).save(tmp_path / "measured.tif")
    np.testing.assert_array_equal(only(tmp_path, color="GRAY")[0], values)
    np.testing.assert_array_equal(only(tmp_path, color="RGB", scale=2.0), 2 * np.broadcast_to(values, (3, 2, 3)))


@pytest.mark.parametrize(
    ("mode", "value", "expected"), [("1", 1, 255), ("L", 9, 9), ("LA", (9, 0), 9), ("P", 3, 3), ("RGBA", (5, 5, 5, 0), 5)]
)
def test_modes_of_eight_bits(tmp_path: Path, mode: str, value: Any, expected: int) -> None:
    image = Image.new(mode, (3, 2), value)
    if mode == "P":
        image.putpalette([channel for entry in range(256) for channel in (entry, entry, entry)])
    image.save(tmp_path / "a.png")
    assert (only(tmp_path) == expected).all()


@pytest.mark.parametrize("exif_orientation", [True, False])
def test_annotations_say_which_way_round_an_image_is_meant(tmp_path: Path, exif_orientation: bool) -> None:
    file = turned(tmp_path / "photo.jpg", np.zeros((4, 6, 3), np.uint8), 6)
    assert read_image(file, exif_orientation=exif_orientation, annotated=(6, 4)).size == (6, 4)
    assert read_image(file, exif_orientation=exif_orientation, annotated=(4, 6)).size == (4, 6)
    with pytest.raises(UserError, match=r"image .*photo\.jpg has \d x \d pixels, but is annotated as 12 x 8$"):
        read_image(file, exif_orientation=exif_orientation, annotated=(12, 8))
