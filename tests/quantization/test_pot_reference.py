"""Our quantizers, ranges and biases against what POT 2023.3 produced on the same models and samples."""

from __future__ import annotations

import numpy as np
import pytest

from stages.quantization.statistics.points import mean_is_linear
from tests.quantization.reference_runs import FOLDER, Run, algorithm, run, statistics

ALL = sorted(path.stem for path in FOLDER.glob("*.json"))
ACCURATE = "mbv2.accurate_bias"  # its biases need inference: test_accurate_bias
ALIGNED = "smallcnn.aca_only"  # aligns channels and quantizes nothing
TOLERANCE = 1e-5


@pytest.mark.parametrize("name", [name for name in ALL if name != ALIGNED])
def test_the_same_quantizers(name: str) -> None:
    compared = run(name)
    matched = {ours.name for _, ours in compared.matches()}
    assert matched == {quantizer.name for quantizer in compared.plan.quantizers}
    assert len(matched) == len(compared.reference["quantizers"]) > 0


@pytest.mark.parametrize("name", [name for name in ALL if name != ALIGNED])
def test_the_same_levels_and_saturation_fix(name: str) -> None:
    compared = run(name)
    for theirs, ours in compared.matches():
        assert ours.kind == theirs["kind"], ours.name
        assert ours.scheme.levels(ours.kind) == theirs["levels"], ours.name
        assert ours.doubled == theirs["doubled"], ours.name


@pytest.mark.parametrize("name", [name for name in ALL if name != ALIGNED])
def test_the_same_ranges(name: str) -> None:
    assert different_ranges(run(name)) == set()


@pytest.mark.parametrize("name", [name for name in ALL if name != ACCURATE])
def test_the_same_biases(name: str) -> None:
    compared = run(name)
    assert compared.reference["biases"]
    for operation, bias in compared.reference["biases"].items():
        ours = np.broadcast_to(np.ravel(compared.bias(operation)), np.shape(bias))
        np.testing.assert_allclose(ours, bias, rtol=TOLERANCE, atol=TOLERANCE, err_msg=operation)


def different_ranges(compared: Run) -> set[str]:
    """The tensors whose quantizers have another range than POT's."""
    return {
        ours.source.name
        for theirs, ours in compared.matches()
        for border, key in zip(compared.solved.ranges[ours.name], ("input_low", "input_high"), strict=True)
        if not np.allclose(np.ravel(border), np.ravel(theirs[key]), rtol=TOLERANCE, atol=0)
    }


# ------------------------------------------------------------------------- where this project does better (README's table)

UNIFIED = {"/Relu_3", "/b2/Conv"}  # what a Concat joins
PRODUCTS = {"/l/l.0/a/q/Add", "/l/l.1/a/q/Add", "Multiply_1382", "Multiply_1384"}  # factors of two attention scores
RANGES = {"smallcnn.mixed": UNIFIED, "transformer14.transformer_mixed": PRODUCTS}


@pytest.mark.parametrize("name", [name for name in ALL if name != ALIGNED])
def test_by_default_the_same_but_for_what_is_documented(name: str) -> None:
    compared = run(name, pot_compatible=False)
    assert {ours.name for _, ours in compared.matches()} == {quantizer.name for quantizer in compared.plan.quantizers}
    for theirs, ours in compared.matches():
        assert (ours.scheme.levels(ours.kind), ours.doubled) == (theirs["levels"], theirs["doubled"])
    assert different_ranges(compared) == RANGES.get(name, set())


def test_unified_ranges_keep_zero_on_a_level() -> None:
    compared = run("smallcnn.mixed", pot_compatible=False)
    found = 0
    for theirs, ours in compared.matches():
        if ours.source.name in UNIFIED:
            found += 1
            low, high = (float(border) for border in compared.solved.ranges[ours.name])
            (their_low,), (their_high,) = theirs["input_low"], theirs["input_high"]
            assert low < their_low + 1e-6 and high > their_high - 1e-6 and high - low < 1.01 * (their_high - their_low)
            assert _off_level(low, high) < 1e-9 < 1e-3 < _off_level(their_low, their_high)
    assert found == 2


def _off_level(low: float, high: float) -> float:
    """How far zero lies beside a level, in steps of 8 bits."""
    place = -low * 255 / (high - low)
    return abs(place - round(place))


def test_symmetric_factors_of_attention_scores_hold_their_negative_values() -> None:
    """POT estimates them as asymmetric ranges, by the largest value, and clips what is below its negative."""
    name = "transformer14.transformer_mixed"
    compared = run(name, pot_compatible=False)
    stored = statistics("transformer14", compared.reference["samples"])
    found = 0
    for theirs, ours in compared.matches():
        if ours.source.name in PRODUCTS:
            found += 1
            lowest, highest, _ = stored.tails(ours.source)
            low, high = compared.solved.ranges[ours.name]
            widest = np.maximum(-lowest[:, 0], highest[:, 0]).astype(np.float64)
            np.testing.assert_allclose(high, widest.mean(), rtol=1e-6)
            np.testing.assert_allclose(low, -high * 128 / 127, rtol=1e-6)
            np.testing.assert_allclose(theirs["input_high"], highest[:, 0].astype(np.float64).mean(), rtol=TOLERANCE)
            assert high > theirs["input_high"][0]
    assert found == 4


LEFT = {
    "seg.performance": {"ConvolutionBackpropData_71": "not a convolution or a MatMul with one matrix of weights on its second input"},
    "transformer14.transformer_mixed": {"/e/MatMul": "its bias is not one value per channel"},
}
# How many layers of how many POT's rule leaves alone (README: one bias element near zero, or none, is enough).
POT_LEAVES = {"smallcnn": (5, 8), "mbv2": (5, 24), "resnet": (9, 14), "mbv3se": (6, 19), "seg": (4, 9), "transformer14": (9, 14)}
POT_LEAVES["pairs"] = (0, 23)  # all its layers without a bias get one when channels are aligned
POT_LEAVES_WITH = {"mbv3se.quantile": (5, 19), "mbv3se.hl_estimator": (5, 19)}


@pytest.mark.parametrize("name", [name for name in ALL if algorithm(name) == "default"])
def test_more_biases_are_corrected_and_those_of_pot_by_the_error_of_the_weights_alone(name: str) -> None:
    compared, pots = run(name, pot_compatible=False), run(name)
    ours, theirs = ({entry.name: entry for entry in solved.corrections} for solved in (compared.solved, pots.solved))
    left = {operation for operation, entry in theirs.items() if entry.bias is None}
    assert (len(left), len(theirs)) == POT_LEAVES_WITH.get(name, POT_LEAVES[name.split(".")[0]])
    assert {operation: entry.reason for operation, entry in ours.items() if entry.bias is None} == LEFT.get(name, {})
    for operation in theirs.keys() - left:
        # Where every input of a mean counts alike, POT's shift holds no error but that of the weights, and is the same.
        (ours_bias, theirs_bias), exact = (entry[operation].bias for entry in (ours, theirs)), mean_is_linear(pots.graph.by_name[operation])
        assert ours_bias is not None and theirs_bias is not None
        assert np.allclose(ours_bias, theirs_bias, rtol=TOLERANCE, atol=TOLERANCE) == exact, operation
