"""Where the signs of a captcha are, for a YOLOX head of one class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from stages.runtime.detection import Detections, MeanAveragePrecision

from .captchas import captcha
from .yolo import suppressed

SIZE = 416


class CaptchaSigns:
    """BGR images [1, 3, 416, 416] from 0 to 255, padded at the right and bottom; the target: a box per sign, in pixels of the input."""

    def __init__(self, count: int, seed: int = 1) -> None:
        self.count = count
        self.seed = seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, dict[str, Any]]:
        image, _, boxes = captcha(np.random.default_rng([index, self.seed]))
        ratio = SIZE / max(image.size)
        scaled = image.resize((round(image.width * ratio), round(image.height * ratio)), Image.Resampling.BILINEAR)
        pixels = np.full((SIZE, SIZE, 3), 114, dtype=np.float32)
        pixels[: scaled.height, : scaled.width] = np.asarray(scaled)[:, :, ::-1]
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]), {
            "boxes": np.array(boxes) * ratio,
            "classes": np.zeros(len(boxes), int),
        }


class SignBoxes(MeanAveragePrecision):
    """Boxes of a YOLOX head [1, 3549, 6]: centre and logarithm of the size in units of the grid, objectness, score."""

    def bind(self, model: Any) -> None:
        places = {step: np.arange(SIZE // step) for step in (8, 16, 32)}
        grids = [(step, np.stack(np.meshgrid(place, place), -1).reshape(-1, 2)) for step, place in places.items()]
        self.places = np.concatenate([grid for _, grid in grids])
        self.steps = np.concatenate([np.full((len(grid), 1), step) for step, grid in grids])

    def detections(self, outputs: Sequence[np.ndarray]) -> Detections:
        rows = outputs[0][0]
        scores = rows[:, 4] * rows[:, 5]
        likely = np.flatnonzero(scores > 0.1)
        likely = likely[np.argsort(-scores[likely], kind="stable")]
        centre = (rows[likely, :2] + self.places[likely]) * self.steps[likely]
        half = np.exp(rows[likely, 2:4]) * self.steps[likely] / 2
        boxes, classes = np.hstack([centre - half, centre + half]), np.zeros(len(likely), int)
        stays = suppressed(boxes, classes, 0.45)
        return Detections(boxes[stays], scores[likely][stays], classes[stays])
