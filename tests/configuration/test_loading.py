"""The configuration as stages load it, and instances of the classes that it names."""

from __future__ import annotations

import dataclasses
import json

import pytest

from stages.common import artifacts
from stages.common.errors import ConfigError, UserError
from stages.common.user_code import UserCodeError
from stages.config import main
from stages.configuration.loading import create, load_config
from tests.configuration.resolving import Resolve
from tests.project import Project


def test_written_configuration_is_complete_and_loads(resolve: Resolve) -> None:
    config = resolve("quantization: {preset: mixed}")
    main()
    assert load_config() == config
    assert json.loads(artifacts.CONFIG.read_text()) == dataclasses.asdict(config)


def test_missing_or_unfitting_configuration_is_one_line(resolve: Resolve) -> None:
    resolve()
    with pytest.raises(UserError, match=r"^build/config.json is missing; run `dvc repro`$"):
        load_config()
    main()
    artifacts.CONFIG.write_text(artifacts.CONFIG.read_text().replace('"preset": "performance"', '"preset": "fast"', 1))
    with pytest.raises(ConfigError, match=r"^quantization.preset: 'fast' is not allowed"):
        load_config()


def test_create(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    module = project.write("own_create.py", "class Mine:\n    def __init__(self, size, parts): self.size, self.parts = size, parts\n")
    monkeypatch.syspath_prepend(str(module.parent))
    made = create({"_target_": "own_create.Mine", "size": [1, 2], "parts": {"a": 1}}, "data.calibration")
    assert (made.size, type(made.size), type(made.parts)) == ([1, 2], list, dict)


def test_what_a_class_refuses_is_one_line_and_its_defects_are_not(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    module = project.write(
        "own_refusal.py",
        "from stages.common.errors import UserError\n"
        "class Refuses:\n    def __init__(self): raise UserError('count is 0')\n"
        "class Broken:\n    def __init__(self): raise ZeroDivisionError('defect')\n",
    )
    monkeypatch.syspath_prepend(str(module.parent))
    with pytest.raises(UserError, match=r"^data.calibration: count is 0$"):
        create({"_target_": "own_refusal.Refuses"}, "data.calibration")
    with pytest.raises(UserCodeError, match="defect") as caught:
        create({"_target_": "own_refusal.Broken"}, "data.calibration")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
