"""Images with a mask file each: which class every pixel is of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from stages.common.errors import UserError
from stages.runtime.datasets.files import files_in, left_out
from stages.runtime.datasets.images import EXTENSIONS, Color, Interpolation, Layout, Preprocessing, Resize, read_image
from stages.runtime.datasets.sample import Sample


class ImageMasks:
    """Two folders, of images and of masks that are named like them. The target is what `MeanIoU` wants: a class map [H, W].

    Images become inputs as in `ImageFolder`, and masks go with them, each pixel with the class that lies nearest.
    """

    def __init__(
        self,
        path: str | Path,
        masks: str | Path,
        size: Sequence[int] | None = None,
        resize: Resize = "stretch",
        resize_to: int | None = None,
        color: Color = "RGB",
        scale: float | Sequence[float] = 1.0,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        layout: Layout = "NCHW",
        interpolation: Interpolation = "bilinear",
        pad_value: int = 0,
        exif_orientation: bool = True,
        image_ending: str = "",
        mask_ending: str = "",
        values: Sequence[int | Sequence[int]] | None = None,
        other_label: int | None = None,
        pad_label: int = 255,
        mask_size: Sequence[int] | None = None,
    ) -> None:
        """
        Args:
            path: folder of the images, to any depth; arguments not named here are as for `ImageFolder`.
            masks: folder of the masks, in the same subfolders: of an image `a/1.jpg` that is `a/1.png`, or another kind of image.
            exif_orientation: turn images as their EXIF data say, unless only the stored image has the width and height of the mask.
            image_ending, mask_ending: what the names of images and masks end with, before the dot, and do not have in common, e.g.
                `_leftImg8bit` and `_gtFine_labelIds`. Other files in the folder of masks do not count.
            values: a mask's value of each class, in the order of their numbers: [0, 255] where white is class 1, or colours
                [[0, 0, 0], [128, 0, 0]]. By default values are the class numbers, and colours of a palette are numbered in its order.
            other_label: the class number of all values that are not listed, e.g. the metric's ignore_label; by default there
                must be none.
            pad_label: the class number of what is padded, e.g. the metric's ignore_label.
            mask_size: [height, width] of the model's output, where that is not the size of its input.

        Raises:
            UserError: a folder is missing or has no images, an image has no mask, or an argument is not one of those above.
        """
        self.preprocessing = Preprocessing(
            "ImageMasks",
            size=size,
            resize=resize,
            resize_to=resize_to,
            color=color,
            scale=scale,
            mean=mean,
            std=std,
            layout=layout,
            interpolation=interpolation,
            pad_value=pad_value,
            exif_orientation=exif_orientation,
        )
        if mask_size is not None and (len(mask_size) != 2 or min(mask_size) < 1):
            raise UserError(f"ImageMasks: mask_size is {list(mask_size)}, but must be [height, width]")
        if other_label is not None and values is None:
            raise UserError(f"ImageMasks: other_label is {other_label}, but there are no others without values")
        self.mask_size = None if mask_size is None else (int(mask_size[1]), int(mask_size[0]))
        self.values = None if values is None else _Values.of(values)
        self.other_label = other_label
        self.pad_label = pad_label
        for folder in (path, masks):
            if not Path(folder).is_dir():
                raise UserError(f"image folder {folder} does not exist")
        images = [file for file in files_in(Path(path)) if file.suffix.lower() in EXTENSIONS]
        listed = [file for file in files_in(Path(masks)) if file.suffix.lower() in EXTENSIONS and file.stem.endswith(mask_ending)]
        # In one folder for both, what is an image as well as a mask is what the longer ending says.
        if len(mask_ending) >= len(image_ending):
            images = sorted(set(images) - set(listed))
        self.images = _by_name([file for file in images if file.stem.endswith(image_ending)], Path(path), image_ending)
        listed = sorted(set(listed) - set(self.images.values()))
        self.masks = _by_name(listed, Path(masks), mask_ending)
        self.names = sorted(self.images)
        if not self.names:
            raise UserError(f"image folder {path} has no images with names that end with {image_ending!r} ({', '.join(EXTENSIONS)})")
        if missing := [name for name in self.names if name not in self.masks]:
            raise UserError(
                f"{len(missing)} of the {len(self.names)} images in {path} have no mask in {masks}, e.g. {self.images[missing[0]]}, whose "
                f"mask is {missing[0]}{mask_ending}.png: image_ending and mask_ending are what names do not have in common"
            )
        unused = sorted(set(images) - set(self.images.values()) - set(listed))
        surplus = [self.masks[name] for name in sorted(set(self.masks) - set(self.names))]
        self._notes = [*left_out(unused, "image_ending is of others"), *left_out(surplus, "masks of no image")]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        name = self.names[index]
        mask = read_image(self.masks[name], exif_orientation=self.preprocessing.exif_orientation)
        array, placement = self.preprocessing.read(self.images[name], mask.size)
        classes = placement.applied(Image.fromarray(self._classes(mask, self.masks[name])), Image.Resampling.NEAREST, self.pad_label)
        if self.mask_size is not None:
            classes = classes.resize(self.mask_size, Image.Resampling.NEAREST)
        return Sample({"": array}, np.asarray(classes))

    def label(self, index: int) -> str:
        return str(self.images[self.names[index]])

    def notes(self) -> list[str]:
        """Images and masks that are not used."""
        return self._notes

    def _classes(self, mask: Image.Image, file: Path) -> np.ndarray:
        """The class number of every pixel, [H, W] of i32."""
        pixels = _pixels(mask, in_color=self.values is not None and self.values.are_colors)
        if pixels is None:
            raise UserError(f"mask {file} has colours: give the colour of each class as values, e.g. [[0, 0, 0], [128, 0, 0]]")
        if pixels.dtype.kind == "f" and (pixels != np.rint(pixels)).any():
            raise UserError(f"mask {file} has values that are no whole numbers, e.g. {pixels[pixels != np.rint(pixels)][0]}")
        pixels = pixels.astype(np.int32)
        if self.values is None:
            return pixels
        classes = self.values.classes(pixels)
        if (unknown := classes < 0).any():
            if self.other_label is None:
                value = self.values.shown(pixels[unknown][0])
                raise UserError(f"mask {file} has the value {value}, which values does not list: list it, or give other_label")
            classes[unknown] = self.other_label
        return classes


class _Values(NamedTuple):
    """What stands for which class in a mask: sorted values, the class of each, and whether they are colours, packed into 24 bits."""

    sorted: np.ndarray
    numbers: np.ndarray
    are_colors: bool

    @classmethod
    def of(cls, values: Sequence[int | Sequence[int]]) -> _Values:
        colors = [value for value in values if isinstance(value, (list, tuple)) and len(value) == 3]
        numbers = [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
        if not values or len(values) not in (len(colors), len(numbers)):
            raise UserError(f"ImageMasks: values is {values!r}, but must be a number or a colour [red, green, blue] for each class")
        packed = np.array([(red << 16) + (green << 8) + blue for red, green, blue in colors] or numbers, dtype=np.int32)
        if len(set(packed.tolist())) < len(packed):
            raise UserError(f"ImageMasks: values is {values!r}, but must have a value of its own for each class")
        order = np.argsort(packed)
        return cls(packed[order], order.astype(np.int32), bool(colors))

    def classes(self, pixels: np.ndarray) -> np.ndarray:
        """The class of each pixel, -1 for other values."""
        place = np.minimum(np.searchsorted(self.sorted, pixels), len(self.sorted) - 1)
        return np.where(self.sorted[place] == pixels, self.numbers[place], np.int32(-1))

    def shown(self, pixel: int) -> str:
        return str([int(pixel) >> 16, int(pixel) >> 8 & 255, int(pixel) & 255] if self.are_colors else int(pixel))


def _pixels(mask: Image.Image, *, in_color: bool) -> np.ndarray | None:
    """A mask's values [H, W]: packed colours, or numbers, which those of a palette are; None where there is more than grey."""
    if in_color:
        red, green, blue = np.moveaxis(np.asarray(mask.convert("RGB"), dtype=np.int32), 2, 0)
        return (red << 16) + (green << 8) + blue
    pixels = np.asarray(mask.convert("L") if mask.mode == "LA" else mask)
    if pixels.ndim == 3:
        # Grey that was saved in three channels.
        if mask.mode not in ("RGB", "RGBA") or (pixels[..., :1] != pixels[..., 1:3]).any():
            return None
        pixels = pixels[..., 0]
    return pixels


def _by_name(files: Sequence[Path], folder: Path, ending: str) -> dict[str, Path]:
    """Files by what images and masks have in common: their path below the folder, without the ending."""
    named: dict[str, Path] = {}
    for file in files:
        name = file.relative_to(folder).with_suffix("").as_posix().removesuffix(ending)
        if name in named:
            raise UserError(f"{named[name]} and {file} have the same name but for the kind of image: remove one of them")
        named[name] = file
    return named
