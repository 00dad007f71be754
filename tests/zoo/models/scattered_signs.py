"""Captchas of signs scattered over a picture, and their boxes out of a YOLOX head of one class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from stages.runtime.datasets.text_lines import fonts
from stages.runtime.detection import Detections, MeanAveragePrecision

from .yolo import suppressed

SIZE = 416
SIGNS = "ABCDEFGHKMNPRSTUXYZ234567809"


class ScatteredSigns:
    """BGR images [1, 3, 416, 416] from 0 to 255; the target: a box per sign, in pixels."""

    def __init__(self, count: int, seed: int = 0) -> None:
        self.count = count
        self.seed = seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, dict[str, Any]]:
        random = np.random.default_rng([index, self.seed])
        boxes: list[tuple[int, int, int, int]] = []
        picture = Image.fromarray(random.integers(0, 256, (6, 8, 3)).astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        for _ in range(random.integers(3, 6)):
            mask = Image.new("L", (110, 110))
            font = fonts()[random.integers(len(fonts()))].font_variant(size=int(random.integers(45, 75)))
            sign, width = str(random.choice(list(SIGNS))), int(random.integers(3))
            ImageDraw.Draw(mask).text((55, 55), sign, font=font, fill=255, anchor="mm", stroke_width=width)
            mask = mask.rotate(random.uniform(-40, 40), Image.Resampling.BILINEAR)
            mask = mask.crop(mask.getbbox())
            for _ in range(20):  # tries, as signs keep their distance
                left, top = (int(place) for place in random.integers(0, [SIZE - mask.width, SIZE - mask.height]))
                box = (left, top, left + mask.width, top + mask.height)
                if all(box[0] > x1 + 4 or box[2] < x0 - 4 or box[1] > y1 + 4 or box[3] < y0 - 4 for x0, y0, x1, y1 in boxes):
                    ink = tuple(int(value) for value in random.integers(0, 256, 3))
                    picture.paste(ink, box, mask)
                    boxes.append(box)
                    break
        pixels = np.asarray(picture, dtype=np.float32)[:, :, ::-1]
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]), {"boxes": np.array(boxes), "classes": np.zeros(len(boxes), int)}


class YoloxBoxes(MeanAveragePrecision):
    """COCO's AP of a head [1, 3549, 6]: centre and logarithm of the size in units of the grid, objectness, score."""

    def __init__(self, iou: float) -> None:
        super().__init__(iou=iou, labels=None)

    def bind(self, model: Any) -> None:
        places = {step: np.arange(SIZE // step) for step in (8, 16, 32)}
        grids = [(step, np.stack(np.meshgrid(place, place), -1).reshape(-1, 2)) for step, place in places.items()]
        self.places = np.concatenate([grid for _, grid in grids])
        self.steps = np.concatenate([np.full((len(grid), 1), step) for step, grid in grids])

    def detections(self, outputs: Sequence[np.ndarray]) -> Detections:
        rows = outputs[0][0]
        scores = rows[:, 4] * rows[:, 5]
        likely = np.flatnonzero(scores > 0.05)
        likely = likely[np.argsort(-scores[likely], kind="stable")]
        centre, half = (rows[likely, :2] + self.places[likely]) * self.steps[likely], np.exp(rows[likely, 2:4]) * self.steps[likely] / 2
        boxes, classes = np.hstack([centre - half, centre + half]), np.zeros(len(likely), int)
        stays = suppressed(boxes, classes, 0.45)
        return Detections(boxes[stays], scores[likely][stays], classes[stays])
