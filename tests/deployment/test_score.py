"""What a package says of its samples agrees with what the project's metrics say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as operations

from stages.deployment import score
from stages.deployment.samples import SETTINGS
from stages.runtime.metrics import Accuracy, CharacterAccuracy, ExactMatch, MeanIoU, Metric, ReferenceError
from tests.runtime.models import identity, named

COUNT = 40


def value(
    metric: Metric, outputs: list[np.ndarray], targets: list[Any], model: ov.Model, more: dict[str, np.ndarray] | None = None
) -> None:
    """Both compute the same, which is neither 0 nor 1."""
    metric.bind(model)
    samples = {f"{number}/target": np.asarray(target) for number, target in enumerate(targets)} | (more or {})
    references = [[samples[f"{number}/fp32/0"]] if metric.uses_reference else target for number, target in enumerate(targets)]
    rows = [np.atleast_1d(metric.per_sample([output], target)) for output, target in zip(outputs, references, strict=True)]
    if isinstance(metric, ExactMatch):
        samples["m/classes"] = np.array(metric.decoder.classes)
    found = score.value({"name": "m", **SETTINGS[type(metric)](metric)}, [[output] for output in outputs], samples)
    assert found == pytest.approx(metric.value(np.stack(rows)), abs=1e-12)
    assert 0.0 < found < 1.0


def test_accuracy() -> None:
    random = np.random.default_rng(0)
    outputs = list(random.normal(size=(COUNT, 1, 5)).astype(np.float32))
    labels = [int(label) for label in random.integers(0, 5, COUNT)]
    value(Accuracy(), outputs, labels, identity(1, 5))
    value(Accuracy(top_k=2), outputs, labels, identity(1, 5))
    value(Accuracy(threshold=0.1), [output[:, :1] for output in outputs], [label % 2 for label in labels], identity(1, 1))


def test_mean_iou() -> None:
    random = np.random.default_rng(0)
    outputs = list(random.normal(size=(COUNT, 1, 3, 4, 5)).astype(np.float32))
    maps = list(random.integers(0, 3, size=(COUNT, 4, 5)))
    value(MeanIoU(), outputs, maps, identity(1, 3, 4, 5))
    value(MeanIoU(ignore_label=2), outputs, maps, identity(1, 3, 4, 5))
    value(MeanIoU(threshold=0.2), [output[:, :1] for output in outputs], [labels % 2 for labels in maps], identity(1, 1, 4, 5))
    found = [random.integers(0, 3, size=(1, 4, 5)).astype(np.int64) for _ in range(COUNT)]
    value(MeanIoU(classes=3), found, maps, identity(1, 4, 5, dtype=np.int64))


def test_reference_error() -> None:
    random = np.random.default_rng(0)
    references = list(random.normal(size=(COUNT, 1, 5)).astype(np.float32))
    outputs = [reference + 0.1 * random.normal(size=(1, 5)).astype(np.float32) for reference in references]
    more = {f"{number}/fp32/0": reference for number, reference in enumerate(references)}
    for kind in ("relative", "mean_squared"):
        value(ReferenceError(kind), outputs, [0] * COUNT, identity(1, 5), more)


@pytest.mark.parametrize("steps_first", [False, True])
def test_text(tmp_path: Path, steps_first: bool) -> None:
    (tmp_path / "characters.txt").write_text("a\nb\nc\n")
    random = np.random.default_rng(0)
    shape = (7, 1, 5) if steps_first else (1, 7, 5)  # the blank, three characters and the space
    outputs = list(random.normal(size=(COUNT, *shape)).astype(np.float32))
    for metric in (ExactMatch, CharacterAccuracy):
        for ignore_space in (False, True):
            made = metric(characters=str(tmp_path / "characters.txt"), ignore_space=ignore_space)
            made.bind(identity(*shape))
            read = [made.decoder(output) or "a" for output in outputs]
            texts = [text if number % 2 else f"{text[:1]} b" for number, text in enumerate(read)]
            value(made, outputs, texts, identity(*shape))


def test_difference() -> None:
    samples = {
        "0/output/0": np.array([3.0, 4.0]),
        "0/output/1": np.array([[0.0]]),
        "1/output/0": np.array([0.0]),
        "1/output/1": np.array([12]),
    }
    same = [[np.array([3.0, 4.0]), np.array([[0.0]])], [np.array([0.0]), np.array([12])]]
    assert score.difference(same, samples) == 0.0
    other = [[np.array([3.0, 4.0]), np.array([[1.3]])], [np.array([0.0]), np.array([12])]]
    assert score.difference(other, samples) == pytest.approx(0.1)  # of 13
    assert score.difference([[np.array([3.0]), np.array([[0.0]])]], samples) == float("inf")  # another shape
    assert score.difference([[np.array([3.0, np.nan]), np.array([[0.0]])]], samples) > 0.1
    nothing = {"0/output/0": np.array([np.nan, -np.inf]), "0/output/1": np.array([])}
    assert score.difference([[np.array([np.nan, -np.inf]), np.array([])]], nothing) == 0.0


def test_models_of_several_outputs() -> None:
    """A metric finds its output by name; the package needs its number."""
    x = operations.parameter([1, 3], np.float32, name="x")
    twice = [operations.relu(x), operations.abs(x)]
    for node, name in zip(twice, ("first", "second"), strict=True):
        node.set_friendly_name(name)
    metric = Accuracy(output="second")
    metric.bind(named(ov.Model(twice, [x])))
    assert SETTINGS[Accuracy](metric)["output"] == 1
