"""Images with objects in boxes, as COCO writes them down."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stages.common.errors import UserError
from stages.runtime.datasets.image_folder import ImageFolder, fitted
from stages.runtime.datasets.sample import Sample


class CocoImages(ImageFolder):
    """A folder of images and a COCO annotation file.

    The target of an image is what `MeanAveragePrecision` wants: `boxes` (left, top, right, bottom, in pixels of the model's input),
    `classes` (categories in the order of their ids, from 0) and `crowd`.
    """

    def __init__(
        self,
        path: str,
        annotations: str,
        size: Sequence[int] | None = None,
        resize: str = "stretch",
        color: str = "RGB",
        scale: float | Sequence[float] = 1.0,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        layout: str = "NCHW",
        interpolation: str = "bilinear",
        pad_value: int = 0,
    ) -> None:
        """
        Args:
            path: folder of the images; those without an entry in the annotations are not used.
            annotations: COCO's JSON, with images, annotations (bbox: left, top, width, height) and categories.
            resize: stretch or pad; the rest as for `ImageFolder`.

        Raises:
            UserError: a file is missing, or no such JSON.
        """
        if resize not in ("stretch", "pad"):
            raise UserError(f"CocoImages: resize is {resize!r}, but must be one of stretch, pad")
        super().__init__(
            path,
            size,
            resize,
            color=color,
            scale=scale,
            mean=mean,
            std=std,
            layout=layout,
            interpolation=interpolation,
            pad_value=pad_value,
        )
        content = _read(Path(annotations))
        try:
            order = {category: index for index, category in enumerate(sorted(entry["id"] for entry in content["categories"]))}
            objects: dict[Any, list[tuple[list[float], int, bool]]] = defaultdict(list)
            for entry in content["annotations"]:
                left, top, width, height = map(float, entry["bbox"])
                objects[entry["image_id"]].append(
                    ([left, top, left + width, top + height], order[entry["category_id"]], bool(entry.get("iscrowd")))
                )
            images = sorted(content["images"], key=lambda entry: str(entry["file_name"]))
            self.files = [(Path(path) / entry["file_name"], None) for entry in images]
            self.objects = [objects[entry["id"]] for entry in images]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{annotations} is no COCO annotation file: {type(error).__name__} {error}") from error
        if not self.files:
            raise UserError(f"{annotations} lists no images")

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        objects = self.objects[index]
        boxes = np.array([box for box, _, _ in objects], dtype=np.float64).reshape(-1, 4)
        target = {
            "boxes": boxes * np.tile(self._factors(self.files[index][0]), 2),
            "classes": np.array([label for _, label, _ in objects], dtype=np.int64),
            "crowd": np.array([crowd for _, _, crowd in objects], dtype=bool),
        }
        return Sample(sample.inputs, target)

    def _factors(self, file: Path) -> tuple[float, float]:
        """How much wider and higher an image becomes."""
        if self.size is None:
            return 1.0, 1.0
        with Image.open(file) as image:
            width, height = fitted(image.size, self.size) if self.resize == "pad" else self.size[::-1]
            return width / image.width, height / image.height


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
