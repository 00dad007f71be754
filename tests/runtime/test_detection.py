"""COCO's mean average precision: the same number as pycocotools, whatever is detected."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from stages.common.errors import UserError
from stages.runtime.detection import MeanAveragePrecision

OBJECTS: dict[str, Any] = {"boxes": [[10, 10, 50, 40], [60, 60, 100, 100]], "classes": [0, 0]}

Detected = tuple[np.ndarray, np.ndarray, np.ndarray]


def random_image(random: np.random.Generator, classes: int, crowds: bool) -> tuple[dict[str, Any], Detected]:
    """Objects, and detections near some of them, with equal scores and equal boxes among them."""
    objects = int(random.integers(0, 8))
    corner = random.uniform(0, 80, (objects, 2))
    boxes = np.hstack([corner, corner + random.uniform(5, 40, (objects, 2))])
    labels = random.integers(0, classes, objects)
    crowd = random.random(objects) < (0.3 if crowds else 0)
    count = int(random.integers(0, 14))
    chosen = random.integers(0, objects, count) if objects else np.zeros(count, dtype=np.int64)
    near = boxes[chosen] + random.normal(0, 3, (count, 4)) if objects else random.uniform(0, 50, (count, 4))
    near = np.hstack([np.minimum(near[:, :2], near[:, 2:]), np.maximum(near[:, :2], near[:, 2:]) + 0.5])
    guessed = np.where(random.random(count) < 0.8, labels[chosen], random.integers(0, classes, count)) if objects else labels[:0]
    guessed = np.resize(guessed, count) if objects else random.integers(0, classes, count)
    scores = np.round(random.random(count), 1)
    return {"boxes": boxes, "classes": labels, "crowd": crowd}, (near, scores, guessed)


def by_pycocotools(images: Sequence[tuple[dict[str, Any], Detected]], classes: int, iou: Sequence[float] | None = None) -> float:
    """AP over all areas with at most 100 detections."""

    def corners(box: np.ndarray) -> list[float]:
        return [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]

    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image, (target, (boxes, scores, labels)) in enumerate(images):
        for box, label, crowd in zip(target["boxes"], target["classes"], target["crowd"], strict=True):
            bbox = corners(box)
            entry = {"image_id": image, "category_id": int(label), "bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": int(crowd)}
            annotations.append({"id": len(annotations) + 1, **entry})
        for box, score, label in zip(boxes, scores, labels, strict=True):
            results.append({"image_id": image, "category_id": int(label), "bbox": corners(box), "score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": image} for image in range(len(images))],
            "annotations": annotations,
            "categories": [{"id": label, "name": str(label)} for label in range(classes)],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        if iou is not None:
            evaluation.params.iouThrs = np.array(iou)
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    return float(precision[precision > -1].mean())


class Given(MeanAveragePrecision):
    """Takes detections as they are."""

    def detections(self, outputs: Any) -> Any:
        return outputs


def rows_of(metric: MeanAveragePrecision, images: Sequence[tuple[dict[str, Any], Detected]]) -> np.ndarray:
    from stages.runtime.detection import Detections

    return np.stack([np.asarray(metric.per_sample(Detections(*found), target)) for target, found in images])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("classes", "crowds"), [(1, False), (1, True), (4, True)])
def test_equals_pycocotools(seed: int, classes: int, crowds: bool) -> None:
    random = np.random.default_rng([seed, classes, crowds])
    images = [random_image(random, classes, crowds) for _ in range(25)]
    metric = Given(classes=classes)
    rows = rows_of(metric, images)
    assert metric.value(rows) == pytest.approx(by_pycocotools(images, classes), abs=1e-12)
    # Any draw of images, as the bootstrap makes them, from the same rows.
    draw = random.integers(0, len(images), len(images))
    assert metric.value(rows[draw]) == pytest.approx(by_pycocotools([images[index] for index in draw], classes), abs=1e-12)


@pytest.mark.parametrize("iou", [[0.5], [0.75, 0.5]])
def test_other_thresholds_equal_pycocotools(iou: list[float]) -> None:
    random = np.random.default_rng(3)
    images = [random_image(random, 2, True) for _ in range(30)]
    metric = Given(classes=2, iou=iou)
    assert metric.value(rows_of(metric, images)) == pytest.approx(by_pycocotools(images, 2, iou), abs=1e-12)


def test_by_hand() -> None:
    metric = Given(iou=0.5)
    exact = (np.array(OBJECTS["boxes"], dtype=float), np.array([0.9, 0.8]), np.array([0, 0]))
    (row,) = rows_of(metric, [(OBJECTS, exact)])
    assert metric.value(row[None]) == 1.0
    assert metric.score(row[None]) == 1.0
    # The second object is missed: precision 1 up to a recall of one half, i.e. at 51 of the 101 recalls.
    (half,) = rows_of(metric, [(OBJECTS, tuple(part[:1] for part in exact))])  # type: ignore[list-item]
    assert metric.value(half[None]) == pytest.approx(51 / 101)
    assert metric.score(half[None]) == pytest.approx(2 / 3)
    # A false detection that is surer than the true ones.
    boxes = np.vstack([[[200.0, 200, 210, 210]], exact[0]])
    (late,) = rows_of(metric, [(OBJECTS, (boxes, np.array([0.95, 0.9, 0.8]), np.zeros(3, dtype=int)))])
    assert metric.value(late[None]) == pytest.approx(2 / 3)
    (nothing,) = rows_of(metric, [(OBJECTS, (np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=int)))])
    assert (metric.value(nothing[None]), metric.score(nothing[None])[0]) == (0.0, 0.0)


def test_an_image_without_objects() -> None:
    empty: dict[str, Any] = {"boxes": np.zeros((0, 4)), "classes": np.zeros(0, dtype=int)}
    metric = Given()
    metric.check(empty)
    nothing, wrong = rows_of(
        metric,
        [
            (empty, (np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=int))),
            (empty, (np.array([[0.0, 0, 9, 9]]), np.ones(1), np.zeros(1, dtype=int))),
        ],
    )
    assert metric.score(np.stack([nothing, wrong])).tolist() == [1.0, 0.0]
    assert np.isnan(metric.value(nothing[None]))


def test_min_score_and_max_detections() -> None:
    boxes = np.array([[0.0, 0, 5, 5], *OBJECTS["boxes"]])
    found = (boxes, np.array([0.2, 0.9, 0.1]), np.zeros(3, dtype=int))
    assert Given(iou=0.5, min_score=0.15).value(rows_of(Given(iou=0.5, min_score=0.15), [(OBJECTS, found)])) == pytest.approx(51 / 101)
    metric = Given(iou=0.5, max_detections=1)
    (row,) = rows_of(metric, [(OBJECTS, found)])
    assert row.shape == (1 + 4,)
    assert metric.value(row[None]) == pytest.approx(51 / 101)


def test_a_broken_model_has_no_value() -> None:
    metric = Given()
    rows = rows_of(metric, [(OBJECTS, (np.full((1, 4), np.nan), np.ones(1), np.zeros(1, dtype=int)))])
    assert np.isnan(metric.value(rows))


def detector(count: int = 3, labels: bool = True) -> ov.Model:
    """A model with the outputs of a detector after suppression."""
    image = op.parameter([1, 3, 8, 8], name="image")
    outputs = []
    for name, shape in (("boxes", [1, count, 4]), ("scores", [1, count]), ("labels", [1, count]))[: 3 if labels else 2]:
        zero = op.multiply(op.reduce_mean(image, op.constant([0, 1, 2, 3])), op.constant(np.float32(0)))
        value = op.add(zero, op.constant(np.ones(shape, dtype=np.float32)))
        value.output(0).set_names({name})
        outputs.append(value)
    return ov.Model(outputs, [image], "detector")


def test_reads_outputs_by_name() -> None:
    metric = MeanAveragePrecision(classes=2, boxes="boxes", scores="scores", labels="labels")
    metric.bind(detector())
    boxes = np.array([[OBJECTS["boxes"][0], OBJECTS["boxes"][1], [0, 0, 1, 1]]], dtype=np.float32)
    outputs = [boxes, np.array([[0.9, 0.8, 0.0]], dtype=np.float32), np.array([[0, 1, -1]], dtype=np.float32)]
    target = {"boxes": OBJECTS["boxes"], "classes": [0, 1]}
    assert metric.value(metric.per_sample(outputs, target)[None]) == 1.0
    with pytest.raises(UserError, match="no output 'labels'"):
        metric.bind(detector(labels=False))
    single = MeanAveragePrecision(labels=None)
    single.bind(detector(labels=False))
    assert single.value(single.per_sample(outputs[:2], OBJECTS)[None]) == 1.0
    with pytest.raises(UserError, match=r"shapes \[1, 3\], \[1, 3, 4\] are no boxes.*override `detections`"):
        swapped = MeanAveragePrecision(boxes=1, scores=0, labels=None)
        swapped.bind(detector(labels=False))
        swapped.per_sample([outputs[0], outputs[1]], OBJECTS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"classes": 0}, "classes is 0"),
        ({"iou": 1.5}, "iou is 1.5"),
        ({"iou": []}, r"iou is \[\]"),
        ({"classes": 2, "labels": None}, "labels must name"),
    ],
)
def test_refused_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        MeanAveragePrecision(**arguments)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (3, "needs a dictionary"),
        ({"boxes": []}, "needs a dictionary"),
        ({**OBJECTS, "area": []}, "needs a dictionary"),
        ({"boxes": [[0, 0, 1, 1]], "classes": [0, 0]}, "boxes have shape"),
        ({"boxes": [[5, 0, 1, 1]], "classes": [0]}, "left <= right"),
        ({"boxes": [[0, 0, 1, 1]], "classes": [1]}, "label 1 is out of range"),
    ],
)
def test_refused_targets(target: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Given().check(target)


def test_agreement_takes_the_other_models_detections_for_objects() -> None:
    metric = MeanAveragePrecision(min_score=0.5, iou=0.5)
    metric.indices = [0, 1, 2]
    boxes = np.array([[[0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]]], np.float32)
    theirs = [boxes, np.array([[0.9, 0.8, 0.1]], np.float32), np.zeros((1, 3), np.float32)]
    near = [boxes + 1, np.array([[0.6, 0.7, 0.2]], np.float32), np.zeros((1, 3), np.float32)]
    one = [boxes, np.array([[0.9, 0.1, 0.1]], np.float32), np.zeros((1, 3), np.float32)]
    assert metric.agreement(near, theirs) == 1.0
    assert metric.agreement(one, theirs) == pytest.approx(2 * 1 / (2 + 1))  # one of two objects, by one detection
    assert metric.agreement(theirs, [boxes, np.array([[np.nan] * 3], np.float32), theirs[2]]) is None
