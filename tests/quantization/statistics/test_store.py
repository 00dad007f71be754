"""Statistics on disk."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from stages.common.errors import UserError
from stages.quantization.placement.plan import TensorName
from stages.quantization.statistics.store import PER_OPERATION, PER_TENSOR, Statistics, load, save
from tests.quantization.quantizing import statistics_of
from tests.quantization.small import convolution, images, model, parameter, random


def collected() -> Statistics:
    x = parameter((1, 3, -1, 8))
    first = convolution(x, random(4, 3, 3, 3), "first", bias=random(4))
    tested = model(convolution(first, random(5, 4, 1, 1), "second", bias=random(5)), x)
    found = statistics_of(tested, images(3), [0.01], [0.02], every_channel=True)
    found.derived[TensorName("from another", 1)] = (TensorName("x", 0), -2.0, 0.5)
    return found


def test_every_table_is_stored() -> None:
    assert {field.name for field in fields(Statistics)} == {
        *PER_TENSOR,
        *PER_OPERATION,
        "samples",
        "distribution",
        "input_shape",
        "derived",
    }


def test_round_trip(tmp_path: Path) -> None:
    before = collected()
    save(before, tmp_path)
    after = load(tmp_path)
    for quantity in (*PER_TENSOR, "distribution", *PER_OPERATION):
        old, new = getattr(before, quantity), getattr(after, quantity)
        assert sorted(old) == list(new) and (old or quantity == "features"), quantity  # this model has no MatMul
        for key in old:
            np.testing.assert_array_equal(old[key], new[key])
            assert old[key].dtype == new[key].dtype
    assert (after.samples, after.input_shape, after.derived) == (before.samples, before.input_shape, before.derived)


def test_the_same_statistics_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save(collected(), tmp_path / name)
    for file in ("statistics.npz", "index.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_derived_tails() -> None:
    statistics = Statistics(1)
    stored = TensorName("y", 0)
    statistics.lowest[stored] = np.array([[-3, -1]], np.float32)
    statistics.highest[stored] = np.array([[7, 5]], np.float32)
    statistics.size[stored] = np.array([10])
    for scale, low, high in ((2.0, [-2, -1], [3, 2]), (-2.0, [-3, -2], [2, 1])):
        statistics.derived[TensorName("x", 0)] = (stored, scale, 1.0)
        found = statistics.tails(TensorName("x", 0))
        assert [list(values) for values in found[0]] == [low] and [list(values) for values in found[1]] == [high]
        assert list(found[2]) == [10]
    with pytest.raises(KeyError):
        statistics.tails(TensorName("z", 0))


@pytest.mark.parametrize("damage", ["no index", "no arrays", "cut arrays", "cut index", "an entry", "another format"])
def test_damaged_files_are_one_line(tmp_path: Path, damage: str) -> None:
    save(collected(), tmp_path)
    index, arrays = tmp_path / "index.json", tmp_path / "statistics.npz"
    data = json.loads(index.read_text())
    if damage == "no index":
        index.unlink()
    elif damage == "no arrays":
        arrays.unlink()
    elif damage == "cut arrays":
        arrays.write_bytes(arrays.read_bytes()[:500])
    elif damage == "cut index":
        index.write_text(index.read_text()[:100])
    elif damage == "an entry":
        data["entries"][0]["array"] = "9999"
        index.write_text(json.dumps(data))
    else:
        index.write_text(json.dumps(data | {"format": 99}))
    with pytest.raises(UserError, match=r"statistics cannot be read \(.+\); run `dvc repro --force collect_statistics`$") as raised:
        load(tmp_path)
    assert "\n" not in str(raised.value)
