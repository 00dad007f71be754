"""Images in a folder, each subfolder a class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stages.common.errors import UserError
from stages.runtime.datasets.files import files_in, folders_in, left_out
from stages.runtime.datasets.images import EXTENSIONS, Color, Interpolation, Layout, Preprocessing, Resize
from stages.runtime.datasets.sample import Sample

PARTS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})


class ImageFolder:
    """Images in a folder. Each subfolder is a class, in sorted order from 0; images directly in the folder are unlabelled."""

    def __init__(
        self,
        path: str,
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
        classes: Sequence[str] | None = None,
        extensions: Sequence[str] = EXTENSIONS,
    ) -> None:
        """
        A sample is (pixels * scale - mean) / std, pixels being 0 to 255. Those of 16 bits are scaled to that, those of 32 bits
        and floating-point ones are taken as they are.

        Args:
            path: the folder. Images lie in it, or in the subfolders of its classes to any depth; what is hidden does not count.
            size: [height, width] of the model's input; none keeps each image's own.
            resize: how an image gets there. "stretch": both sides independently. "crop": scaled until the shorter side is
                `resize_to` (by default until it just covers the size), then the centre is cut out. "pad": scaled until it
                fits, then padded at the right and bottom with `pad_value`.
            color: RGB, BGR or GRAY.
            scale, mean, std: one number, or one per channel in the order of `color`.
            layout: NCHW or NHWC.
            interpolation: nearest, bilinear, bicubic or lanczos.
            exif_orientation: turn images as their EXIF data say; false takes pixels as they are stored.
            classes: the subfolders in the order of their class numbers; one that is missing or empty keeps its number.
            extensions: what names of images end with.

        Raises:
            UserError: the folder is missing or has no images, a subfolder is no class, or an argument is not one of those above.
        """
        self.preprocessing = Preprocessing(
            "ImageFolder",
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
        root = Path(path)
        if not root.is_dir():
            raise UserError(f"image folder {path} does not exist")
        suffixes = {suffix.lower() for suffix in extensions}
        self.others: list[Path] = []
        direct = self._images(files_in(root, nested=False), suffixes)
        found = {folder.name: self._images(files_in(folder), suffixes) for folder in folders_in(root)}
        if not direct and not any(found.values()):
            raise UserError(f"image folder {path} has no images ({', '.join(sorted(suffixes))})")
        self.classes = _class_names(path, found, classes)
        self.images: list[tuple[Path, int | None]] = [(file, None) for file in direct]
        for index, name in enumerate(self.classes):
            self.images += [(file, index) for file in found.get(name, ())]
        if len({label is None for _, label in self.images}) > 1:
            raise UserError(
                f"image folder {path} has images both directly in it and in subfolders: label all or none; "
                f"{direct[0].name} has no label, {self.images[-1][0].relative_to(root)} is of class {self.images[-1][1]}"
            )

    def _images(self, files: Sequence[Path], suffixes: set[str]) -> list[Path]:
        images = [file for file in files if file.suffix.lower() in suffixes]
        self.others += sorted(set(files) - set(images))
        return images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        file, target = self.images[index]
        return Sample({"": self.preprocessing.read(file)[0]}, target)

    def label(self, index: int) -> str:
        return str(self.images[index][0])

    def notes(self) -> list[str]:
        """Files that were left out, and names of classes whose order is not the one of their numbers."""
        notes = left_out(self.others, "no image by `extensions`")
        if all(name.isdecimal() for name in self.classes) and self.classes != sorted(self.classes, key=int):
            later, earlier = next((a, b) for a, b in zip(self.classes, self.classes[1:], strict=False) if int(a) > int(b))
            notes.append(f"class folders are sorted as text, {later} before {earlier}: where their names are class numbers, give classes")
        return notes


def _class_names(path: str, found: dict[str, list[Path]], classes: Sequence[str] | None) -> list[str]:
    """The classes in the order of their numbers.

    An empty folder may be a class of which there are no images here, or a left-over: counting it would shift the numbers of the
    others in the one case, and not counting it in the other.
    """
    names = sorted(found)
    if classes is not None:
        wanted = [str(name) for name in classes]
        if len(set(wanted)) < len(wanted):
            raise UserError(f"ImageFolder: classes names {next(name for name in wanted if wanted.count(name) > 1)} twice")
        if surplus := [name for name in names if found[name] and name not in wanted]:
            raise UserError(f"image folder {path} has a subfolder {surplus[0]}, which is not among classes: {', '.join(wanted)}")
        return wanted
    if empty := [name for name in names if not found[name]]:
        raise UserError(
            f"image folder {path} has no images in its subfolder {empty[0]}: remove it, or list all classes in the order of their "
            f"numbers, classes: [{', '.join(names)}]"
        )
    if len(names) > 1 and all(name.lower() in PARTS for name in names):
        raise UserError(f"the subfolders of image folder {path} are {', '.join(names)}, which are no classes: give one of them as path")
    return names
