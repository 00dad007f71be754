"""Choosing samples and preparing: what is pinned down, and what stops it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as operations

from stages import prepare
from stages.common.errors import UserError
from stages.configuration.schema import Config, Data, Model, Quantization
from stages.runtime import samples
from stages.runtime.datasets import Samples, model_inputs
from stages.runtime.metrics import Metric
from tests.runtime import models

ARRAYS = "stages.runtime.datasets.Arrays"
ACCURACY = {"accuracy": {"_target_": "stages.runtime.metrics.Accuracy"}}
ERROR = {"error": {"_target_": "stages.runtime.metrics.ReferenceError"}}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model of 4 features and 3 classes, and 20 labelled samples."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    ov.serialize(models.linear(generator.normal(size=(4, 3))), "net.xml")
    np.savez("data.npz", x=generator.normal(size=(20, 4)), y=np.arange(20) % 3)
    np.savez("other.npz", x=generator.normal(size=(7, 4)), y=np.arange(7) % 3)
    return tmp_path


def config(metric: dict[str, Any] = ACCURACY, **data: Any) -> Config:
    sets: dict[str, Any] = {"calibration": {"_target_": ARRAYS, "path": "data.npz"}} | data
    return Config(model=Model(name="net", path="net.xml"), data=Data(name="data", **sets), metric=metric)


OTHER = {"_target_": ARRAYS, "path": "other.npz"}


def read_json(path: str) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def indices(name: str) -> list[int]:
    return [entry["index"] for entry in read_json("build/prepare/dataset.json")[name]["samples"]]


# ------------------------------------------------------------------------------------------------ what is written


def test_what_prepare_writes(workspace: Path) -> None:
    record = prepare.main(config(calibration_size=12))
    assert sorted(path.name for path in Path("build/prepare").iterdir()) == ["dataset.json", "model.bin", "model.json", "model.xml"]
    assert (record["calibration"], record["validation"]) == (12, 8)
    model = ov.Core().read_model("build/prepare/model.xml")
    described = read_json("build/prepare/model.json")
    assert described["inputs"] == [{"name": "x", "aliases": ["x"], "shape": [1, 4], "type": "float32"}]
    assert described["outputs"] == [{"name": "scores", "aliases": ["scores"], "shape": [1, 3], "type": "f32"}]
    assert (described["name"], described["source"], described["framework"]) == ("net", "net.xml", "ir")
    assert list(described["files"]) == ["net.bin", "net.xml"]
    assert {operation.get_friendly_name() for operation in model.get_ops()} >= {"x", "scores"}
    dataset = read_json("build/prepare/dataset.json")
    assert (indices("calibration"), indices("validation")) == (list(range(12)), list(range(12, 20)))
    assert dataset["shared"] == 0
    hashes = [entry["sha256"] for name in ("calibration", "validation") for entry in dataset[name]["samples"]]
    assert len(set(hashes)) == 20
    assert len({entry["target"] for entry in dataset["validation"]["samples"]}) == 3


def test_the_same_bytes_again(workspace: Path) -> None:
    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in Path("build/prepare").iterdir()}

    prepare.main(config(shuffle=True, calibration_size=5))
    first = contents()
    prepare.main(config(shuffle=True, calibration_size=5))
    assert contents() == first


class Once:
    """Samples that may be read once."""

    def __init__(self, count: int) -> None:
        self.left = set(range(count))

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        self.left.remove(index)
        return np.full((1, 4), index), 0


def test_every_sample_is_read_once(workspace: Path) -> None:
    prepare.main(config(calibration={"_target_": f"{__name__}.Once", "count": 8}, calibration_size=5))
    assert len(indices("calibration") + indices("validation")) == 8


# ------------------------------------------------------------------------------------------------ which samples


def chosen(settings: Config) -> tuple[list[int], list[int]]:
    calibration, validation = samples.choose(settings, model_inputs(ov.Core().read_model("net.xml")))
    return calibration.indices, validation.indices


FIRST, LAST = list(range(12)), list(range(12, 20))


@pytest.mark.parametrize(
    ("data", "calibration", "validation"),
    [
        ({"calibration_size": 12}, FIRST, LAST),
        ({"calibration_size": 12, "validation_size": 3}, FIRST, [12, 13, 14]),
        ({"validation": OTHER}, list(range(20)), list(range(7))),
        ({"validation": OTHER, "calibration_size": 2, "validation_size": 3}, [0, 1], [0, 1, 2]),
        # With too few samples for both, the unused come first.
        ({"calibration_size": 20, "allow_overlap": True}, list(range(20)), list(range(20))),
        ({"allow_overlap": True}, list(range(20)), list(range(20))),
        ({"calibration_size": 12, "validation_size": 10, "allow_overlap": True}, FIRST, [*LAST, 0, 1]),
        ({"calibration_size": 12, "allow_overlap": True}, FIRST, LAST),
    ],
)
def test_which_samples(workspace: Path, data: dict[str, Any], calibration: list[int], validation: list[int]) -> None:
    assert chosen(config(**data)) == (calibration, validation)


def test_300_samples_calibrate_when_one_set_serves_both(workspace: Path) -> None:
    np.savez("data.npz", x=np.zeros((310, 4)))
    calibration, validation = chosen(config())
    assert (calibration, validation) == (list(range(300)), list(range(300, 310)))


def test_shuffled_by_seed_and_still_disjoint(workspace: Path) -> None:
    settings = config(calibration_size=12, shuffle=True)
    calibration, validation = chosen(settings)
    assert sorted(calibration + validation) == list(range(20))
    assert calibration != sorted(calibration)
    assert chosen(settings) == (calibration, validation)
    assert chosen(dataclasses.replace(settings, seed=1)) != (calibration, validation)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, r"calibration takes 20 of the 20 samples of data\.calibration, which leaves 0 for validation: .*data\.allow_overlap"),
        ({"calibration_size": 15, "validation_size": 6}, r"calibration takes 15 of the 20 .* leaves 5"),
        ({"calibration_size": 21}, r"data\.calibration_size is 21, but data\.calibration has 20 samples"),
        ({"validation": OTHER, "validation_size": 8}, r"data\.validation_size is 8, but data\.validation has 7 samples"),
        ({"validation_size": 21, "allow_overlap": True}, r"data\.validation_size is 21, but data\.calibration has 20 samples"),
        ({"validation": OTHER | {"path": "none.npz"}}, r"data\.validation: data file none\.npz does not exist"),
        ({"calibration": {"_target_": "builtins.list"}}, r"data\.calibration: the data set has no samples"),
        ({"calibration": {"_target_": "builtins.int"}}, r"data\.calibration: int is no data set; it needs __len__ and __getitem__"),
    ],
)
def test_sets_that_cannot_be_chosen(workspace: Path, data: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        chosen(config(**data))


def test_shared_contents_stop_unless_allowed(workspace: Path) -> None:
    x = np.arange(40.0).reshape(10, 4)
    np.savez("data.npz", x=x, y=np.zeros(10, int))
    np.savez("other.npz", x=np.vstack([x[[3, 5]], x + 1]), y=np.arange(12) % 3)  # with other labels
    with pytest.raises(UserError, match="2 of 12 validation samples are also calibration samples"):
        prepare.main(config(validation=OTHER))
    assert not Path("build/prepare").exists()
    prepare.main(config(validation=OTHER, allow_overlap=True))
    assert read_json("build/prepare/dataset.json")["shared"] == 2


# ------------------------------------------------------------------------------------------------ reading them later


def same(left: Samples, right: Sequence[Any]) -> bool:
    return all(np.array_equal(a.inputs["x"], b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("validation", [None, OTHER])
def test_later_stages_read_what_was_prepared(workspace: Path, validation: dict[str, Any] | None) -> None:
    settings = config(validation=validation, calibration_size=12, shuffle=True)
    prepare.main(settings)
    x, other = (np.load(name)["x"].astype(np.float32)[:, None] for name in ("data.npz", "other.npz"))
    assert same(samples.calibration_samples(settings), x[indices("calibration")])
    assert same(samples.validation_samples(settings), (x if validation is None else other)[indices("validation")])


def test_a_subset_for_the_statistics(workspace: Path) -> None:
    settings = config(calibration_size=12)
    prepare.main(settings)
    few = dataclasses.replace(settings, quantization=Quantization(stat_subset_size=5))
    assert samples.calibration_samples(few).indices == [0, 1, 2, 3, 4]
    assert len(list(samples.calibration_samples(few))) == 5
    many = dataclasses.replace(settings, quantization=Quantization(stat_subset_size=13))
    with pytest.raises(UserError, match="stat_subset_size is 13, but there are 12 calibration samples"):
        samples.calibration_samples(many)


def test_changed_data_is_noticed(workspace: Path) -> None:
    settings = config(calibration_size=12)
    prepare.main(settings)
    data = dict(np.load("data.npz"))
    data["y"][15] += 1
    np.savez("data.npz", **data)
    assert len(list(samples.calibration_samples(settings))) == 12
    with pytest.raises(UserError, match=r"validation sample 15 has changed since the stage `prepare`"):
        list(samples.validation_samples(settings))
    np.savez("data.npz", x=data["x"][:16], y=data["y"][:16])
    with pytest.raises(UserError, match=r"data\.validation now has 16 samples, fewer than in the stage `prepare`"):
        samples.validation_samples(settings)


# ------------------------------------------------------------------------------------------------ what stops it


class NoMetric:
    """Looks like a metric, but is none."""


def test_labels_are_checked_by_every_metric_that_uses_them(workspace: Path) -> None:
    np.savez("data.npz", x=np.random.default_rng(0).normal(size=(20, 4)), y=np.array([0] * 19 + [3]))
    with pytest.raises(UserError, match=r"validation sample 19: label 3 is out of range: the model has 3 classes, 0 to 2"):
        prepare.main(config(calibration_size=12))
    assert not Path("build/prepare").exists()
    prepare.main(config(ERROR, calibration_size=12))


def test_missing_labels(workspace: Path) -> None:
    np.savez("data.npz", x=np.random.default_rng(0).normal(size=(20, 4)))
    with pytest.raises(UserError, match=r"validation sample 12: Accuracy needs a class index as label, not an unlabelled sample"):
        prepare.main(config(calibration_size=12))
    prepare.main(config(ERROR, calibration_size=12))


def test_a_metric_must_be_one(workspace: Path) -> None:
    with pytest.raises(UserError, match=r"metric\.mine: NoMetric is not derived from stages\.runtime\.metrics\.Metric"):
        prepare.main(config({"mine": {"_target_": f"{__name__}.NoMetric"}}, calibration_size=12))


class Mine(Metric):
    """A metric of one's own, with an argument and a rule about targets."""

    def __init__(self, most: int) -> None:
        self.most = most

    def check(self, target: Any) -> None:
        if target > self.most:
            raise UserError(f"more than {self.most}")

    def per_sample(self, outputs: Sequence[np.ndarray], target: Any) -> float:
        return float(target)


def test_a_metric_of_ones_own_checks_labels_too(workspace: Path) -> None:
    mine = {"_target_": f"{__name__}.Mine", "most": 1}
    with pytest.raises(UserError, match="validation sample 14: more than 1"):
        prepare.main(config({"mine": mine}, calibration_size=12))
    prepare.main(config({"mine": mine | {"most": 2}}, calibration_size=12))


class Directed(Mine):
    """A metric whose direction is a word."""

    higher_is_better = "max"  # type: ignore[assignment]


def test_a_direction_of_the_wrong_type(workspace: Path) -> None:
    with pytest.raises(UserError, match=r"^metric\.mine: higher_is_better is 'max', but must be True or False$"):
        prepare.main(config({"mine": {"_target_": f"{__name__}.Directed", "most": 2}}, calibration_size=12))


def test_an_exception_in_check_names_the_sample(workspace: Path) -> None:
    np.savez("data.npz", x=np.random.default_rng(0).normal(size=(20, 4)), y=np.array(["a"] * 20))
    with pytest.raises(UserError, match=r"^validation sample 12: check of Mine: TypeError: .* \(.*test_prepare\.py, line \d+, in check\)$"):
        prepare.main(config({"mine": {"_target_": f"{__name__}.Mine", "most": 1}}, calibration_size=12))


# ------------------------------------------------------------------------------------------------ what is odd


class Declaring:
    """Says which files it reads, and what it left out."""

    def __init__(self, length: int, files: list[str]) -> None:
        self.length = length
        self.named = files

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return np.full((1, 4), index), 0

    def files(self) -> list[str]:
        return self.named

    def notes(self) -> list[str]:
        return ["half of it is missing"]


class Listing(Declaring):
    """Has a list of its files, and notes that are none of ours."""

    def __init__(self, length: int, files: list[str]) -> None:
        super().__init__(length, [])
        self.__dict__ |= {"files": [Path(file) for file in files], "notes": "of the author's"}


def test_what_a_data_set_says_of_itself(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.bin").write_bytes(b"a")
    for kind, notes in ((Declaring, ["data.calibration: half of it is missing"]), (Listing, [])):
        section = {"_target_": f"{__name__}.{kind.__name__}", "length": 20, "files": ["a.bin", "missing.bin"]}
        record = prepare.main(config(ERROR, calibration=section, calibration_size=12))
        assert [entry["path"] for entry in record["files"]] == ["a.bin"]
        assert record["notes"][: len(notes)] == notes
        assert record["notes"][len(notes) :] == [note for note in record["notes"] if "same label" in note]
        assert all(f"prepare: {note}\n" in capsys.readouterr().err for note in notes)


class Recordings:
    """Rows, of which every six are parts of one recording."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        return np.full((1, 4), index, np.float32), index % 3

    def stream(self, index: int) -> str:
        return f"recording {index // 6}"


def stateful() -> ov.Model:
    x = operations.parameter([1, 4], np.float32, name="x")
    state = operations.read_value(np.zeros((1, 4), np.float32), "state", ov.Type.f32, ov.PartialShape([1, 4]))
    total = operations.add(x, state)
    return models.named(ov.Model([operations.result(total)], [operations.assign(total, "state")], [x]))


def test_parts_of_streams_are_written_and_read(workspace: Path) -> None:
    ov.serialize(stateful(), "net.xml")
    section = {"_target_": f"{__name__}.Recordings"}
    alone = config(ERROR, calibration=section, calibration_size=8)
    (note,) = prepare.main(alone)["notes"]
    assert note.startswith("the model keeps a state, with whose initial value every sample begins")
    before = read_json("build/prepare/dataset.json")
    assert samples.validation_samples(alone)[0].part is None
    asked = config(ERROR, calibration=section, calibration_size=8, streams=True)
    assert prepare.main(asked)["notes"] == []
    described = read_json("build/prepare/dataset.json")
    assert [entry["stream"][-1] for entry in described["calibration"]["samples"]] == list("00000011")
    # What is computed for them is another thing, though the samples are the same.
    assert described["validation"]["sha256"] != before["validation"]["sha256"]
    found = samples.validation_samples(asked)  # from 8 on: the recording that the calibration samples begin is cut
    parts = [sample.part for sample in found]
    assert [part and (part.first, part.position) for part in parts] == [
        *((0, position) for position in range(4)),
        *((4, position) for position in range(4, 10)),
        *((10, position) for position in range(10, 12)),
    ]


def test_one_stream_where_a_data_set_names_none(workspace: Path) -> None:
    asked = config(calibration_size=12, streams=True)
    assert prepare.main(asked)["notes"] == ["data.streams changes nothing: the model keeps no state"]
    assert {sample.part.first for sample in samples.calibration_samples(asked) if sample.part} == {0}


@pytest.mark.parametrize("shape", [[1, 4], [-1, 4], [-1, -1]])
def test_one_shape_of_a_dynamic_input_is_a_hint(workspace: Path, shape: list[int]) -> None:
    model = ov.Core().read_model("net.xml")
    model.reshape(ov.PartialShape(shape))
    ov.serialize(model, "open.xml")
    settings = config(calibration_size=8)
    settings.model.path = "open.xml"
    prepare.main(settings)
    described = read_json("build/prepare/dataset.json")
    if -1 not in shape:
        assert "one_shape" not in described
        return
    assert described["one_shape"] == {"x": [1, 4]}
    # What is said of it, in tests/report/test_advice.py, is true.
    settings.model.input_shape = described["one_shape"]
    prepare.main(settings)
    assert "one_shape" not in read_json("build/prepare/dataset.json")
