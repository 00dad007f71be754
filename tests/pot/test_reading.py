"""POT's files are read, whatever they are written in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.common.errors import UserError
from stages.pot.reading import plain_json, read_pot
from tests.pot.configurations import configuration, default


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1} // end', {"a": 1}),
        ('/* a\n "b" */ {"a": /* one */ 1,}', {"a": 1}),
        ('{"a": "http://x/*y*/", "b": "\\" // no comment", "c": [1, 2,\n],}', {"a": "http://x/*y*/", "b": '" // no comment', "c": [1, 2]}),
        ('{"a": ",}"}', {"a": ",}"}),
    ],
)
def test_comments_and_trailing_commas(text: str, expected: Any) -> None:
    assert json.loads(plain_json(text)) == expected
    assert plain_json(text).count("\n") == text.count("\n")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{\n "model": {},\n "x" 1}', "line 3, column 6: not valid JSON: Expecting ':' delimiter"),
        ("a.json", "{}", "no POT configuration"),
        ("a.json", "[1]", "no POT configuration"),
        ("a.yaml", "model: [", "line 1: not valid YAML"),
        ("missing.json", None, "No such file or directory"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_pot(tmp_path / name)


def test_yaml_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(configuration(default(preset="mixed"))))
    assert read_pot(path) == configuration(default(preset="mixed"))
