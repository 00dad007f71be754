"""Exceptions of a user's code: what is said of them, and where they come from."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.common.errors import UserError
from stages.common.user_code import UserCodeError, offered, print_traceback, user_code

SOURCE = """\
import json

def deep(value):
    return json.loads(value)

def shallow(value):
    return deep(value)

def leave(*code):
    import sys
    sys.exit(*code)

def long():
    raise ValueError("one\\n  two " + 400 * "x")

def silent():
    raise KeyError
"""


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of a user's own, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("mine", tmp_path / "mine.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def failure(call: Callable[[], object]) -> UserCodeError:
    with pytest.raises(UserCodeError) as raised, user_code("sample 3"):
        call()
    return raised.value


def test_what_and_where(users: Any) -> None:
    """The user's innermost line, not the library's that it called."""
    error = failure(lambda: users.shallow("{"))
    assert str(error).startswith("sample 3: JSONDecodeError: Expecting property name")
    assert str(error).endswith("(mine.py, line 4, in deep)")
    assert str(failure(users.silent)) == "sample 3: KeyError (mine.py, line 17, in silent)"


def test_one_line_of_bearable_length(users: Any) -> None:
    text = str(failure(users.long))
    assert text.startswith("sample 3: ValueError: one two xxx") and "\n" not in text and len(text) < 400


@pytest.mark.parametrize(("code", "shown"), [((), ""), ((0,), "0"), ((3,), "3"), (("bye",), "'bye'")])
def test_the_program_is_not_ended(users: Any, code: tuple[object, ...], shown: str) -> None:
    expected = f"sample 3: it ends the program, with sys.exit({shown}) (mine.py, line 11, in leave)"
    assert str(failure(lambda: users.leave(*code))) == expected


@pytest.mark.parametrize("error", [UserError("one line"), KeyboardInterrupt(), MemoryError()])
def test_what_is_clear_already_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, user_code("sample 3"):
        raise error
    assert raised.value is error


def test_the_traceback_begins_with_the_users_code(users: Any, capsys: pytest.CaptureFixture[str]) -> None:
    print_traceback(failure(lambda: users.shallow("{")))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    files = [line.split('"')[1] for line in lines if line.startswith("  File")]
    # This file's own lambda is a user's code, too.
    assert [Path(file).name for file in files[:4]] == ["test_user_code.py", "test_user_code.py", "mine.py", "mine.py"]
    assert lines[-1].startswith("json.decoder.JSONDecodeError")
    print_traceback(failure(lambda: sys.exit(1)))
    print_traceback(UserError("one line"))
    assert capsys.readouterr().err == ""


class Offering:
    """What may be there under the names that are asked for."""

    number = 3
    text = "label"

    def fitting(self, index: int) -> str:
        return str(index)

    def with_more(self, index: int, verbose: bool = False) -> str:
        return str(index)

    def without(self) -> str:
        return ""

    def of_two(self, index: int, other: int) -> str:
        return ""


def test_what_an_object_offers() -> None:
    owner = Offering()
    assert [name for name in ("number", "text", "nothing", "without", "of_two") if offered(owner, name, 3)] == []
    for name in ("fitting", "with_more"):
        method = offered(owner, name, 3)
        assert method is not None and method(3) == "3"
