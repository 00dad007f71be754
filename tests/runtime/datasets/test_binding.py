"""The checks that every sample goes through."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stages.common.errors import UserError
from stages.runtime.datasets import Dataset, Identity, ModelInput, Sample, Samples, identity, model_inputs
from stages.runtime.datasets.binding import checked
from tests.runtime import models

# ------------------------------------------------------------------------------------------------ samples of a model

ONE = [ModelInput("x", ("input:0", "x"), (1, -1, 2), np.dtype(np.float32))]
TWO = model_inputs(models.two_inputs())
GOOD = {"image": np.zeros((1, 2, 3)), "tokens": np.zeros((1, 4), np.int32)}


def test_inputs_of_a_model() -> None:
    assert [
        ModelInput("image", ("image",), (1, 2, 3), np.dtype(np.float32)),
        ModelInput("tokens", ("tokens",), (1, -1), np.dtype(np.int64)),
    ] == TWO
    assert [ModelInput.from_json(entry.to_json()) for entry in TWO] == TWO


ARRAY = np.arange(6.0).reshape(1, 3, 2)


@pytest.mark.parametrize("item", [ARRAY, {"x": ARRAY}, {"input:0": ARRAY}, Sample({"": ARRAY}), (ARRAY, None), ARRAY.tolist()])
def test_forms_of_an_item(item: Any) -> None:
    sample = checked(item, ONE, "sample 0")
    assert list(sample.inputs) == ["x"]
    assert sample.inputs["x"].dtype == np.float32
    assert sample.inputs["x"].flags.c_contiguous
    np.testing.assert_array_equal(sample.inputs["x"], ARRAY)
    assert sample.target is None
    assert sample.label == "sample 0"


def test_targets_are_kept() -> None:
    assert checked((ARRAY, 7), ONE, "").target == 7
    assert checked(Sample({"x": ARRAY}, "text"), ONE, "").target == "text"


def test_inputs_are_put_into_the_models_order() -> None:
    sample = checked(dict(reversed(GOOD.items())), TWO, "")
    assert list(sample.inputs) == ["image", "tokens"]
    assert [array.dtype.name for array in sample.inputs.values()] == ["float32", "int64"]


def test_a_scalar_input_stays_a_scalar() -> None:
    assert checked(np.float64(3), [ModelInput("x", ("x",), (), np.dtype(np.float32))], "").inputs["x"].shape == ()


NAN = ARRAY.copy()
NAN[0, 1, 1] = np.nan


@pytest.mark.parametrize(
    ("item", "inputs", "message"),
    [
        (NAN, ONE, r"sample 5: input x has the value nan at \[0, 1, 1\]"),
        (np.where(np.isnan(NAN), -np.inf, NAN), ONE, r"sample 5: input x has the value -inf at \[0, 1, 1\]"),
        (np.zeros((3, 2)), ONE, r"sample 5: input x has shape \[3, 2\], but the model expects \[1, \?, 2\]"),
        (np.zeros((1, 3, 3)), ONE, r"sample 5: input x has shape \[1, 3, 3\], but the model expects \[1, \?, 2\]"),
        (np.zeros((2, 3, 2)), ONE, r"sample 5: input x has shape \[2, 3, 2\]"),
        ({"image": ARRAY}, ONE, r"sample 5 has an input 'image', but the model's inputs are: x"),
        ({"x": ARRAY, "input:0": ARRAY}, ONE, r"sample 5 has no array \(or two\) for input x"),
        ({}, ONE, r"sample 5 has no array \(or two\) for input x"),
        (ARRAY, TWO, r"sample 5 is a single array, but the model has 2 inputs: image, tokens"),
        ({"image": GOOD["image"]}, TWO, r"sample 5 has no array \(or two\) for input tokens"),
        (GOOD | {"extra": ARRAY}, TWO, r"sample 5 has an input 'extra', but the model's inputs are: image, tokens"),
        (GOOD | {"tokens": np.full((1, 2), 0.5)}, TWO, r"sample 5: input tokens is of type float64 with values that int64 cannot hold"),
        (np.full((1, 3, 2), 1e300), ONE, r"sample 5: input x is of type float64 with values that float32 cannot hold"),
        (np.full((1, 3, 2), "a"), ONE, r"sample 5: input x is of type <U1, not numbers"),
        (np.full((1, 3, 2), None), ONE, r"sample 5: input x is of type object, not numbers"),
        ((ARRAY, 1, 2), ONE, r"sample 5 is a tuple of 3, but must be \(inputs, target\)"),
    ],
)
def test_what_is_wrong_with_a_sample(item: Any, inputs: list[ModelInput], message: str) -> None:
    with pytest.raises(UserError, match=message):
        checked(item, inputs, "sample 5")


def test_integers_that_do_not_fit() -> None:
    small = [ModelInput("x", ("x",), (1,), np.dtype(np.uint8))]
    assert checked(np.array([255.0]), small, "").inputs["x"] == 255
    for value in (256, -1):
        with pytest.raises(UserError, match="cannot hold"):
            checked(np.array([value]), small, "")


def test_types_that_numpy_does_not_have() -> None:
    import openvino as ov
    from openvino import opset13 as operations

    x = operations.parameter([1], ov.Type.bf16, name="x")
    with pytest.raises(UserError, match="the model's input x is of type bf16; known are f16, f32"):
        model_inputs(ov.Model([operations.relu(x)], [x]))


# ------------------------------------------------------------------------------------------------ chosen samples


class Counted:
    """Ten samples that know how often they were read."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        return np.full((1, 1, 2), index), index

    def label(self, index: int) -> str:
        return f"file {index}"


def test_samples_in_the_chosen_order_read_when_asked_for() -> None:
    dataset = Counted()
    samples = Samples(dataset, ONE, [7, 2, 5], "calibration")
    assert len(samples) == 3
    assert dataset.read == []
    assert [sample.target for sample in samples] == [7, 2, 5]
    assert dataset.read == [7, 2, 5]
    assert samples[1].label == "calibration sample 2 (file 2)"
    assert [sample.target for sample in samples[:2]] == [7, 2]
    assert samples[-1].target == 5
    assert samples[:2].name == "calibration"


def test_all_samples_by_default() -> None:
    data: Dataset = [ARRAY, ARRAY]
    assert len(list(Samples(data, ONE))) == 2
    assert Samples(data, ONE)[1].label == "data sample 1"


def test_errors_name_the_sample() -> None:
    with pytest.raises(UserError, match=r"validation sample 1: input x has the value nan"):
        list(Samples([ARRAY, NAN], ONE, name="validation"))


def test_a_sample_that_has_changed_is_noticed() -> None:
    dataset = Counted()
    expected = [identity(sample) for sample in Samples(dataset, ONE)]
    assert len(list(Samples(dataset, ONE, expected=expected))) == 10
    assert len(list(Samples(dataset, ONE, expected=expected)[3:5])) == 2
    changed = [*expected[:4], Identity(expected[4].inputs, "other"), *expected[5:]]
    with pytest.raises(UserError, match=r"sample 4 \(file 4\) has changed since the stage `prepare`"):
        list(Samples(dataset, ONE, expected=changed))
