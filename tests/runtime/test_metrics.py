"""Metrics against numbers worked out by hand or in another way."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as operations

from stages.common.errors import UserError
from stages.runtime.metrics import Accuracy, MeanIoU, Metric, ReferenceError, find_output
from tests.runtime import models


def bound(metric: Metric, *shape: int, dtype: type = np.float32) -> Any:
    """The metric for a model whose output is of this shape."""
    metric.bind(models.identity(*shape, dtype=dtype))
    return metric


def rows_of(metric: Metric, outputs: np.ndarray, targets: Any) -> np.ndarray:
    rows = [np.atleast_1d(metric.per_sample([output], target)) for output, target in zip(outputs, targets, strict=True)]
    return np.stack(rows).astype(np.float64)


# ------------------------------------------------------------------------------------------------ agreement


def agreement(metric: Metric, ours: Any, theirs: Any) -> float | None:
    return metric.agreement([np.asarray(ours)], [np.asarray(theirs)])


def test_agreement_is_the_score_with_the_other_models_prediction_as_target() -> None:
    scores, same, other = (np.array([values], np.float32) for values in ([0, 3, 1, 2], [1, 9, 8, 7], [1, 2, 8, 7]))
    accuracy = bound(Accuracy(), 1, 4)
    assert (agreement(accuracy, same, scores), agreement(accuracy, other, scores)) == (1.0, 0.0)
    single = bound(Accuracy(threshold=0.5), 1, 1)
    assert [agreement(single, [[ours]], [[0.9]]) for ours in (0.6, 0.4)] == [1.0, 0.0]
    # Of six pixels one is another class: unions of 4 and 3, intersections of 3 and 2.
    first, second = np.array([[0, 0, 0, 1, 1, 1]]), np.array([[0, 0, 0, 0, 1, 1]])
    as_scores = [np.stack([1 - classes, classes], axis=1)[:, :, None].astype(np.float32) for classes in (first, second)]
    iou = bound(MeanIoU(), 1, 2, 1, 6)
    assert agreement(iou, as_scores[1], as_scores[0]) == pytest.approx((3 / 4 + 2 / 3) / 2)


def test_agreement_of_what_names_no_prediction() -> None:
    class Likeness(Metric):
        uses_reference = True

        def per_sample(self, outputs: Any, target: Any) -> float:
            return float(np.sum(outputs[0] * target[0]))

    class Own(Metric):
        def per_sample(self, outputs: Any, target: Any) -> float:
            return 1.0

    assert agreement(Likeness(), [0.5, 0.5], [1.0, 0.0]) == 0.5  # it compares with the reference by itself
    assert agreement(Own(), [1.0], [1.0]) is None
    assert agreement(bound(ReferenceError(), 1, 2), [[1.0, 2.0]], [[1.0, 2.0]]) is None  # a distance


# ------------------------------------------------------------------------------------------------ accuracy


@pytest.mark.parametrize("top_k", [1, 2, 5])
@pytest.mark.parametrize("shape", [(1, 7), (1, 7, 1, 1), (1, 1, 7)])
def test_accuracy_is_the_share_among_the_highest(top_k: int, shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(top_k)
    scores = generator.normal(size=(200, *shape)).astype(np.float32)
    targets = [int(label) for label in generator.integers(0, 7, 200)]
    metric = bound(Accuracy(top_k), *shape)
    best = np.argsort(scores.reshape(200, 7), axis=1)[:, -top_k:]
    expected = np.mean([target in row for target, row in zip(targets, best, strict=True)])
    rows = rows_of(metric, scores, targets)
    assert metric.value(rows) == pytest.approx(expected, abs=1e-12)
    np.testing.assert_array_equal(metric.score(rows), rows[:, 0])


def test_ties_do_not_count_as_recognised() -> None:
    metric = bound(Accuracy(1), 1, 4)
    assert metric.per_sample([np.zeros((1, 4), np.float32)], 0) == 0
    assert metric.per_sample([np.array([[0, 1, 1, 0]], np.float32)], 1) == 0
    assert bound(Accuracy(2), 1, 4).per_sample([np.array([[0, 1, 1, 0]], np.float32)], 1) == 1


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (7, r"label 7 is out of range: the model has 7 classes, 0 to 6"),
        (-1, r"label -1 is out of range"),
        (None, r"needs a class index as label, not an unlabelled sample"),
        ("cat", r"needs a class index as label, not str 'cat'"),
        (1.5, r"needs a class index as label, not float 1\.5"),
        (float("nan"), r"needs a class index as label, not float nan"),
        (True, r"not bool True"),
        (np.zeros(3), r"not an array of float64 \[3\]$"),
        (np.eye(7)[2], r"not an array of float64 \[7\]; of one-hot labels give the argmax"),
        (np.array([[7]]), r"label 7 is out of range"),
    ],
)
def test_labels_that_are_no_class(target: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        bound(Accuracy(), 1, 7).check(target)


def test_labels_that_are_classes() -> None:
    metric, scores = bound(Accuracy(), 1, 7), np.arange(7, dtype=np.float32)[None]
    rows_of_labels = (np.array([6]), np.array([[6.0]], np.float32), [6], ([6],), np.array(6))  # as of y [N, 1]
    for label in (0, 6, np.int64(3), np.uint8(1), 6.0, *rows_of_labels):
        metric.check(label)
        assert metric.per_sample([scores], label) == (np.max(label) == 6)
    bound(Accuracy(), 1, -1).check(10**6)  # the number of classes is not known


def single(*shape: int, last: str = "sigmoid") -> ov.Model:
    """A model with one score per sample or pixel."""
    x = operations.parameter(list(shape), np.float32, name="x")
    score = {"sigmoid": operations.sigmoid, "relu": operations.relu}[last](x)
    return models.named(ov.Model([operations.reshape(score, operations.constant([1, *shape[1:]]), False)], [x]))


@pytest.mark.parametrize(
    ("last", "threshold", "scores"),
    [("sigmoid", None, [0.2, 0.5, 0.51, 0.9]), ("sigmoid", 0.7, [0.2, 0.5, 0.7, 0.9]), ("relu", 0.0, [-3.0, 0.0, 0.1, 5.0])],
)
def test_a_single_score_tells_two_classes_apart(last: str, threshold: float | None, scores: list[float]) -> None:
    metric = Accuracy(threshold=threshold)
    metric.bind(single(1, 1, last=last))
    above = [score > (0.5 if threshold is None else threshold) for score in scores]
    for label in (0, 1, False, True, 1.0, np.array([1.0]), np.array([[True]])):
        metric.check(label)
        found = [metric.per_sample([np.array([[score]], np.float32)], label) for score in scores]
        assert found == [float(one == bool(np.max(label))) for one in above]
    with pytest.raises(UserError, match=r"label 2 is out of range: the model has 2 classes, 0 to 1"):
        metric.check(2)


def test_what_a_single_score_means_must_be_known() -> None:
    with pytest.raises(UserError, match=r"of a single score tell from which threshold on the class is 1, e\.g\. 0\.5 for a probability"):
        Accuracy().bind(single(1, 1, last="relu"))
    with pytest.raises(UserError, match=r"has shape \[1, 7\]: threshold is 0\.5, but is for a single score"):
        bound(Accuracy(threshold=0.5), 1, 7)


@pytest.mark.parametrize("shape", [(1, 3, 4), (1, 1), (1,)])
def test_outputs_that_are_no_scores(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"Accuracy: output 0 has shape"):
        bound(Accuracy(), *shape)


def test_top_k_must_leave_something_out() -> None:
    with pytest.raises(UserError, match="top_k is 7, but the model has 7 classes"):
        bound(Accuracy(7), 1, 7)
    with pytest.raises(UserError, match="top_k is 0"):
        Accuracy(0)


def test_a_score_that_is_not_a_number_is_not_hidden() -> None:
    assert np.isnan(bound(Accuracy(), 1, 3).per_sample([np.array([[5, np.nan, 1]], np.float32)], 0))


# ------------------------------------------------------------------------------------------------ segmentation


def mean_iou(found: np.ndarray, labels: np.ndarray, classes: int, ignore: int | None) -> float:
    """By the definition, pixel by pixel."""
    shares = []
    for kind in range(classes):
        pairs = [(f, t) for f, t in zip(found.ravel(), labels.ravel(), strict=True) if t != ignore]
        union = sum(f == kind or t == kind for f, t in pairs)
        if union:
            shares.append(sum(f == kind and t == kind for f, t in pairs) / union)
    return float(np.mean(shares))


@pytest.mark.parametrize("ignore", [None, 255])
@pytest.mark.parametrize("axis", [1, -1])
def test_mean_iou_over_all_samples(ignore: int | None, axis: int) -> None:
    generator = np.random.default_rng(1)
    scores = generator.normal(size=(12, 1, 5, 6, 7)).astype(np.float32)
    labels = generator.integers(0, 4, (12, 6, 7))  # class 4 is found, but never right
    if ignore is not None:
        labels[generator.random(labels.shape) < 0.2] = ignore
    outputs = np.moveaxis(scores, 2, -1) if axis == -1 else scores
    metric = bound(MeanIoU(ignore_label=ignore, class_axis=axis), *outputs.shape[1:])
    for label in labels:
        metric.check(label)
    rows = rows_of(metric, outputs, labels)
    found = scores.argmax(axis=2)[:, 0]
    assert metric.value(rows) == pytest.approx(mean_iou(found, labels, 5, ignore))
    np.testing.assert_allclose(metric.score(rows), [mean_iou(f, t, 5, ignore) for f, t in zip(found, labels, strict=True)])


@pytest.mark.parametrize("form", ["[H, W]", "[1, H, W]", "[H, W, 1]", "[1, 1, H, W]"])
@pytest.mark.parametrize("kind", [np.uint8, np.float32, bool])
@pytest.mark.parametrize(("axis", "shape"), [(1, (1, 1, 2, 3)), (-1, (1, 2, 3, 1))])
def test_mean_iou_of_one_score_per_pixel(form: str, kind: type, axis: int, shape: tuple[int, ...]) -> None:
    """3 of 4 pixels of the object found, and one beside it; 1 of 2 pixels of the rest."""
    plain: Any = np.array([[1, 1, 0], [1, 1, 0]], dtype=kind)
    label = {"[H, W]": plain, "[1, H, W]": plain[None], "[H, W, 1]": plain[..., None], "[1, 1, H, W]": plain[None, None]}[form]
    output = np.array([0.9, 0.6, 0.5, 0.51, 0.1, 0.8], np.float32).reshape(shape)
    for metric, model in (
        (MeanIoU(class_axis=axis), single(*shape)),
        (MeanIoU(class_axis=axis, threshold=0.5), single(*shape, last="relu")),
        (MeanIoU(class_axis=axis, classes=1), single(*shape)),
    ):
        metric.bind(model)
        metric.check(label)
        assert metric.value(rows_of(metric, output[None], [label])) == pytest.approx((3 / 5 + 1 / 3) / 2)
    with pytest.raises(UserError, match="of a single score tell from which threshold"):
        MeanIoU(class_axis=axis).bind(single(*shape, last="relu"))


def test_mean_iou_of_a_class_map() -> None:
    metric = bound(MeanIoU(classes=3), 1, 2, 2, dtype=np.int64)
    rows = rows_of(metric, np.array([[[[0, 1], [2, 9]]]]), np.array([[[0, 1], [1, 2]]]))
    assert metric.value(rows) == pytest.approx((1 / 1 + 1 / 2 + 0 / 2) / 3)


def test_nothing_but_ignored_pixels_is_nothing_wrong() -> None:
    metric = bound(MeanIoU(ignore_label=9), 1, 2, 1, 1)
    rows = rows_of(metric, np.zeros((1, 1, 2, 1, 1), np.float32), np.array([[[9]]]))
    assert metric.value(rows) == 1


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (np.full((4, 4), 3), r"label 3 is out of range: MeanIoU has 3 classes, 0 to 2"),
        (np.full((4, 4), -2), r"label -2 is out of range"),
        (np.full((4, 4), 255), r"label 255 is out of range: .*; ignore_label leaves such pixels out"),
        (np.zeros((4, 5), int), r"the label map is \[4, 5\], but the model's output is \[4, 4\]"),
        (np.full((4, 4), 0.5), r"needs a map of class indices as label, not an array of float64 \[4, 4\]"),
        (np.zeros((2, 4, 4), int), r"needs a map of class indices as label, not an array of int64 \[2, 4, 4\]"),
        (np.full((1, 4, 4), 3.0), r"label 3 is out of range"),
        (2, r"needs a map of class indices as label, not int 2"),
        (None, r"not an unlabelled sample"),
    ],
)
def test_labels_that_are_no_class_map(target: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        bound(MeanIoU(), 1, 3, 4, 4).check(target)


def test_models_that_do_not_segment() -> None:
    with pytest.raises(UserError, match=r"class_axis 4 does not exist in output 0 of shape \[1, 3, 4, 4\]"):
        bound(MeanIoU(class_axis=4), 1, 3, 4, 4)
    with pytest.raises(UserError, match=r"classes is 4, but output 0 .* has 3"):
        bound(MeanIoU(classes=4), 1, 3, 4, 4)
    with pytest.raises(UserError, match="give the number of classes"):
        bound(MeanIoU(), 1, 4, 4, dtype=np.int64)


# ------------------------------------------------------------------------------------------------ error against FP32


def test_reference_error_relative() -> None:
    metric = bound(ReferenceError(), 1, 3)
    reference, output = np.array([[3, 4, 0]], np.float32), np.array([[3, 4, 1]], np.float32)
    assert metric.per_sample([output], [reference]) == pytest.approx(1 / 5)
    assert metric.per_sample([reference], [reference]) == 0
    assert metric.per_sample([output], [np.zeros((1, 3), np.float32)]) == pytest.approx(26**0.5)
    assert not metric.higher_is_better
    assert metric.uses_reference
    np.testing.assert_array_equal(metric.score(np.array([[0.2], [0.0]])), [-0.2, 0])


def test_reference_error_mean_squared() -> None:
    metric = bound(ReferenceError("mean_squared"), 1, 3)
    assert metric.per_sample([np.array([[1, 2, 3]], np.uint8)], [np.array([[2, 2, 5]], np.uint8)]) == pytest.approx(5 / 3)


def two_outputs() -> ov.Model:
    x = operations.parameter([1, 2], np.float32, name="x")
    first, second = operations.relu(x), operations.negative(x)
    first.set_friendly_name("first")
    second.set_friendly_name("second")
    return models.named(ov.Model([first, second], [x]))


def test_reference_error_of_several_outputs_is_their_mean() -> None:
    outputs = [np.array([[1, 0]], np.float32), np.array([[0, 3]], np.float32)]
    reference = [np.array([[2, 0]], np.float32), np.array([[0, 4]], np.float32)]
    metric = ReferenceError()
    metric.bind(two_outputs())
    assert metric.per_sample(outputs, reference) == pytest.approx((1 / 2 + 1 / 4) / 2)
    metric = ReferenceError(output="second")
    metric.bind(two_outputs())
    assert metric.per_sample(outputs, reference) == pytest.approx(1 / 4)


@pytest.mark.parametrize("kind", ["relative", "mean_squared"])
def test_reference_error_of_nothing_is_nothing(kind: str) -> None:
    """Both models find nothing."""
    assert bound(ReferenceError(kind), -1, 3).per_sample([np.zeros((0, 3), np.float32)], [np.zeros((0, 3), np.float32)]) == 0.0


def test_reference_error_of_another_shape() -> None:
    with pytest.raises(UserError, match=r"shape \[1, 2\] differs from FP32's \[1, 3\]"):
        bound(ReferenceError(), 1, 3).per_sample([np.zeros((1, 2))], [np.zeros((1, 3))])
    with pytest.raises(UserError, match="kind is 'l1', but must be relative or mean_squared"):
        ReferenceError("l1")


# ------------------------------------------------------------------------------------------------ common


@pytest.mark.parametrize(("output", "index"), [(0, 0), (1, 1), (-1, 1), ("first", 0), ("second", 1)])
def test_outputs_by_index_and_name(output: str | int, index: int) -> None:
    assert find_output(two_outputs(), output) == index


@pytest.mark.parametrize("output", [2, -3, "third"])
def test_outputs_that_do_not_exist(output: str | int) -> None:
    with pytest.raises(UserError, match=r"the model has no output .*; its outputs are: first, second"):
        find_output(two_outputs(), output)


def test_a_metric_of_ones_own_needs_per_sample_only() -> None:
    class Mine(Metric):
        higher_is_better = False

        def per_sample(self, outputs: Any, target: Any) -> float:
            return float(outputs[0].sum() - target)

    rows = rows_of(bound(Mine(), 1, 2), np.array([[[1, 2]], [[3, 4]]], np.float32), [1, 2])
    assert Mine().value(rows) == 3.5
    np.testing.assert_array_equal(Mine().score(rows), [-2, -5])
