"""Command-line overrides become an edit of params.yaml that says what was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.common.errors import ConfigError
from stages.configuration.composition import compose
from stages.configuration.overrides import edited
from tests.project import Project

PARAMS = """\
# What this builds.
defaults:
  - override /model: local
  - override /data: text_lines # rendered
  - override /metric: text
  - _self_

model: {path: net.xml}
data:
  calibration: {count: 8} # few
quantization:
  preset: performance # fast
  range_estimator: {preset: default}
"""


@pytest.fixture(autouse=True)
def inside(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)


def composed(text: str) -> dict[str, object]:
    Path("params.yaml").write_text(text)
    return compose()


def at(text: str, key: str) -> object:
    value: object = composed(text)
    for name in key.split("."):
        assert isinstance(value, dict)
        value = value[name]
    return value


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("quantization.preset=mixed", "quantization.preset", "mixed"),
        ("evaluate.confidence=0.9", "evaluate.confidence", 0.9),
        ("bias_correction.threshold=1e-3", "bias_correction.threshold", 1e-3),
        ("quantization.ignored.scope=[a,'re:b.*']", "quantization.ignored.scope", ["a", "re:b.*"]),
        ("quantization.weights={bits: 4}", "quantization.weights.bits", 4),
        ("quantization.stat_subset_size=null", "quantization.stat_subset_size", None),
        ("++seed=7", "seed", 7),
        ("model.name='on'", "model.name", "on"),
        ("+model.input_shape.x=[1,3]", "model.input_shape.x", [1, 3]),
    ],
)
def test_values_win_and_everything_else_stays(override: str, key: str, value: object) -> None:
    edit = edited(PARAMS, [override])
    assert at(edit.text, key) == value
    assert edit.notes == ()
    for comment in ("# What this builds.", "# rendered", "# few"):
        assert comment in edit.text
    # The same as Hydra's own composition of the two.
    Path("params.yaml").write_text(PARAMS)
    expected = compose([override])
    assert composed(edit.text) == expected


def test_an_option_wins_over_the_value_that_would_hide_it() -> None:
    edit = edited(PARAMS, ["experiment=outliers"])
    assert at(edit.text, "quantization.range_estimator.preset") == "quantile"
    assert edit.notes == ("quantization.range_estimator.preset: 'default' of params.yaml gives way to 'quantile' of the chosen option",)
    assert at(edit.text, "quantization.preset") == "performance"


def test_an_experiments_choices_win_over_those_of_params() -> None:
    Path("conf/experiment/mine.yaml").write_text("# @package _global_\ndefaults:\n  - override /metric: accuracy\nseed: 5\n")
    edit = edited(PARAMS, ["experiment=mine"])
    assert edit.notes[0] == "metric: 'text' of params.yaml gives way to 'accuracy' of experiment mine"
    assert (at(edit.text, "seed"), list(composed(edit.text)["metric"])) == (5, ["accuracy"])  # type: ignore[call-overload]
    # Half an experiment makes no sense: what asks for it is refused by name.
    both = edited(PARAMS, ["experiment=mine", "metric=top_k"])
    with pytest.raises(ConfigError, match=r"'override /metric: top_k' in params\.yaml hides what the experiment 'mine' chooses"):
        composed(both.text)


def test_an_explicit_value_wins_over_the_option() -> None:
    edit = edited(PARAMS, ["experiment=outliers", "quantization.range_estimator.preset=default"])
    assert at(edit.text, "quantization.range_estimator.preset") == "default"


def test_values_of_the_option_that_is_left_go_with_it() -> None:
    edit = edited(PARAMS, ["data=arrays", "data.calibration.path=x.npz"])
    assert edit.notes == ("data.calibration.count: 8 of params.yaml is not among the chosen option's keys",)
    assert at(edit.text, "data.calibration._target_") == "stages.runtime.datasets.Arrays"


def test_the_same_option_changes_nothing() -> None:
    edit = edited(PARAMS, ["data=text_lines", "model=local"])
    assert edit.notes == ()
    assert composed(edit.text) == composed(PARAMS)


def test_what_an_option_leaves_open_comes_from_params() -> None:
    edit = edited("model: {path: a.xml}\n", ["model=local"])
    assert at(edit.text, "model.path") == "a.xml"
    empty = edited("", ["target_device=npu", "model.path=a.xml", "data.calibration.path=b.npz"])
    assert at(empty.text, "target_device.name") == "NPU"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("~seed", "cannot delete"),
        ("quantization.presett=mixed", "presett"),
        ("model=lokal", "there is no option 'lokal' in conf/model/"),
        ("data@model=arrays", "expected the name of a group"),
        ("quantization.preset", "is no override"),
    ],
)
def test_what_cannot_be_written_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        edited(PARAMS, [override])
    assert message in str(raised.value) and "\n" not in str(raised.value)
