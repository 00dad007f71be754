"""Which job a sweep says to adopt, and why."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from stages.sweeps.adoption import adoption
from stages.sweeps.results import table
from tests import built
from tests.sweeps.made import PLACE, all_variants, make_job


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def adopted(count: int) -> Any:
    return adoption(PLACE, all_variants(count))


def test_the_fastest_that_keeps_the_budget_and_why_not_the_others() -> None:
    make_job(0, "performance", 0.031, 4.0)
    make_job(1, "mixed", 0.004, 4.4)
    make_job(2, "accuracy", 0.001, 5.0)
    found = adopted(3)
    assert found.best is not None and found.best.number == 1
    assert found.lines() == [
        "best: adopt job 1 (preset=mixed): 1.36x faster than FP32 in bf16 [1.35, 1.38]; no clear drop of exact_match: 0.40 points"
        " [-0.60, 1.40], 1.00 allowed",
        "      job 0 (preset=performance) is 1.50x faster than FP32 in bf16 [1.48, 1.52], but exact_match drops by 3.10 points"
        " [2.10, 4.10], 1.00 allowed",
        "adopt one: python -m stages.promote multirun/now/1",
    ]


def test_one_that_loses_none_at_the_same_speed_is_preferred() -> None:
    make_job(0, "performance", 0.009, 4.0, spread=0.03)
    make_job(1, "mixed", 0.0, 4.05, spread=0.03)
    found = adopted(2)
    assert found.best.number == 1
    assert found.others == (
        "job 0 (preset=performance) is as fast, and no clear drop of exact_match: 0.90 points [-0.10, 1.90], 1.00 allowed",
    )


def test_no_job_keeps_the_budget() -> None:
    make_job(0, "performance", 0.05, 4.0)
    make_job(1, "mixed", 0.03, 4.4)
    found = adopted(2)
    assert found.best is None
    assert found.lines() == [
        "best: no job keeps the accuracy budget; job 1 (preset=mixed) comes closest:"
        " exact_match drops by 3.00 points [2.00, 4.00], 1.00 allowed",
        "next: give the layers that hurt back to floating point until the budget holds",
        "      python -m stages.sweep -m quantization.preset=mixed accuracy_aware.enabled=true",
    ]


def test_no_job_is_faster_than_fp32() -> None:
    make_job(0, "performance", 0.0, 6.0, spread=0.05)
    make_job(1, "mixed", 0.0, 7.0)
    found = adopted(2)
    assert found.best is None
    assert found.verdict == (
        "no job is worth it: of those that keep the budget the fastest, job 0 (preset=performance), is no different from FP32 in bf16"
    )
    assert [step.command for step in found.advice] == ["", "python -m stages.sweep -m tune.enabled=true"]
    assert "ship FP32 in bf16, multirun/now/0/build/prepare/model.xml" in found.lines()[1]


def test_what_a_search_made_is_a_candidate_of_its_own() -> None:
    folder = make_job(0, "performance", 0.031, 4.0)
    make_job(1, "mixed", 0.02, 4.4)
    built.write_accuracy_aware(folder)
    (folder / "build/accuracy_aware/quantizers.json").write_text(json.dumps(built.quantizers() | {"quantizers": []}))
    found = adopted(2)
    assert found.best.title == "job 0 (preset=performance, accuracy-aware)"
    assert found.advice[0].text.endswith("its model is multirun/now/0/build/accuracy_aware/model.xml")
    result = folder / "build/accuracy_aware/result.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | {"holds": False}))
    found = adopted(2)
    assert found.best is None and "allow more (accuracy_aware.maximal_drop)" in found.advice[0].text


def test_a_model_that_depends_on_the_compilation_is_passed_over() -> None:
    plain = {"hint": "LATENCY", "instrumented": False, "ratio": 9.0}

    def wrong(evaluation: dict[str, Any]) -> None:
        evaluation["fidelity"] = {"ratio": 9.0, "limit": 2.0, "first": None, "warning": "differs", "compilations": [plain]}
        evaluation["warnings"].append("differs")

    make_job(0, "performance", 0.0, 4.0, edits={"evaluate/evaluation.json": wrong})
    make_job(1, "mixed", 0.0, 4.4)
    found = adopted(2)
    assert found.best.number == 1
    assert found.others == ("job 0 (preset=performance): the device computes something else than the model says",)
    assert "0  WARNING: differs" in table(all_variants(2), PLACE, parallel=False).splitlines()


def test_jobs_of_different_models_are_not_compared() -> None:
    make_job(0, "performance", 0.0, 4.0)
    make_job(1, "mixed", 0.0, 4.4, edits={"config.json": lambda config: config["model"].update(name="other")})
    assert adopted(2).best is None and "jobs differ in their model or data" in adopted(2).verdict


def test_warnings_are_in_the_table_once() -> None:
    for number, preset in enumerate(("performance", "mixed")):
        edit = {"evaluate/evaluation.json": lambda evaluation: evaluation["warnings"].append("INT8 runs in f32")}
        make_job(number, preset, 0.0, 4.0, edits=edit)
    assert [line for line in table(all_variants(2), PLACE, parallel=False).splitlines() if "WARNING" in line] == [
        "0, 1  WARNING: INT8 runs in f32"
    ]


def test_the_table_has_factors_and_no_milliseconds() -> None:
    make_job(0, "performance", 0.0, 4.0)
    lines = table(all_variants(1), PLACE, parallel=False).splitlines()
    assert " ms" not in "\n".join(lines) and "3.00x" in lines[1] and "1.50x (bf16)" in lines[1]
    assert "side by side" not in lines[0]
    timed = [dataclasses.replace(each, final={"median": 1.4, "low": 1.3, "high": 1.5}) for each in all_variants(1)]
    lines = table(timed, PLACE, parallel=False).splitlines()
    assert "side by side" in lines[0] and "1.40x" in lines[1]


def test_without_a_second_precision_there_is_one_column_of_factors() -> None:
    def f32(evaluation: dict[str, Any]) -> None:
        evaluation["precisions"].update(default="f32", int8="f32")

    make_job(0, "performance", 0.0, 4.0, edits={"evaluate/evaluation.json": f32})
    assert "against default" not in table(all_variants(1), PLACE, parallel=False)
    assert json.loads((PLACE / "0.job.json").read_text())["number"] == 0
