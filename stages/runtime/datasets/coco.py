"""Images with objects in boxes, as COCO writes them down."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from stages.common.errors import UserError
from stages.runtime.datasets.files import files_in, left_out
from stages.runtime.datasets.images import EXTENSIONS, Color, Interpolation, Layout, Preprocessing
from stages.runtime.datasets.sample import Sample


class Entry(NamedTuple):
    """An image as the annotations list it: its file, (width, height) where they tell it, and its objects."""

    file: Path
    size: tuple[int, int] | None
    boxes: list[list[float]]
    classes: list[int]
    crowd: list[bool]


class CocoImages:
    """A folder of images and a COCO annotation file.

    The target of an image is what `MeanAveragePrecision` wants: `boxes` (left, top, right, bottom, in pixels of the model's input),
    `classes` (categories in the order of their ids, from 0) and `crowd`.
    """

    def __init__(
        self,
        path: str | Path,
        annotations: str | Path,
        size: Sequence[int] | None = None,
        resize: Literal["stretch", "pad"] = "stretch",
        color: Color = "RGB",
        scale: float | Sequence[float] = 1.0,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        layout: Layout = "NCHW",
        interpolation: Interpolation = "bilinear",
        pad_value: int = 0,
        exif_orientation: bool = True,
        class_numbers: Literal["order", "id"] = "order",
    ) -> None:
        """
        Args:
            path: folder of the images, to which their `file_name`s in the annotations are relative; images without an entry in the
                annotations are not used.
            annotations: COCO's JSON, with images, annotations (bbox: left, top, width, height) and categories.
            resize: stretch or pad; the rest as for `ImageFolder`.
            exif_orientation: turn images as their EXIF data say, unless only the stored image has the width and height of the JSON.
            class_numbers: "order": categories count from 0 in the order of their ids, as most detectors number them; "id": the ids
                themselves, for detectors that give those.

        Raises:
            UserError: a file is missing, or no such JSON.
        """
        if resize not in ("stretch", "pad"):
            raise UserError(f"CocoImages: resize is {resize!r}, but must be one of stretch, pad")
        self.preprocessing = Preprocessing(
            "CocoImages",
            size=size,
            resize=resize,
            color=color,
            scale=scale,
            mean=mean,
            std=std,
            layout=layout,
            interpolation=interpolation,
            pad_value=pad_value,
            exif_orientation=exif_orientation,
        )
        self.path, self.annotations = Path(path), Path(annotations)
        if not self.path.is_dir():
            raise UserError(f"image folder {path} does not exist")
        if class_numbers not in ("order", "id"):
            raise UserError(f"CocoImages: class_numbers is {class_numbers!r}, but must be one of order, id")
        self.images = _entries(self.path, self.annotations, ids=class_numbers == "id")
        if missing := [entry.file for entry in self.images if not entry.file.is_file()]:
            raise UserError(f"{annotations} lists {len(self.images)} images, of which {len(missing)} do not exist, e.g. {missing[0]}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        entry = self.images[index]
        array, placement = self.preprocessing.read(entry.file, entry.size)
        boxes = np.array(entry.boxes, dtype=np.float64).reshape(-1, 4)
        target = {
            "boxes": boxes * np.tile(placement.factors, 2),
            "classes": np.array(entry.classes, dtype=np.int64),
            "crowd": np.array(entry.crowd, dtype=bool),
        }
        return Sample({"": array}, target)

    def label(self, index: int) -> str:
        return str(self.images[index].file)

    def notes(self) -> list[str]:
        """Images that the annotations do not list."""
        listed = {entry.file for entry in self.images}
        others = [file for file in files_in(self.path) if file.suffix.lower() in EXTENSIONS and file not in listed]
        return left_out(others, f"{self.annotations} does not list them")


def _entries(folder: Path, annotations: Path, *, ids: bool) -> list[Entry]:
    """The images that an annotation file lists, by name."""
    content = _read(annotations)
    try:
        categories = sorted(int(entry["id"]) for entry in content["categories"])
        numbers = {category: category if ids else index for index, category in enumerate(categories)}
        objects: dict[Any, list[tuple[list[float], int, bool]]] = defaultdict(list)
        for entry in content["annotations"]:
            left, top, width, height = map(float, entry["bbox"])
            box = [left, top, left + width, top + height]
            objects[entry["image_id"]].append((box, numbers[entry["category_id"]], bool(entry.get("iscrowd"))))
        entries = []
        for entry in sorted(content["images"], key=lambda entry: str(entry["file_name"])):
            size = (int(entry["width"]), int(entry["height"])) if entry.get("width") and entry.get("height") else None
            own = objects[entry["id"]]
            entries.append(Entry(_file(folder, entry["file_name"]), size, [o[0] for o in own], [o[1] for o in own], [o[2] for o in own]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{annotations} is no COCO annotation file: {type(error).__name__} {error}") from error
    if not entries:
        raise UserError(f"{annotations} lists no images")
    return entries


def _file(folder: Path, name: str) -> Path:
    """The file of a `file_name`, which tools on Windows write with backslashes."""
    file = folder / name
    return file if "\\" not in name or file.exists() else folder / name.replace("\\", "/")


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"annotation file {path} does not exist")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no COCO annotation file: it has no sections")
    return content
