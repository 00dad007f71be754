"""Which model a result offers for deployment, and what was measured of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.common.errors import UserError
from stages.deployment.deployable import deployable
from tests import built


def test_without_searches_it_is_the_int8_model(workspace: Path) -> None:
    model = deployable(built.config(), "best")
    assert (model.name, model.folder, model.budget) == ("int8", Path("build/correct_bias"), None)
    assert model.metrics["exact_match"]["value"] == pytest.approx(0.881)
    assert model.metrics["exact_match"]["drop_high"] == pytest.approx(0.031)
    assert model.latency_ms is not None and model.latency_ms["median"] == 4.0
    assert model.speed_up is not None and model.speed_up["median"] == 1.5  # against bf16, which the device prefers
    assert (model.throughput, model.fidelity["ratio"]) == (500.0, 0.4)
    assert model.size_bytes == len("int8 performance xml" + "int8 performance bin")


@pytest.mark.parametrize(
    ("holds", "within", "expected"),
    [
        (True, True, "tune"),
        (True, False, "accuracy_aware"),
        (True, None, "accuracy_aware"),
        (False, True, "tune"),
        (False, False, "int8"),
        (False, None, "int8"),
    ],
)
def test_the_last_search_whose_budget_holds_wins(workspace: Path, holds: bool, within: bool | None, expected: str) -> None:
    built.write_accuracy_aware(workspace, holds=holds)
    with_judged(workspace)
    built.write_tune(workspace, enabled=within is not None, within=bool(within))
    model = deployable(built.config(), "best")
    assert model.name == expected
    assert model.budget is (None if expected == "int8" else True)
    assert deployable(built.config(), "accuracy_aware").budget is holds  # by name it is to be had all the same


def with_judged(workspace: Path) -> None:
    """What result.json says of all validation samples."""
    path = workspace / "build/accuracy_aware/result.json"
    judged = built.evaluation(0.009)["metrics"]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"judged": judged}))


def test_numbers_of_searches(workspace: Path) -> None:
    built.write_accuracy_aware(workspace)
    with_judged(workspace)
    built.write_tune(workspace)
    kept, tuned = (deployable(built.config(), name) for name in ("accuracy_aware", "tune"))
    assert kept.metrics["exact_match"]["drop"] == pytest.approx(0.009)  # of all samples, not of the search's alone
    assert kept.latency_ms is not None and kept.latency_ms["median"] == 4.0
    assert kept.speed_up is not None and kept.speed_up["median"] == 1.5
    assert tuned.metrics["exact_match"]["value"] == pytest.approx(0.894)
    assert tuned.latency_ms is not None and tuned.latency_ms["median"] == 3.75
    assert tuned.speed_up is not None and tuned.speed_up["median"] == 1.6
    assert [tuned.throughput, kept.throughput] == [None, None]


def test_a_search_that_kept_int8_has_its_numbers(workspace: Path) -> None:
    built.write_accuracy_aware(workspace)
    with_judged(workspace)
    (workspace / "build/accuracy_aware/latency.json").write_text("{}")
    kept, int8 = (deployable(built.config(), name) for name in ("accuracy_aware", "int8"))
    assert (kept.latency_ms, kept.speed_up, kept.throughput) == (int8.latency_ms, int8.speed_up, int8.throughput)
    assert kept.fidelity == int8.fidelity


def test_fp32_loses_what_the_default_precision_costs(workspace: Path) -> None:
    model = deployable(built.config(), "fp32")
    assert (model.folder, model.quantizers) == (Path("build/prepare"), None)
    assert model.metrics["exact_match"]["value"] == 0.901
    assert model.metrics["exact_match"]["drop"] == pytest.approx(0.001)
    assert model.metrics["error"]["drop"] == pytest.approx(0.001)  # lower is better
    assert model.latency_ms is not None and model.latency_ms["median"] == 6.0
    evaluation = json.loads((workspace / "build/evaluate/evaluation.json").read_text())
    evaluation["precisions"]["default"] = "f32"
    (workspace / "build/evaluate/evaluation.json").write_text(json.dumps(evaluation))
    assert deployable(built.config(), "fp32").metrics["exact_match"]["drop"] == 0.0


def test_without_a_benchmark_there_are_no_speeds(workspace: Path) -> None:
    (workspace / "build/evaluate/latency.json").write_text("{}")
    for name in ("int8", "fp32"):
        model = deployable(built.config(), name)
        assert [model.latency_ms, model.speed_up, model.throughput] == [None, None, None]


@pytest.mark.parametrize("stage", ["accuracy_aware", "tune"])
def test_a_stage_that_is_off_has_no_model(workspace: Path, stage: str) -> None:
    with pytest.raises(UserError, match=rf"^there is no model of {stage}: {stage}.enabled is false$"):
        deployable(built.config(), stage)


def test_a_model_that_is_gone(workspace: Path) -> None:
    (workspace / "build/correct_bias/model.bin").unlink()
    with pytest.raises(UserError, match=r"^build/correct_bias/model.bin is missing; run `dvc repro`$"):
        deployable(built.config(), "int8")
