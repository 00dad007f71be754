"""How an image file becomes a model's input: read upright, brought to a size, its pixels scaled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from stages.common.errors import UserError

EXTENSIONS = (".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")

Resize = Literal["stretch", "crop", "pad"]
Color = Literal["RGB", "BGR", "GRAY"]
Layout = Literal["NCHW", "NHWC"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


class Placement(NamedTuple):
    """Where an image lies in the model's input. Sizes are (width, height) in pixels.

    Attributes:
        image: The image itself.
        scaled: What it is scaled to.
        left: How much is then cut off at the left.
        top: How much is cut off at the top.
        size: What is left of it, or what it is padded to.
    """

    image: tuple[int, int]
    scaled: tuple[int, int]
    left: int
    top: int
    size: tuple[int, int]

    @property
    def factors(self) -> tuple[float, float]:
        """How much wider and higher the image becomes."""
        return self.scaled[0] / self.image[0], self.scaled[1] / self.image[1]

    def applied(self, image: Image.Image, interpolation: Image.Resampling, fill: float) -> Image.Image:
        """The image in its place; `fill` is the value of the pixels around it."""
        scaled = image if image.size == self.scaled else image.resize(self.scaled, interpolation)
        if self.scaled == self.size:
            return scaled
        canvas = Image.new(image.mode, self.size, (int(fill),) * 3 if image.mode == "RGB" else fill)
        canvas.paste(scaled, (-self.left, -self.top))
        return canvas


class Preprocessing:
    """What is done to every image of a data set. A sample is (pixels * scale - mean) / std, pixels being 0 to 255."""

    def __init__(
        self,
        owner: str,
        *,
        size: Sequence[int] | None,
        resize: Resize,
        resize_to: int | None = None,
        color: Color,
        scale: float | Sequence[float],
        mean: float | Sequence[float],
        std: float | Sequence[float],
        layout: Layout,
        interpolation: Interpolation,
        pad_value: int,
        exif_orientation: bool,
    ) -> None:
        """
        Args:
            owner: the data set's class, for messages; the rest as for `ImageFolder`.

        Raises:
            UserError: an argument is not one of those that are allowed.
        """
        for name, value, allowed in (
            ("resize", resize, ("stretch", "crop", "pad")),
            ("color", color, ("RGB", "BGR", "GRAY")),
            ("layout", layout, ("NCHW", "NHWC")),
            ("interpolation", interpolation, ("nearest", "bilinear", "bicubic", "lanczos")),
        ):
            if value not in allowed:
                raise UserError(f"{owner}: {name} is {value!r}, but must be one of {', '.join(allowed)}")
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise UserError(f"{owner}: size is {list(size)}, but must be [height, width]")
        if size is None and resize_to is not None:
            raise UserError(f"{owner}: resize_to needs size")
        if size is not None and resize_to is not None and (resize != "crop" or resize_to < max(size)):
            raise UserError(f"{owner}: resize_to {resize_to} is for resize: crop, and not smaller than size {list(size)}")
        self.size = None if size is None else (int(size[1]), int(size[0]))
        self.resize = resize
        self.resize_to = resize_to
        self.color = color
        channels = 1 if color == "GRAY" else 3
        self.scale, self.mean, self.std = (
            _per_channel(owner, name, value, channels) for name, value in (("scale", scale), ("mean", mean), ("std", std))
        )
        self.layout = layout
        self.interpolation = Image.Resampling[interpolation.upper()]
        self.pad_value = pad_value
        self.exif_orientation = exif_orientation

    def read(self, file: Path, annotated: tuple[int, int] | None = None) -> tuple[np.ndarray, Placement]:
        """The model's input [1, ...] made of an image file, and where the image lies in it.

        Args:
            annotated: width and height of the image as its annotations see it.

        Raises:
            UserError: the file is no image, or not of the size that its annotations are for.
        """
        image = with_plain_pixels(read_image(file, exif_orientation=self.exif_orientation, annotated=annotated), self.color)
        placement = self.placement(image.size)
        pixels = np.asarray(placement.applied(image, self.interpolation, self.pad_value), dtype=np.float32)
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        if self.color != "GRAY" and pixels.shape[2] == 1:
            pixels = np.repeat(pixels, 3, axis=2)
        if self.color == "BGR":
            pixels = pixels[:, :, ::-1]
        values = (pixels * self.scale - self.mean) / self.std
        return np.ascontiguousarray(values.transpose(2, 0, 1) if self.layout == "NCHW" else values)[None], placement

    def placement(self, image: tuple[int, int]) -> Placement:
        """Where an image of (width, height) lies in the model's input."""
        if self.size is None:
            return Placement(image, image, 0, 0, image)
        if self.resize == "stretch":
            return Placement(image, self.size, 0, 0, self.size)
        fits = self.size[0] / image[0], self.size[1] / image[1]
        if self.resize == "pad":
            return Placement(image, _scaled(image, min(fits)), 0, 0, self.size)
        scaled = _scaled(image, max(fits) if self.resize_to is None else self.resize_to / min(image))
        return Placement(image, scaled, (scaled[0] - self.size[0]) // 2, (scaled[1] - self.size[1]) // 2, self.size)


def read_image(file: Path, *, exif_orientation: bool, annotated: tuple[int, int] | None = None) -> Image.Image:
    """An image, turned as its EXIF orientation says, or as stored.

    Args:
        exif_orientation: Whether to turn it.
        annotated: Width and height as the image's annotations see it. Where only the other way round has this size, that one is
            meant, because annotations say how those saw the image who made them.

    Raises:
        UserError: The file is no image, or has another size either way.
    """
    try:
        with Image.open(file) as stored:
            stored.load()
            upright = ImageOps.exif_transpose(stored) if _is_turned(stored) else stored
            ways = [upright, stored] if exif_orientation else [stored, upright]
    except MemoryError:
        raise
    except Exception as error:  # decoders of damaged files raise what they like
        raise UserError(f"cannot read image {file}: {error or type(error).__name__}") from error
    if annotated is None:
        return ways[0]
    for image in ways:
        if image.size == annotated:
            return image
    width, height = ways[0].size
    raise UserError(f"image {file} has {width} x {height} pixels, but is annotated as {annotated[0]} x {annotated[1]}")


def _is_turned(image: Image.Image) -> bool:
    """Whether an image has an EXIF orientation other than upright that can be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except Exception:  # damaged EXIF, which does not make the image itself unreadable
        return False


def with_plain_pixels(image: Image.Image, color: Color) -> Image.Image:
    """The image in mode L or RGB, as `color` wants; or in mode F with one channel, where eight bits cannot hold its pixels.

    Pixels of 16 bits are scaled to 0 to 255, which Pillow would clip them to. Those of 32 bits and floating-point ones have no
    range that is known, and stay as they are.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return Image.fromarray(np.asarray(image).astype(np.float32) / np.float32(257))
    if image.mode in ("I", "F"):
        return image.convert("F")
    return image.convert("L" if color == "GRAY" else "RGB")


def _scaled(image: tuple[int, int], ratio: float) -> tuple[int, int]:
    return max(1, round(image[0] * ratio)), max(1, round(image[1] * ratio))


def _per_channel(owner: str, name: str, value: float | Sequence[float], channels: int) -> np.ndarray:
    values = np.atleast_1d(np.asarray(value, dtype=np.float32))
    if values.shape not in ((1,), (channels,)):
        raise UserError(f"{owner}: {name} must be one number or {channels}, not {values.size}")
    return values
