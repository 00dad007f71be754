"""Detection: pages of text with COCO annotations, and how the detector's output becomes boxes.

Run as: python -m conf.experiment.text_detection data/pages 100
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage  # comes with MLflow

from stages.runtime.datasets.text_lines import WORDS, fonts
from stages.runtime.detection import COCO_IOU, Detections, MeanAveragePrecision

SIZE = 480  # of a page, in pixels


class TextBoxes(MeanAveragePrecision):
    """Boxes of a DB detector, whose output is a map [1, 1, H, W] of how much each pixel belongs to the core of a text line.

    A line is a connected part of the map; it is grown back from the core as in M. Liao et al., arXiv:1911.08947, section 3.4.
    """

    def __init__(self, threshold: float = 0.3, growth: float = 0.8, iou: Sequence[float] | float = COCO_IOU) -> None:
        """
        Args:
            threshold: from which on a pixel belongs to a core.
            growth: how far a box reaches beyond the core; boxes that leave no margin around the ink need less than the paper's 1.5.
            iou: as for `MeanAveragePrecision`.
        """
        super().__init__(iou=iou, boxes=0, scores=0, labels=None)
        self.threshold = threshold
        self.growth = growth

    def detections(self, outputs: Sequence[np.ndarray]) -> Detections:
        text = outputs[0][0, 0]
        parts, count = ndimage.label(text > self.threshold)
        scores = ndimage.mean(text, parts, np.arange(1, count + 1))
        boxes = np.array([[x.start, y.start, x.stop, y.stop] for y, x in ndimage.find_objects(parts)], dtype=float).reshape(-1, 4)
        width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        margin = self.growth * width * height / (2 * (width + height))
        boxes += margin[:, None] * [-1, -1, 1, 1]
        return Detections(boxes, np.atleast_1d(scores), np.zeros(count, dtype=int))


def page(index: int) -> tuple[Image.Image, list[list[int]]]:
    """A page of words in several fonts and sizes, and the box of each: left, top, width, height."""
    random = np.random.default_rng([index, 5])
    paper, ink = random.integers(170, 256), random.integers(0, 110)
    image, boxes, top = Image.new("L", (SIZE, SIZE), int(paper)), [], int(random.integers(8, 40))
    while True:
        font = fonts()[random.integers(len(fonts()))].font_variant(size=int(random.integers(14, 44)))
        left = int(random.integers(8, SIZE // 2))
        while True:
            word = str(random.choice(WORDS))
            box = ImageDraw.Draw(image).textbbox((left, top), word, font=font)
            if box[2] > SIZE - 8:
                break
            if box[3] > SIZE - 8:
                noisy = np.asarray(image) + random.normal(0, random.uniform(0, 25), (SIZE, SIZE))
                return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)), boxes
            ImageDraw.Draw(image).text((left, top), word, font=font, fill=int(ink))
            boxes.append([int(box[0]), int(box[1]), int(box[2] - box[0]), int(box[3] - box[1])])
            left = int(box[2] + font.size * random.uniform(1.2, 3))
        top += int(font.size * random.uniform(1.5, 2.2))


def write(folder: Path, count: int) -> None:
    """Pages as PNG files in `folder`, and annotations.json beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in range(count):
        image, boxes = page(index)
        image.save(folder / f"{index:04}.png")
        images.append({"id": index, "file_name": f"{index:04}.png", "width": SIZE, "height": SIZE})
        for box in boxes:
            entry = {"image_id": index, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, **entry})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "text"}]}
    (folder / "annotations.json").write_text(json.dumps(content))


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]))
