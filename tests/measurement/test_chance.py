"""Values of FP32 that are no baseline: zero, and what a model that knows nothing reaches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from stages.measurement import chance
from stages.runtime.detection import MeanAveragePrecision
from stages.runtime.metrics import Accuracy, CharacterAccuracy, MeanIoU, Metric, ReferenceError
from tests.runtime import models
from tests.runtime.test_detection import rows_of
from tests.runtime.test_metrics import bound


def column(*shares: tuple[float, int]) -> np.ndarray:
    """Rows [N, 1]: of each (value, count) so many."""
    return np.concatenate([np.full((count, 1), value) for value, count in shares]).astype(np.float64)


def warned(metric: Metric, rows: np.ndarray, targets: Sequence[Any] = (), int8: np.ndarray | None = None) -> list[str]:
    values = {"fp32": {"m": rows}, "int8": {"m": rows if int8 is None else int8}}
    return chance.warnings(values, {"m": metric}, targets, 0.95)


def test_wilsons_interval() -> None:
    """Against the table of R. G. Newcombe, Statistics in Medicine 17, 1998: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for right, count, expected in ((81, 263, 0.2553), (15, 148, 0.0624), (0, 20, 0.0), (1, 29, 0.0061)):
        assert chance.lower_limit(right / count, count, 0.95) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(
    ("classes", "top_k", "right", "count", "targets", "warns"),
    [
        (10, 1, 0, 100, [*range(10)] * 10, True),
        (10, 1, 10, 100, [*range(10)] * 10, True),
        (10, 1, 15, 100, [*range(10)] * 10, True),  # Wilson's interval begins at 9.3 %
        (10, 1, 16, 100, [*range(10)] * 10, False),  # at 10.1 %
        (10, 1, 90, 100, [*range(10)] * 10, False),
        (10, 5, 55, 100, [*range(10)] * 10, True),  # five guesses of ten
        (10, 5, 65, 100, [*range(10)] * 10, False),
        (2, 1, 91, 100, [0] * 90 + [1] * 10, True),  # always 0 is right in nine of ten
        (2, 1, 98, 100, [0] * 90 + [1] * 10, False),
        (1000, 1, 1, 20, [*range(20)], True),  # one of twenty is what any constant answer gets
        (1000, 1, 5, 20, [*range(20)], False),
        (2, 1, 3, 3, [0, 1, 0], True),  # three samples tell nothing
        (-1, 1, 60, 100, [*range(10)] * 10, False),  # how many classes is not known
        (-1, 1, 12, 100, [*range(10)] * 10, True),
    ],
)
def test_accuracy_at_the_level_of_chance(classes: int, top_k: int, right: int, count: int, targets: list[int], warns: bool) -> None:
    found = warned(bound(Accuracy(top_k), 1, classes), column((1, right), (0, count - right)), targets)
    assert len(found) == warns
    if warns and right:
        assert found[0].startswith(f"m of FP32 is {100 * right / count:.2f} %, which {count} samples cannot tell from the ")


def test_what_chance_is() -> None:
    assert bound(Accuracy(), 1, 4).chance([0.3, 0.3, 0.2, 0.2]) == 0.3
    assert bound(Accuracy(2), 1, 4).chance([0.3, 0.3, 0.2, 0.2]) == pytest.approx(0.6)
    assert bound(Accuracy(), 1, 4).chance([]) == 0.25
    assert Metric().chance([1.0]) is None
    assert chance.frequencies(["b", "a", None, "b", "c"]) == [0.5, 0.25, 0.25]
    assert chance.frequencies([None, None]) == []


def test_a_detector_that_numbers_classes_otherwise() -> None:
    """COCO's category ids where targets count from 0: every box is right, and no class."""
    metric = MeanAveragePrecision(classes=91)
    metric.indices = [0, 1, 2]
    target = {"boxes": np.array([[10, 10, 50, 40], [60, 60, 100, 100.0]]), "classes": np.array([0, 2]), "crowd": np.zeros(2, bool)}
    by_order = (target["boxes"], np.array([0.9, 0.8]), target["classes"])
    by_id = (target["boxes"], np.array([0.9, 0.8]), np.array([1, 3]))
    assert warned(metric, rows_of(metric, [(target, by_order)])) == []
    (warning,) = warned(metric, rows_of(metric, [(target, by_id)]))
    assert warning.startswith("m of FP32 is 0.00 %, that of a model that finds nothing: a drop from there says nothing about quantization")
    assert "class numbers start at 0" in warning


class Negative(Metric):
    """A metric of which zero is the best."""


def test_zero_that_is_the_best() -> None:
    zero, worse = column((0, 5)), column((0, 3), (-1, 2))
    assert len(warned(Negative(), zero)) == 1
    assert len(warned(Negative(), zero, int8=column((1, 5)))) == 1
    assert warned(Negative(), zero, int8=worse) == []
    assert warned(ReferenceError(), zero) == []


@pytest.mark.parametrize(("edits", "warns"), [(9, False), (10, True), (12, True)])
def test_texts_of_which_nothing_is_right(edits: int, warns: bool) -> None:
    assert len(warned(CharacterAccuracy(), np.array([[edits, 10.0]]))) == warns


@pytest.mark.parametrize(
    ("found", "warns"),
    [
        ([[0, 0], [0, 0]], True),  # background everywhere: 0.5 for one class, 0 for the other
        ([[1, 0], [1, 0]], True),  # the other way round: nothing is right
        ([[0, 0], [0, 1]], False),
    ],
)
def test_segmentation_of_one_class(found: list[list[int]], warns: bool) -> None:
    metric = MeanIoU(classes=3)
    metric.bind(models.identity(1, 2, 2, dtype=np.int64))
    row = metric.per_sample([np.array([found])], np.array([[0, 1], [0, 1]]))
    assert len(warned(metric, np.stack([row, row]))) == warns


def test_an_image_of_one_class_that_is_found() -> None:
    metric = MeanIoU(classes=3)
    metric.bind(models.identity(1, 2, 2, dtype=np.int64))
    assert warned(metric, np.stack([metric.per_sample([np.ones((1, 2, 2), int)], np.ones((2, 2), int))])) == []
