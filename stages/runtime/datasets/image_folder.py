"""Images in a folder, and how an image becomes a model's input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from stages.common.errors import UserError
from stages.runtime.datasets.sample import Sample

IMAGE_EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


class ImageFolder:
    """Images in a folder. Each subfolder is a class, in sorted order from 0; images directly in the folder are unlabelled."""

    def __init__(
        self,
        path: str,
        size: Sequence[int] | None = None,
        resize: str = "stretch",
        resize_to: int | None = None,
        color: str = "RGB",
        scale: float | Sequence[float] = 1.0,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        layout: str = "NCHW",
        interpolation: str = "bilinear",
        pad_value: int = 0,
        extensions: Sequence[str] = IMAGE_EXTENSIONS,
    ) -> None:
        """
        A sample is (pixels * scale - mean) / std, pixels being 0 to 255.

        Args:
            size: [height, width] of the model's input; none keeps each image's own.
            resize: how an image gets there. "stretch": both sides independently. "crop": scaled until the shorter side is
                `resize_to` (by default until it just covers the size), then the centre is cut out. "pad": scaled until it
                fits, then padded at the right and bottom with `pad_value`.
            color: RGB, BGR or GRAY.
            scale, mean, std: one number, or one per channel in the order of `color`.
            layout: NCHW or NHWC.
            interpolation: nearest, bilinear, bicubic or lanczos.

        Raises:
            UserError: the folder is missing or has no images, or an argument is not one of those above.
        """
        for name, value, allowed in (
            ("resize", resize, ("stretch", "crop", "pad")),
            ("color", color, ("RGB", "BGR", "GRAY")),
            ("layout", layout, ("NCHW", "NHWC")),
            ("interpolation", interpolation, ("nearest", "bilinear", "bicubic", "lanczos")),
        ):
            if value not in allowed:
                raise UserError(f"ImageFolder: {name} is {value!r}, but must be one of {', '.join(allowed)}")
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise UserError(f"ImageFolder: size is {list(size)}, but must be [height, width]")
        if size is None and resize_to is not None:
            raise UserError("ImageFolder: resize_to needs size")
        if size is not None and resize_to is not None and (resize != "crop" or resize_to < max(size)):
            raise UserError(f"ImageFolder: resize_to {resize_to} is for resize: crop, and not smaller than size {list(size)}")
        root = Path(path)
        if not root.is_dir():
            raise UserError(f"image folder {path} does not exist")
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.resize = resize
        self.resize_to = resize_to
        self.color = color
        channels = 1 if color == "GRAY" else 3
        self.scale, self.mean, self.std = (
            _per_channel(name, value, channels) for name, value in (("scale", scale), ("mean", mean), ("std", std))
        )
        self.layout = layout
        self.interpolation = Image.Resampling[interpolation.upper()]
        self.pad_value = pad_value
        suffixes = {suffix.lower() for suffix in extensions}
        self.classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        self.files: list[tuple[Path, int | None]] = [(file, None) for file in _images(root, suffixes)]
        for index, name in enumerate(self.classes):
            self.files += [(file, index) for file in _images(root / name, suffixes)]
        if not self.files:
            raise UserError(f"image folder {path} has no images ({', '.join(sorted(suffixes))})")
        if len({label is None for _, label in self.files}) > 1:
            raise UserError(f"image folder {path} has images both directly in it and in subfolders: label all or none")

    def __len__(self) -> int:
        return len(self.files)

    def label(self, index: int) -> str:
        return str(self.files[index][0])

    def __getitem__(self, index: int) -> Sample:
        file, target = self.files[index]
        try:
            with Image.open(file) as image:
                pixels = np.asarray(self._resized(image.convert("L" if self.color == "GRAY" else "RGB")), dtype=np.float32)
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"cannot read image {file}: {error}") from error
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        if self.color == "BGR":
            pixels = pixels[:, :, ::-1]
        values = (pixels * self.scale - self.mean) / self.std
        return Sample({"": np.ascontiguousarray(values.transpose(2, 0, 1) if self.layout == "NCHW" else values)[None]}, target)

    def _resized(self, image: Image.Image) -> Image.Image:
        if self.size is None:
            return image
        height, width = self.size
        if self.resize == "stretch":
            return image.resize((width, height), self.interpolation)
        if self.resize == "pad":
            scaled = image.resize(fitted(image.size, self.size), self.interpolation)
            canvas = Image.new(image.mode, (width, height), (self.pad_value,) * 3 if image.mode == "RGB" else self.pad_value)
            canvas.paste(scaled, (0, 0))
            return canvas
        ratio = max(width / image.width, height / image.height) if self.resize_to is None else self.resize_to / min(image.size)
        scaled = image.resize(_scaled(image.size, ratio), self.interpolation)
        left, top = (scaled.width - width) // 2, (scaled.height - height) // 2
        return scaled.crop((left, top, left + width, top + height))


def _images(folder: Path, suffixes: set[str]) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file() and file.suffix.lower() in suffixes)


def fitted(image: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of an image of (width, height) that is scaled to fit into `size` (height, width)."""
    return _scaled(image, min(size[1] / image[0], size[0] / image[1]))


def _scaled(image: tuple[int, int], ratio: float) -> tuple[int, int]:
    return max(1, round(image[0] * ratio)), max(1, round(image[1] * ratio))


def _per_channel(name: str, value: float | Sequence[float], channels: int) -> np.ndarray:
    values = np.atleast_1d(np.asarray(value, dtype=np.float32))
    if values.shape not in ((1,), (channels,)):
        raise UserError(f"ImageFolder: {name} must be one number or {channels}, not {values.size}")
    return values
