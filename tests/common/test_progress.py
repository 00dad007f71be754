"""What is being done is said once it takes long, and not before."""

from __future__ import annotations

import io
import time

import pytest

from stages.common import progress
from stages.common.progress import Steps


def test_quick_work_says_nothing() -> None:
    said = io.StringIO()
    with Steps("prepare", said) as begin:
        begin("reading the model")
        begin("writing the model")
    time.sleep(0.05)
    assert said.getvalue() == ""


def test_the_step_that_takes_long_is_said_while_it_lasts_and_those_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.2)
    said = io.StringIO()
    with Steps("prepare", said) as begin:
        begin("importing OpenVINO")
        begin("reading the model")
        end = time.monotonic() + 30
        while not said.getvalue() and time.monotonic() < end:
            time.sleep(0.01)
        assert said.getvalue() == "prepare: reading the model\n"
        begin("writing the model")
    assert said.getvalue() == "prepare: reading the model\nprepare: writing the model\n"


def test_a_step_that_fails_says_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.2)
    said = io.StringIO()
    with pytest.raises(ValueError, match="no model"), Steps("prepare", said) as begin:
        begin("reading the model")
        raise ValueError("no model")
    time.sleep(0.4)
    assert said.getvalue() == ""
