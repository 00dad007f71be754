"""Our quantizers, ranges and biases against what POT 2023.3 produced on the same models and samples."""

from __future__ import annotations

import numpy as np
import pytest

from tests.quantization.reference_runs import Run, run

RUNS = [
    "smallcnn.performance",
    "smallcnn.mixed",
    "smallcnn.minmax_only",
    "smallcnn.aca_only",
    "mbv2.performance",
    "mbv2.mixed",
    "resnet.performance",
    "resnet.mixed",
    "mbv3se.performance",
    "mbv3se.mixed",
    "seg.performance",
    "mbv2.ignored_add",
    "mbv2.saturation_fix_no",
    "mbv2.weights_4bit",
    "mbv3se.quantile",
    "mbv3se.hl_estimator",
    "resnet.gpu",
    "transformer14.transformer_mixed",
    "resnet.cpu_spr",
]
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=RUNS)
def compared(request: pytest.FixtureRequest) -> Run:
    """One reference run repeated."""
    return run(request.param)


def test_the_same_quantizers(compared: Run) -> None:
    if compared.reference["algorithm"] == "aca":
        pytest.skip("this run of POT aligned channels and quantized nothing")
    matched = {ours.name for _, ours in compared.matches()}
    assert matched == {quantizer.name for quantizer in compared.plan.quantizers}
    assert len(matched) == len(compared.reference["quantizers"])


def test_the_same_levels_and_saturation_fix(compared: Run) -> None:
    for theirs, ours in compared.matches():
        assert ours.kind == theirs["kind"], ours.name
        assert ours.scheme.levels(ours.kind) == theirs["levels"], ours.name
        assert ours.doubled == theirs["doubled"], ours.name


def test_the_same_ranges(compared: Run) -> None:
    for theirs, ours in compared.matches():
        borders = compared.solved.ranges[ours.name]
        for border, key in zip(borders, ("input_low", "input_high"), strict=True):
            np.testing.assert_allclose(np.ravel(border), np.ravel(theirs[key]), rtol=TOLERANCE, err_msg=f"{ours.name} {key}")


def test_the_same_biases(compared: Run) -> None:
    assert compared.reference["biases"]
    for operation, bias in compared.reference["biases"].items():
        ours = np.broadcast_to(np.ravel(compared.bias(operation)), np.shape(bias))
        np.testing.assert_allclose(ours, bias, rtol=TOLERANCE, atol=TOLERANCE, err_msg=operation)
