"""Choosing samples: data sets of a user's own that count in another way, and labels that are sorted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages import prepare
from stages.common.errors import UserError
from stages.configuration.schema import Config, Data
from stages.runtime import samples
from stages.runtime.datasets import Identity, ModelInput, Sample, identity


def config(calibration: dict[str, Any], **data: Any) -> Config:
    return Config(data=Data(calibration=calibration, **data))


class Counts:
    """A data set that counts in another way than data sets do."""

    def __init__(self, length: Any, fail: str | None = None) -> None:
        self.length = length
        if fail == "init":
            raise KeyError(fail)
        self.fail = fail

    def __len__(self) -> Any:
        if self.fail == "len":
            raise KeyError(self.fail)
        return self.length

    def __getitem__(self, index: int) -> Any:
        return np.full((1, 4), index), 0


@pytest.mark.parametrize("length", [8.0, "8", None, True, -1])
def test_a_length_of_the_wrong_type(length: Any) -> None:
    with pytest.raises(UserError, match=rf"^data\.calibration: __len__ of Counts gives {length!r}, but must give the number of samples$"):
        samples.choose(config(calibration={"_target_": f"{__name__}.Counts", "length": length}), [])


@pytest.mark.parametrize(
    ("place", "words"), [("init", rf"{__name__}\.Counts: KeyError: 'init'"), ("len", "__len__ of Counts: KeyError: 'len'")]
)
def test_an_exception_in_a_data_sets_class_names_the_key(place: str, words: str) -> None:
    with pytest.raises(UserError, match=rf"^data\.calibration: {words} \(.*test_samples\.py, line \d+, in __{place}__\)$"):
        samples.choose(config(calibration={"_target_": f"{__name__}.Counts", "length": 8, "fail": place}), [])


def test_numbers_of_numpy_are_lengths() -> None:
    calibration, _ = samples.choose(config(calibration={"_target_": f"{__name__}.Counts", "length": np.int64(8)}, calibration_size=4), [])
    assert calibration.indices == [0, 1, 2, 3]


def folders(root: str, counts: dict[str, int]) -> dict[str, Any]:
    """A folder of images per class, as a section of the configuration."""
    for name, count in counts.items():
        for index in range(count):
            path = Path(root) / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (2, 2), (len(root), ord(name[0]), index)).save(path)
    return {"_target_": "stages.runtime.datasets.ImageFolder", "path": root}


ANY_SIZE = [ModelInput("x", ("x",), (1, 3, 2, 2), np.dtype(np.float32))]


@pytest.mark.parametrize(
    ("calibration", "validation", "different"),
    [({"a": 1, "b": 1, "c": 1}, {"a": 1, "c": 1}, "3 classes and data.validation 2, which differ in b"), ({"a": 1}, {"b": 1}, "a, b")],
)
def test_folders_of_different_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calibration: dict[str, int], validation: dict[str, int], different: str
) -> None:
    """The second class of the one is the third of the other."""
    monkeypatch.chdir(tmp_path)
    sets = {"calibration": folders("train", calibration), "validation": folders("val", validation)}
    with pytest.raises(UserError, match=f"{different}, so one class would have two numbers: list all of them in data.calibration.classes"):
        samples.choose(config(**sets), ANY_SIZE)
    classes = sorted(calibration | validation)
    _, others = samples.choose(config(**{name: {**section, "classes": classes} for name, section in sets.items()}), ANY_SIZE)
    assert [sample.target for sample in others] == [classes.index(name) for name in validation]


@pytest.mark.parametrize(
    ("calibration", "validation", "note"),
    [
        ([0, 0, 1, 1], [1, 1, 1], "all 3 validation samples have the same label"),
        ([0, 0, 1, 1], [2, 3, 2, 3], "calibration samples have none of the 2 labels that validation samples have"),
        ([0, 0, 0, 0], [0, 1, 2, 0, 1, 2], "calibration samples have 1 of the 3 labels"),
        ([0, 0, 1, 1], [0, 1, 2, 0, 1, 2], None),
        ([0], [1, 2, 1, 2], None),  # one sample cannot have both
        ([None, None], [1, 2, 1, 2], None),
        ([0, 1], [None, None], None),
        (["a", "b", "c"], ["d", "e", "f"], None),  # texts are all different
        ([0, 0, 1, 1], [1], None),
    ],
)
def test_labels_that_are_sorted(calibration: list[Any], validation: list[Any], note: str | None) -> None:
    def identities(targets: list[Any]) -> list[Identity]:
        return [identity(Sample({"x": np.zeros(1)}, target)) for target in targets]

    notes = samples.label_notes(identities(calibration), identities(validation))
    assert len(notes) == (note is not None)
    if note is not None:
        assert notes[0].startswith(note) and notes[0].endswith("set data.shuffle: true")


def test_samples_of_several_shapes_are_no_hint() -> None:
    entry = ModelInput("x", ("x",), (1, -1), np.dtype(np.float32))
    shapes = {(("x", (1, size)),) for size in (3, 4)}
    assert prepare._one_shape([entry], shapes) == {}
    assert prepare._one_shape([entry], [(("x", (1, 3)),)]) == {"one_shape": {"x": [1, 3]}}
