"""Metrics: what a model's outputs are worth, sample by sample.

A metric turns one sample's outputs into a short row of numbers, and all rows into one value. Rows are kept, so that two
models are compared sample by sample, intervals come from resampling rows, and the hardest samples are known.
A metric of your own is a class like these, named by `_target_` in conf/metric/; subclassing `Metric` gives the defaults.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov

from stages.common.errors import UserError
from stages.runtime.ctc import CtcDecoder, edit_distance
from stages.runtime.labels import class_index, class_map, only, shown


class Metric:
    """Base of all metrics: the mean of one number per sample, higher is better, judged against the sample's target."""

    higher_is_better: bool = True
    uses_reference: bool = False  # True: the target of `per_sample` is the list of the FP32 model's outputs

    def bind(self, model: ov.Model) -> None:
        """Read what the metric must know of the model, e.g. the number of classes. Called once, before anything else."""

    def check(self, target: Any) -> None:
        """Raise UserError when `target` cannot be a target of this metric. Not called when the metric uses a reference."""

    def per_sample(self, outputs: Sequence[np.ndarray], target: Any) -> np.ndarray | float:
        """One sample's row of values, of the same length for every sample; `outputs` in the order of the model's outputs."""
        raise NotImplementedError

    def value(self, rows: np.ndarray) -> float:
        """The metric over samples: rows [N, k] -> one number."""
        return float(rows[:, 0].mean())

    def prediction(self, outputs: Sequence[np.ndarray]) -> Any:
        """What one sample's outputs say, as a target of this metric; None where that cannot be told."""
        return None

    def agreement(self, outputs: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> float | None:
        """How far one sample's outputs say what those of another model say: its score with their prediction as the target.

        None where the metric names no prediction, or where it is a distance between outputs, and no agreement.
        """
        if self.uses_reference and not self.higher_is_better:
            return None
        target = list(reference) if self.uses_reference else self.prediction(reference)
        return None if target is None else float(self.score(np.atleast_1d(self.per_sample(outputs, target))[None])[0])

    def chance(self, shares: Sequence[float]) -> float | None:
        """What guessing reaches, or giving the most frequent answers always; None where that is not known.

        shares: how often each target occurs among the samples, the most frequent first, as shares of all.
        """
        return None

    def finds_nothing(self, rows: np.ndarray) -> bool:
        """Whether rows [N, k] are those of a model that is right about nothing."""
        return self.higher_is_better and self.value(rows) == 0.0

    def score(self, rows: np.ndarray) -> np.ndarray:
        """How good each sample is, the higher the better: rows [N, k] -> [N]. Ranks the hardest samples."""
        return rows[:, 0] if self.higher_is_better else -rows[:, 0]


class OutputMetric(Metric):
    """A metric of one of the model's outputs."""

    def __init__(self, output: str | int = 0) -> None:
        """
        Args:
            output: name or index of the model output that is judged.
        """
        self.output = output
        self.index = output if isinstance(output, int) else 0
        self.shape: tuple[int, ...] = ()  # of the output; -1 where it is dynamic

    def bind(self, model: ov.Model) -> None:
        self.index = find_output(model, self.output)
        shape = model.outputs[self.index].get_partial_shape()
        if shape.rank.is_dynamic:
            raise UserError(f"{type(self).__name__}: the rank of the model's output {self.output!r} is not known")
        self.shape = tuple(size.get_length() if size.is_static else -1 for size in shape)


class Accuracy(OutputMetric):
    """Share of samples whose class is among the `top_k` highest scores. Target: the class index.

    A model with a single score tells two classes apart: 1 where the score is above `threshold`, else 0.
    """

    def __init__(self, top_k: int = 1, output: str | int = 0, threshold: float | None = None) -> None:
        """
        Args:
            threshold: of a single score, e.g. 0.5 for a probability, 0 for a logit; by default 0.5 where a Sigmoid gives it.
        """
        super().__init__(output)
        if top_k < 1:
            raise UserError(f"Accuracy: top_k is {top_k}, but must be at least 1")
        self.top_k = top_k
        self.threshold = threshold
        self.classes = -1

    def bind(self, model: ov.Model) -> None:
        super().bind(model)
        # Scores come as [1, C], [1, C, 1, 1] or [1, 1, 1, C]: one dimension that is not 1.
        sizes = [size for size in self.shape[1:] if size != 1]
        if len(sizes) > 1:
            raise UserError(f"Accuracy: output {self.output!r} has shape {list(self.shape)}, not one score per class")
        self.classes = sizes[0] if sizes else 2
        self.threshold = single_threshold(self, model, self.threshold, single=not sizes)
        if self.top_k >= self.classes > 0:
            raise UserError(f"Accuracy: top_k is {self.top_k}, but the model has {self.classes} classes")

    def check(self, target: Any) -> None:
        label = class_index(target, two=self.classes == 2)
        if label is None:
            hint = "; of one-hot labels give the argmax" if np.size(target) == self.classes > 1 else ""
            raise UserError(f"Accuracy needs a class index as label, not {shown(target)}{hint}")
        if label < 0 or 0 < self.classes <= label:
            raise UserError(f"label {label} is out of range: the model has {self.classes} classes, 0 to {self.classes - 1}")

    def per_sample(self, outputs: Sequence[np.ndarray], target: Any) -> float:
        scores = outputs[self.index].ravel()
        if not np.isfinite(scores).all():
            return float("nan")
        target = class_index(target, two=self.classes == 2)
        if self.threshold is not None:
            return float((scores[0] > self.threshold) == target)
        # Ties are lost: a model that scores all classes alike has recognised nothing.
        return float(np.count_nonzero(scores >= scores[target]) <= self.top_k)

    def prediction(self, outputs: Sequence[np.ndarray]) -> int:
        scores = outputs[self.index].ravel()
        return int(scores.argmax()) if self.threshold is None else int(scores[0] > self.threshold)

    def chance(self, shares: Sequence[float]) -> float | None:
        guessed = self.top_k / self.classes if self.classes > 0 else 0.0
        return max(guessed, sum(shares[: self.top_k]))


class ExactMatch(OutputMetric):
    """Share of text lines that a CTC recogniser reads without any error. Target: the text."""

    def __init__(self, output: str | int = 0, characters: str | None = None, blank: int = 0, ignore_space: bool = False) -> None:
        """
        Args:
            ignore_space: compare without spaces, as PaddleOCR's own evaluation does: its recognisers put them in and leave them
                out at random, above all at the ends of a line.
            characters: text file with one character per line; by default the model's own list (rt_info framework/character).
            blank: class of the CTC blank; -1 for the last one.
        """
        super().__init__(output)
        self.characters = characters
        self.blank = blank
        self.ignore_space = ignore_space
        self.decoder = CtcDecoder([])

    def bind(self, model: ov.Model) -> None:
        super().bind(model)
        self.decoder = CtcDecoder.of_model(model, self.shape, self.characters, self.blank)

    def check(self, target: Any) -> None:
        if not isinstance(text := only(target), str) or not text.strip():
            raise UserError(f"{type(self).__name__} needs the text as label, not {shown(target)}")

    def per_sample(self, outputs: Sequence[np.ndarray], target: Any) -> float:
        read, text = self._texts(outputs, target)
        return float("nan") if read is None else float(read == text)

    def prediction(self, outputs: Sequence[np.ndarray]) -> str | None:
        return self.decoder(outputs[self.index]) or None  # of no characters no share is right

    def _texts(self, outputs: Sequence[np.ndarray], target: str) -> tuple[str | None, str]:
        """What was read (None: the scores are NaN) and what should have been."""
        read, target = self.decoder(outputs[self.index]), str(only(target))
        if self.ignore_space and read is not None:
            return read.replace(" ", "").replace("\u3000", ""), target.replace(" ", "")
        return read, target


class CharacterAccuracy(ExactMatch):
    """1 - edits / characters over all text lines: insertions, deletions and replacements that the readings need. Target: the text.

    Rows are (edits, characters). Long lines count more than short ones.
    """

    def per_sample(self, outputs: Sequence[np.ndarray], target: Any) -> np.ndarray:  # type: ignore[override]
        read, text = self._texts(outputs, target)
        return np.array([np.nan if read is None else edit_distance(read, text), len(text)], dtype=np.float64)

    def value(self, rows: np.ndarray) -> float:
        return float(1.0 - rows[:, 0].sum() / rows[:, 1].sum())

    def finds_nothing(self, rows: np.ndarray) -> bool:
        return self.value(rows) <= 0.0  # more edits than characters

    def score(self, rows: np.ndarray) -> np.ndarray:
        return 1.0 - rows[:, 0] / rows[:, 1]


class MeanIoU(OutputMetric):
    """Mean over classes of intersection / union, both summed over all samples. Target: class map [H, W].

    The output is either scores, with the classes along `class_axis`, or already a class map of integers. A single score per pixel
    tells two classes apart: 1 where it is above `threshold`, else 0.
    Rows are the C intersections followed by the C unions, in pixels. Classes that occur nowhere are left out of the mean.
    """

    def __init__(
        self,
        classes: int | None = None,
        ignore_label: int | None = None,
        class_axis: int = 1,
        output: str | int = 0,
        threshold: float | None = None,
    ) -> None:
        """
        Args:
            classes: number of classes; by default the size of the output along `class_axis`.
            ignore_label: pixels with this label in the target do not count, e.g. 255.
            threshold: of a single score, e.g. 0.5 for a probability, 0 for a logit; by default 0.5 where a Sigmoid gives it.
        """
        super().__init__(output)
        self.classes = classes or 0
        self.ignore_label = ignore_label
        self.class_axis = class_axis
        self.threshold = threshold
        self.is_map = False
        self.size: tuple[int, ...] = ()

    def bind(self, model: ov.Model) -> None:
        super().bind(model)
        self.is_map = model.outputs[self.index].get_element_type().is_integral()
        sizes = list(self.shape)
        if not self.is_map:
            if not -len(sizes) <= self.class_axis < len(sizes):
                raise UserError(f"MeanIoU: class_axis {self.class_axis} does not exist in output {self.output!r} of shape {sizes}")
            single = sizes[self.class_axis] == 1 and self.classes in (0, 1, 2)
            self.threshold = single_threshold(self, model, self.threshold, single=single)
            self.classes = 2 if single else self.classes or sizes[self.class_axis]
            if not single and sizes[self.class_axis] not in (-1, self.classes):
                raise UserError(
                    f"MeanIoU: classes is {self.classes}, but output {self.output!r} of shape {sizes} has {sizes[self.class_axis]}"
                )
            del sizes[self.class_axis]
        if self.classes < 2:
            raise UserError(f"MeanIoU: give the number of classes; output {self.output!r} of shape {list(self.shape)} does not tell it")
        self.size = tuple(sizes[-2:])

    def check(self, target: Any) -> None:
        labels = class_map(target)
        if labels is None:
            raise UserError(f"MeanIoU needs a map of class indices as label, not {shown(target)}")
        for expected, size in zip(self.size, labels.shape, strict=True):
            if expected not in (-1, size):
                raise UserError(f"MeanIoU: the label map is {list(labels.shape)}, but the model's output is {list(self.size)}")
        counted = labels if self.ignore_label is None else labels[labels != self.ignore_label]
        if counted.size and not 0 <= counted.min() <= counted.max() < self.classes:
            wrong = counted.min() if counted.min() < 0 else counted.max()
            hint = "; ignore_label leaves such pixels out" if wrong == 255 and self.ignore_label is None else ""
            raise UserError(f"label {wrong} is out of range: MeanIoU has {self.classes} classes, 0 to {self.classes - 1}{hint}")

    def per_sample(self, outputs: Sequence[np.ndarray], target: Any) -> np.ndarray:
        if not self.is_map and not np.isfinite(outputs[self.index]).all():
            return np.full(2 * self.classes, np.nan)
        found = self.prediction(outputs).ravel()
        labels = np.asarray(target).ravel().astype(np.int64)
        if found.size != labels.size:
            raise UserError(f"MeanIoU: the model's output has {found.size} pixels, the label {labels.size}")
        if self.ignore_label is not None:
            counted = labels != self.ignore_label
            found, labels = found[counted], labels[counted]
        # A class map may hold classes beyond those that are judged: such pixels are in no union but their label's.
        in_range = (found >= 0) & (found < self.classes)
        intersection = np.bincount(labels[found == labels], minlength=self.classes)
        union = np.bincount(labels, minlength=self.classes) + np.bincount(found[in_range], minlength=self.classes) - intersection
        return np.concatenate([intersection, union]).astype(np.float64)

    def prediction(self, outputs: Sequence[np.ndarray]) -> np.ndarray:
        output = outputs[self.index]
        if self.is_map:
            return output.astype(np.int64)
        found = output > self.threshold if self.threshold is not None else output.argmax(axis=self.class_axis)
        return np.asarray(found, dtype=np.int64)

    def value(self, rows: np.ndarray) -> float:
        return float(self.score(rows.sum(axis=0, keepdims=True))[0])

    def finds_nothing(self, rows: np.ndarray) -> bool:
        """The same class everywhere, or none: of all that occur, at most one has a pixel that is right."""
        right, present = (int(np.count_nonzero(pixels)) for pixels in np.split(rows.sum(axis=0), 2))
        return right < min(2, present)

    def score(self, rows: np.ndarray) -> np.ndarray:
        intersection, union = rows[:, : self.classes], rows[:, self.classes :]
        shares = np.divide(intersection, union, out=np.full_like(intersection, np.nan), where=union > 0)
        present = (union > 0).sum(axis=1)
        # A sample (or a set) of nothing but ignored pixels has nothing wrong.
        return np.where(present > 0, np.nansum(shares, axis=1) / np.maximum(present, 1), 1.0)


class ReferenceError(Metric):
    """Distance of the outputs from the FP32 model's, for data without labels; lower is better.

    "relative": |q - f| / |f| in the L2 norm (|q - f| where f is all zero); "mean_squared": mean of (q - f)².
    With several outputs, their mean.
    """

    higher_is_better = False
    uses_reference = True

    def __init__(self, kind: str = "relative", output: str | int | None = None) -> None:
        """
        Args:
            output: name or index of the only output to compare; null compares all.
        """
        if kind not in ("relative", "mean_squared"):
            raise UserError(f"ReferenceError: kind is {kind!r}, but must be relative or mean_squared")
        self.kind = kind
        self.output = output
        self.indices: list[int] = []

    def bind(self, model: ov.Model) -> None:
        self.indices = list(range(len(model.outputs))) if self.output is None else [find_output(model, self.output)]

    def per_sample(self, outputs: Sequence[np.ndarray], target: Any) -> float:
        return float(np.mean([self._distance(outputs[index], target[index]) for index in self.indices]))

    def _distance(self, output: np.ndarray, reference: np.ndarray) -> float:
        if output.shape != reference.shape:
            raise UserError(
                f"ReferenceError: the output's shape {list(output.shape)} differs from FP32's {list(reference.shape)};"
                " compare an output of fixed size (`output`), or use a metric for what the model finds"
            )
        difference = output.astype(np.float64) - reference.astype(np.float64)
        if self.kind == "mean_squared":
            return float(np.mean(difference**2)) if difference.size else 0.0
        norm = np.linalg.norm(reference.astype(np.float64))
        return float(np.linalg.norm(difference) / (norm if norm > 0 else 1.0))


def find_output(model: ov.Model, output: str | int) -> int:
    """Index of a model output given by index, tensor name, or name of the operation that computes it."""
    if isinstance(output, int) and -len(model.outputs) <= output < len(model.outputs):
        return output % len(model.outputs)
    names = [set(port.get_names()) | {port.get_node().input_value(0).get_node().get_friendly_name()} for port in model.outputs]
    for index, aliases in enumerate(names):
        if output in aliases:
            return index
    raise UserError(f"the model has no output {output!r}; its outputs are: {', '.join(min(aliases) for aliases in names)}")


def single_threshold(metric: OutputMetric, model: ov.Model, threshold: float | None, *, single: bool) -> float | None:
    """The threshold of an output with a single score for two classes; None for one score per class.

    Raises:
        UserError: it is not known what the score means, or there is no such score.
    """
    who = f"{type(metric).__name__}: output {metric.output!r} has shape {list(metric.shape)}"
    if not single:
        if threshold is not None:
            raise UserError(f"{who}: threshold is {threshold}, but is for a single score")
        return None
    if threshold is None and not _is_probability(model.outputs[metric.index].get_node()):
        raise UserError(f"{who}: of a single score tell from which threshold on the class is 1, e.g. 0.5 for a probability, 0 for a logit")
    return 0.5 if threshold is None else threshold


def _is_probability(node: ov.Node) -> bool:
    """Whether a Sigmoid gives what arrives at `node`, with nothing but another shape or type in between."""
    while node.get_type_name() in ("Result", "Convert", "Reshape", "Squeeze", "Transpose", "Unsqueeze", "Interpolate"):
        node = node.input_value(0).get_node()
    return str(node.get_type_name()) == "Sigmoid"
