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


class Tensor:
    """What looks like an array to NumPy only, as PyTorch's tensors do."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.array


FORMS = [ARRAY, {"x": ARRAY}, {"input:0": ARRAY}, Sample({"": ARRAY}), (ARRAY, None), ARRAY.tolist(), Tensor(ARRAY), [ARRAY, None]]


@pytest.mark.parametrize("item", FORMS)
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


@pytest.mark.parametrize("inputs", [ARRAY, {"x": ARRAY}, Tensor(ARRAY)])
@pytest.mark.parametrize("target", [7, "text", ARRAY, [1, 2], {"boxes": [[1, 2, 3, 4]]}])
def test_a_list_of_inputs_and_target(inputs: Any, target: Any) -> None:
    """As batches of PyTorch's DataLoader are."""
    sample = checked([inputs, target], ONE, "")
    np.testing.assert_array_equal(sample.inputs["x"], ARRAY)
    assert sample.target is target or sample.target == target


def test_a_list_of_rows_is_an_array() -> None:
    two_rows = [ModelInput("x", ("x",), (2, 3), np.dtype(np.float32))]
    rows = [np.arange(3.0), np.arange(3.0, 6.0)]
    sample = checked(rows, two_rows, "")
    np.testing.assert_array_equal(sample.inputs["x"], [[0, 1, 2], [3, 4, 5]])
    assert sample.target is None
    assert checked([[0.0, 1.0, 2.0], [3, 4, 5]], two_rows, "").target is None


def test_targets_of_other_libraries_are_numpys() -> None:
    sample = checked((Tensor(ARRAY), {"boxes": Tensor(np.ones((2, 4))), "names": ["a", Tensor(np.arange(2))]}), ONE, "")
    assert type(sample.target["boxes"]) is np.ndarray
    assert type(sample.target["names"][1]) is np.ndarray
    assert identity(sample) == identity(Sample({"x": ARRAY.astype(np.float32)}, {"boxes": np.ones((2, 4)), "names": ["a", np.arange(2)]}))


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
        (np.zeros((3, 2)), ONE, r"expects \[1, \?, 2\]; samples carry the batch dimension: give x\[None\] instead of x$"),
        (np.zeros((3, 3)), ONE, r"expects \[1, \?, 2\]$"),
        ([[[1.0], [2.0, 3.0]]], ONE, r"sample 5: input x is no array: ValueError: .*inhomogeneous"),
        ([ARRAY, ARRAY], TWO, r"sample 5 is a single array, but the model has 2 inputs: image, tokens"),
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


class Failing(Counted):
    """Fails in one place or another."""

    def __init__(self, label: Any = None, error: BaseException | None = None) -> None:
        super().__init__()
        self.error = error
        if label is not None:
            self.__dict__["label"] = label  # an attribute of this name, in place of the method

    def __getitem__(self, index: int) -> Any:
        if index == 4 and self.error is not None:
            raise self.error
        return super().__getitem__(index)


@pytest.mark.parametrize("label", [["a", "b"], "cat", 3, {"x": 1}, lambda: "no index"])
def test_an_attribute_that_happens_to_be_called_label(label: Any) -> None:
    samples = Samples(Failing(label), ONE, name="calibration")
    assert samples[3].label == "calibration sample 3"
    assert samples.own_label(3) is None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError("x"), "KeyError: 'x'"),
        (FileNotFoundError(2, "No such file or directory", "a.jpg"), "FileNotFoundError: [Errno 2] No such file or directory: 'a.jpg'"),
        (IndexError("list index out of range"), "IndexError: list index out of range"),
        (SystemExit(0), "it ends the program, with sys.exit(0)"),
    ],
)
def test_an_exception_in_a_data_set_names_the_sample(error: BaseException, reason: str) -> None:
    with pytest.raises(UserError) as raised:
        list(Samples(Failing(error=error), ONE, name="calibration"))
    place = str(raised.value).removeprefix(f"calibration sample 4 (file 4): {reason} ")
    assert place.startswith("(tests/runtime/datasets/test_binding.py, line ") and place.endswith(", in __getitem__)")


def test_an_exception_in_label_names_the_sample() -> None:
    def label(index: int) -> str:
        return {0: "zero"}[index]

    with pytest.raises(UserError, match=r"^calibration sample 1: label\(1\) of Failing: KeyError: 1 "):
        list(Samples(Failing(label), ONE, name="calibration"))


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
