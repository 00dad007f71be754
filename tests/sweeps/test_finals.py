"""The last round of a sweep: which models take part, when there is none, and that it is measured side by side."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from stages.common.errors import UserError
from stages.sweeps import finals, job
from stages.sweeps.results import Variant, variants
from tests.project import Outcome, Project
from tests.sweeps.made import PLACE, all_variants, make_job


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Variant]:
    """Six jobs: one beyond the budget and fastest, five within; nothing can be measured of them."""
    monkeypatch.chdir(tmp_path)
    make_job(0, "performance", 0.05, 3.0)
    for number in range(1, 6):
        make_job(number, "mixed", 0.0, 4.0 + number / 10)
    return all_variants(6)


def measuring(monkeypatch: pytest.MonkeyPatch, ratios: list[float]) -> None:
    """Stand in for the measurement."""
    found = [{"median": ratio, "low": ratio - 0.01, "high": ratio + 0.01} for ratio in ratios]
    monkeypatch.setattr(finals, "_not_comparable", lambda chosen: None)
    monkeypatch.setattr(finals, "_measure", lambda place, chosen, seconds: (found, 30))


def test_the_fastest_that_keep_the_budget_take_part(made: list[Variant], monkeypatch: pytest.MonkeyPatch) -> None:
    assert [each.number for each in finals.finalists(made)] == [1, 2, 3, 4]
    measuring(monkeypatch, [1.4, 1.5, 1.3, 1.2])
    after, line = finals.timed(PLACE, made, 10.0)
    assert [each.final and each.final["median"] for each in after] == [None, 1.4, 1.5, 1.3, 1.2, None]
    assert line == "1, 2, 3, 4 and FP32 in bf16 were timed once more, side by side, in 30 rounds (sweep.final_timing)"


def test_there_is_none_without_time_or_anything_to_compare(made: list[Variant], monkeypatch: pytest.MonkeyPatch) -> None:
    measuring(monkeypatch, [1.4, 1.5, 1.3, 1.2])
    assert finals.timed(PLACE, made, 0.0) == (made, "")
    assert finals.timed(PLACE, made[:2], 10.0) == (made[:2], "")  # one that keeps the budget
    untimed = [dataclasses.replace(each, speed={}) for each in made]
    assert finals.timed(PLACE, untimed, 10.0) == (untimed, "")


def test_why_jobs_cannot_be_timed_together_is_said(made: list[Variant], monkeypatch: pytest.MonkeyPatch) -> None:
    assert finals.timed(PLACE, made, 1.0)[1].startswith("not timed side by side: the jobs ran on another device than ")
    other = [dataclasses.replace(each, config={**each.config, "engine": {"device": "CPU", "number": each.number}}) for each in made]
    assert finals.timed(PLACE, other, 1.0)[1] == "not timed side by side: the jobs differ in `engine`"
    (job.folder_of(PLACE, 2) / "build/prepare/model.bin").write_text("another")
    assert finals.timed(PLACE, made, 1.0)[1] == "not timed side by side: the jobs have different FP32 models"

    def broken(*_: Any) -> None:
        raise UserError("a file\nis gone")

    monkeypatch.setattr(finals, "_not_comparable", lambda chosen: None)
    monkeypatch.setattr(finals, "_measure", broken)
    assert finals.timed(PLACE, made, 1.0) == (made, "not timed side by side: a file is gone")


def test_real_models_are_timed_in_the_same_rounds(swept: tuple[Project, Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    project, _ = swept
    place = min((project.root / "multirun").iterdir()).relative_to(project.root)  # others may have swept since
    monkeypatch.chdir(project.root)
    models = [model for number in (0, 2) for model in variants(place, job.read(place, number))]
    budget = models[0].config["accuracy_aware"] | {"maximal_drop": 1.0}
    models = [dataclasses.replace(each, config={**each.config, "accuracy_aware": budget}) for each in models]
    after, line = finals.timed(place, models, 0.5)
    assert re.fullmatch(r"\d, \d and FP32 in \w+ were timed once more, side by side, in \d+ rounds \(sweep.final_timing\)", line)
    for each in after:
        assert each.final is not None and 0.1 < each.final["low"] <= each.final["median"] <= each.final["high"] < 10
    assert Path.cwd() == project.root
