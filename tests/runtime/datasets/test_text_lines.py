"""The bundled example's lines: the same from the same seed, others from another, and readable."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stages.common.errors import UserError
from stages.configuration.schema import Engine, Model, Package
from stages.runtime import engine, sources
from stages.runtime.datasets import Samples, TextLines, model_inputs
from stages.runtime.metrics import ExactMatch

ROOT = Path(__file__).resolve().parents[3]


def digest(lines: TextLines, index: int) -> str:
    return hashlib.sha256(lines[index].inputs[""].tobytes() + lines[index].target.encode()).hexdigest()


def test_a_line_follows_from_seed_and_index_alone() -> None:
    lines = TextLines(50, seed=3)
    forwards = [digest(lines, index) for index in range(50)]
    assert [digest(TextLines(1000, seed=3), index) for index in reversed(range(50))] == forwards[::-1]
    assert len(set(forwards)) == 50


def test_the_same_lines_in_another_process() -> None:
    code = "from tests.runtime.datasets.test_text_lines import *; print(digest(TextLines(9, 4), 8))"
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == digest(TextLines(9, 4), 8)


def test_seeds_give_disjoint_sets() -> None:
    sets = [{digest(TextLines(100, seed), index) for index in range(100)} for seed in (0, 1, 2**32, 2**32 + 1)]
    assert len(set.union(*sets)) == 400


def test_inputs_are_what_the_recogniser_expects() -> None:
    lines = TextLines(100, seed=1)
    widths = set()
    for index in range(100):
        inputs, target, *_ = lines[index]
        array = inputs[""]
        assert array.shape == (1, 3, 48, 320)
        assert array.dtype == np.float32
        assert -1 <= array.min() < array.max() <= 1
        width = int(np.flatnonzero(array.any(axis=(0, 1, 2)))[-1]) + 1
        assert (array[..., width:] == 0).all()
        widths.add(width)
        assert target.isascii()
        assert lines.label(index) == repr(target)
    assert len(widths) > 30


def test_all_kinds_of_text_occur() -> None:
    targets = [TextLines(200, seed=1)[index].target for index in range(200)]
    assert sum(target.replace("-", "").isalpha() for target in targets) > 20  # words
    assert sum("$" in target or "EUR" in target for target in targets) > 20  # amounts
    assert sum(target.count("/") == 2 or target.count("-") == 2 for target in targets) > 20  # dates


def test_rendering_is_quick() -> None:
    lines = TextLines(100, seed=1)
    _ = lines[0]  # reads the fonts
    started = time.process_time()
    for index in range(100):
        _ = lines[index]
    assert (time.process_time() - started) / 100 < 0.01


def test_wrong_counts_and_indices() -> None:
    with pytest.raises(UserError, match="count is 0, but must be at least 1"):
        TextLines(0)
    for index in (-1, 5):
        with pytest.raises(IndexError):
            _ = TextLines(5)[index]


@pytest.mark.parametrize("seed", [1, 2])
def test_fp32_reads_about_nine_lines_in_ten(seed: int) -> None:
    """With the real model, fetched unless it is there."""
    package = Package(requirement="rapidocr-onnxruntime==1.4.4", member="rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx")
    sha256 = "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b"
    model = sources.read(sources.locate(Model(name="rec", package=package, sha256=sha256), ROOT / sources.FETCHED), {"x": [1, 3, 48, 320]})
    metrics = {"exact": ExactMatch(), "without spaces": ExactMatch(ignore_space=True)}
    for metric in metrics.values():
        metric.bind(model)
    assert len(metrics["exact"].decoder.classes) == 6625
    samples = Samples(TextLines(300, seed), model_inputs(model))
    rows = engine.evaluate_metrics({"fp32": engine.compile(model, Engine())}, samples, metrics)["fp32"]
    for name, metric in metrics.items():
        assert 0.85 <= metric.value(rows[name]) <= 0.95
