"""What is checked, and where each limit lies."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages import check
from stages.common.errors import UserError
from stages.configuration.schema import Check, Config
from stages.deployment.comment import comment
from stages.deployment.deployable import Deployable, deployable
from stages.deployment.limits import against, baseline_of, findings, read_baseline
from tests import built
from tests.project import ROOT


def limited(**limits: Any) -> Config:
    return dataclasses.replace(built.config(), check=Check(**limits))


def failed(config: Config, model: Deployable) -> list[str]:
    return [finding.what for finding in findings(config, model) if not finding.holds]


# exact_match drops by 0.021, error by 0.04; 1.5x; 40 bytes; fidelity 0.4
@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"maximal_drop": 0.021}, []),
        ({"maximal_drop": 0.0209}, ["exact_match"]),
        ({"metrics": {"error": 0.04}}, []),
        ({"metrics": {"error": 0.039}}, ["error"]),
        ({"maximal_drop": 0.5, "metrics": {"exact_match": 0.01}}, ["exact_match"]),  # the one by name is the nearer one
        ({"minimal_speed_up": 1.5}, []),
        ({"minimal_speed_up": 1.51}, ["speed-up"]),
        ({"maximal_size_mb": 4.0e-5}, []),
        ({"maximal_size_mb": 3.9e-5}, ["size"]),
        ({"maximal_fidelity": 0.4}, []),
        ({"maximal_fidelity": 0.39}, ["fidelity"]),
        ({}, []),
    ],
)
def test_limits(workspace: Path, limits: dict[str, Any], expected: list[str]) -> None:
    config = limited(**limits)
    assert failed(config, deployable(config, "int8")) == expected
    assert len(findings(config, deployable(config, "int8"))) == bool(limits)


def test_a_line_says_what_was_measured_and_what_is_allowed(workspace: Path) -> None:
    config = limited(maximal_drop=0.01)
    (finding,) = findings(config, deployable(config, "int8"))
    assert finding.sentence == ("exact_match: drops by 2.10 points [1.10, 3.10], from 90.20 % to 88.10 %; at most 1.00 points are allowed")


@pytest.mark.parametrize(
    ("limits", "file", "content", "message"),
    [
        ({"minimal_speed_up": 1.2}, "latency.json", {}, "check.minimal_speed_up is 1.2, but speed was not measured"),
        ({"maximal_fidelity": 2.0}, "evaluation.json", {"fidelity": {}}, "check.maximal_fidelity is 2, but fidelity was not measured"),
    ],
)
def test_what_was_not_measured_cannot_hold(
    workspace: Path, limits: dict[str, Any], file: str, content: dict[str, Any], message: str
) -> None:
    path = workspace / "build/evaluate" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | content if content else {}))
    config = limited(**limits)
    with pytest.raises(UserError, match=f"^{message}"):
        findings(config, deployable(config, "int8"))


# ------------------------------------------------------------------------------------------------ an earlier result


@pytest.fixture
def before(workspace: Path) -> dict[str, Any]:
    """What the made-up build is as a baseline."""
    return dict(baseline_of(deployable(built.config(), "int8")))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"drop": 0.031}, []),  # where the baseline's interval ends
        ({"drop": 0.032}, ["exact_match"]),
        ({"milliseconds": 4.4}, []),  # 1.36x, and the interval begins at 1.35x
        ({"milliseconds": 4.6}, ["speed-up"]),
    ],
)
def test_a_baseline_sets_limits(workspace: Path, before: dict[str, Any], change: dict[str, float], expected: list[str]) -> None:
    built.write_build(workspace, built.config(), **change)
    found, notes = against(before, deployable(built.config(), "int8"))
    assert [finding.what for finding in found if not finding.holds] == expected
    assert [finding.what for finding in found] == ["exact_match", "error", "speed-up", "size", "fidelity"]
    assert notes == []


def test_size_and_fidelity_against_a_baseline(workspace: Path, before: dict[str, Any]) -> None:
    evaluation = built.evaluation(0.021)
    for ratio, holds in ((1.9, True), (2.1, False)):  # below 2 it is rounding
        evaluation["fidelity"]["ratio"] = ratio
        (workspace / "build/evaluate/evaluation.json").write_text(json.dumps(evaluation))
        found, _ = against(before, deployable(built.config(), "int8"))
        assert [finding.holds for finding in found if finding.what == "fidelity"] == [holds]
    (workspace / "build/correct_bias/model.bin").write_text("larger than it was")
    (size,) = [finding for finding in against(before, deployable(built.config(), "int8"))[0] if finding.what == "size"]
    assert size.holds  # 38 bytes
    (workspace / "build/correct_bias/model.bin").write_text("larger than it was before")
    (size,) = [finding for finding in against(before, deployable(built.config(), "int8"))[0] if finding.what == "size"]
    assert not size.holds


def test_what_cannot_be_compared_is_said(workspace: Path, before: dict[str, Any]) -> None:
    model = deployable(built.config(), "int8")
    other = before | {
        "device": "Other(R) Processor",
        "validation_sha256": "c",
        "metrics": before["metrics"] | {"recall": {}},
        "fidelity": None,
    }
    found, notes = against(other, model)
    assert [finding.what for finding in found] == ["exact_match", "error", "size"]
    assert notes == [
        "the baseline is of other validation samples: drops are compared all the same",
        "recall is not compared: it is not measured any more",
        "speed-up is not compared: it was measured on Test(R) Processor, the baseline's on Other(R) Processor",
        "fidelity is not compared: the baseline has none",
    ]


def test_a_baseline_without_intervals(workspace: Path, before: dict[str, Any]) -> None:
    exact = before["metrics"]["exact_match"] | {"drop_low": None, "drop_high": None}
    found, _ = against(before | {"metrics": {"exact_match": exact}}, deployable(built.config(), "int8"))
    assert found[0].holds and found[0].limit == "the baseline drops by 2.10 points"
    built.write_build(workspace, built.config(), drop=0.022)
    found, _ = against(before | {"metrics": {"exact_match": exact}}, deployable(built.config(), "int8"))
    assert not found[0].holds


@pytest.mark.parametrize("content", [None, "[]", '{"format": 0}'])
def test_what_is_no_baseline_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "baseline.json").write_text(content)
    with pytest.raises(UserError, match=r"^check.baseline: .*baseline.json (is missing|was not written by)"):
        read_baseline(tmp_path / "baseline.json")


# ------------------------------------------------------------------------------------------------ the command


def test_exit_codes_and_lines(workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: str, **limits: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(check, "fresh_config", lambda: limited(**limits))
        code = check.main(arguments)
        return (code, *capsys.readouterr())

    code, out, err = run(maximal_drop=0.05, minimal_speed_up=2.0)
    assert code == 1
    assert out.splitlines() == [
        "check: ok: exact_match: drops by 2.10 points [1.10, 3.10], from 90.20 % to 88.10 %; at most 5.00 points are allowed"
    ]
    assert err.splitlines() == [
        "check: FAILED: speed-up: 1.50x [1.35, 1.65] against FP32 in the default precision; at least 2x is asked for"
    ]
    assert run(maximal_drop=0.05)[0] == 0
    code, out, err = run()
    assert (code, out) == (2, "")
    assert err.startswith("check: error: nothing is checked: set a limit") and err.count("\n") == 1
    assert run("--model", "tune", maximal_drop=0.05)[0] == 2
    assert run("--model", "fp32", maximal_drop=0.001)[0] == 0

    assert run("--write-baseline", "reports/baseline.json")[0] == 0
    assert json.loads(Path("reports/baseline.json").read_text())["metrics"]["exact_match"]["drop"] == pytest.approx(0.021)
    assert run(baseline="reports/baseline.json")[0] == run("--baseline", "reports/baseline.json")[0] == 0
    built.write_build(workspace, built.config(), drop=0.04)
    code, _, err = run(baseline="reports/baseline.json")
    assert code == 1 and "exact_match: drops by 4.00 points" in err and "the baseline's interval ends at 3.10 points" in err


def test_markdown(workspace: Path) -> None:
    config = limited(maximal_drop=0.01, minimal_speed_up=1.2)
    model = deployable(config, "int8")
    text = comment(config, model, findings(config, model), ["speed-up is not compared"]).splitlines()
    assert text[0] == "❌ **INT8 of reader leaves 1 of 2 limits**"
    assert "| exact_match | 90.20 % | 88.10 % | 2.10 points [1.10, 3.10] |" in text
    marks = [line.split("|")[-2].strip() for line in text if line.startswith(("| exact_match | drops", "| speed-up"))]
    assert marks == ["❌", "✅"]  # what fails comes first
    assert text[-1] == "- speed-up is not compared"
    kept = limited(maximal_drop=0.1)
    assert comment(kept, model, findings(kept, model), []).startswith("✅ **INT8 of reader keeps all 1 limits**")


def test_the_workflow_of_readme_runs_these_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = [block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if block.startswith("name: check\n")]
    steps = [step.get("run", "") for step in yaml.safe_load(block)["jobs"]["check"]["steps"]]
    commands = [step for step in steps if "stages.check" in step]
    assert commands == ["python -m stages.check --markdown > comment.md"]
    assert steps.index("dvc pull --run-cache && dvc repro") < steps.index(commands[0]) < len(steps) - 1
    assert "comment.md" in steps[-1] and yaml.safe_load(block)["permissions"]["pull-requests"] == "write"
    keys = next(line for line in text.splitlines() if line.startswith("check: {"))
    assert set(yaml.safe_load(keys)["check"]) <= {field.name for field in dataclasses.fields(Check)}
