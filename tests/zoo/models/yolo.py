"""How far INT8 finds the boxes that FP32 finds, for detectors whose output comes without suppression."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stages.runtime.detection import COCO_IOU, Detections, MeanAveragePrecision


class SameBoxes(MeanAveragePrecision):
    """COCO's AP with the FP32 model's sure boxes as the objects: no labels needed. For the head of YOLOv8 and later:
    [1, 4 + classes, N], with centre, size, and a score per class.
    """

    uses_reference = True

    def __init__(self, classes: int, sure: float = 0.25, suppression: float = 0.45, iou: Sequence[float] | float = COCO_IOU) -> None:
        """
        Args:
            classes: how many.
            sure: from which score on a box of FP32 is an object. Less sure ones of INT8 count as well, as AP has it.
            suppression: of two boxes of a class that overlap by more, the surer one stays.
        """
        super().__init__(iou=iou, min_score=0.05, labels=0)
        self.classes = classes
        self.sure = sure
        self.suppression = suppression

    def bind(self, model: Any) -> None:
        """Nothing: there is a single output."""

    def candidates(self, output: np.ndarray) -> Detections:
        """All boxes of an output."""
        rows = output[0].T
        half = rows[:, 2:4] / 2
        return Detections(np.hstack([rows[:, :2] - half, rows[:, :2] + half]), rows[:, 4:].max(axis=1), rows[:, 4:].argmax(axis=1))

    def detections(self, outputs: Sequence[np.ndarray]) -> Detections:
        boxes, scores, classes = self.candidates(outputs[0])
        likely = np.flatnonzero(scores >= self.min_score)
        likely = likely[np.argsort(-scores[likely], kind="stable")][:300]
        stays = likely[suppressed(boxes[likely], classes[likely], self.suppression)]
        return Detections(boxes[stays], scores[stays], classes[stays])

    def per_sample(self, outputs: Sequence[np.ndarray], target: Any) -> np.ndarray:
        objects = self.detections(target)
        sure = objects.scores >= self.sure
        return super().per_sample(outputs, {"boxes": objects.boxes[sure], "classes": objects.classes[sure]})


def suppressed(boxes: np.ndarray, classes: np.ndarray, overlap: float) -> list[int]:
    """Indices of the boxes [N, 4], surest first, that are left when each removes those of its class that it overlaps too much."""
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    stays: list[int] = []
    for index in range(len(boxes)):
        low, high = np.maximum(boxes[stays, :2], boxes[index, :2]), np.minimum(boxes[stays, 2:], boxes[index, 2:])
        common = np.prod(np.maximum(high - low, 0), axis=1)
        same = classes[stays] == classes[index]
        if not np.any(same & (common > overlap * (area[stays] + area[index] - common))):
            stays.append(index)
    return stays
