"""Arguments of `_target_` classes, read from their source."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.common.errors import ConfigError
from stages.configuration import user_classes

Write = Callable[[str], str]

_names = itertools.count()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a module that would fail if it were imported, and return its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def written(source: str) -> str:
        name = f"target_module_{next(_names)}"
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('imported')\n{source}")
        return name

    return written


def check(target: str, **arguments: Any) -> None:
    user_classes.check({"_target_": target, **arguments}, "data.calibration")


SIGNATURES = {
    "__init__": "class C:\n    def __init__(self, a, b=1, *, c=2): ...",
    "function": "def C(a, b=1, *, c=2): ...",
    "dataclass": "@dataclass\nclass C:\n    K: ClassVar[int]\n    a: Any\n    b: Any = 1\n    c: Any = field(default_factory=list)",
    "frozen dataclass": "@dataclasses.dataclass(frozen=True)\nclass C:\n    a: object\n    b: object = 1\n    c: object = field(default=2)",
    "NamedTuple": "class C(NamedTuple):\n    a: object\n    b: object = 1\n    c: object = 2",
    "inherited": "class B:\n    def __init__(self, a, b=1, c=2): ...\nclass C(B):\n    pass",
    "inherited dataclass": "@dataclass\nclass B:\n    a: object\n@dataclass\nclass C(B):\n    b: object = 1\n    c: object = 2",
}


@pytest.mark.parametrize("source", SIGNATURES.values(), ids=SIGNATURES)
def test_signature(write: Write, source: str) -> None:
    target = f"{write(source)}.C"
    check(target, a=1)
    check(target, a=1, b=2, c=3)
    check(target, a=1, _convert_="all")
    with pytest.raises(ConfigError, match=r"^data.calibration.d: unknown key \(value 4\); the keys of data.calibration are a, b, c$"):
        check(target, a=1, d=4)
    with pytest.raises(ConfigError, match=r"^data.calibration.a: missing; .*\.C needs it"):
        check(target, b=2)


UNKNOWABLE = {
    "keywords": "class C:\n    def __init__(self, **more): ...",
    "foreign base": "from elsewhere import B\nclass C(B):\n    pass",
    "decorated": "@wraps\ndef C(): ...",
    "metaclass": "class C(metaclass=M): ...",
    "computed": "C = make()",
    "conditional": "if True:\n    class C:\n        def __init__(self): ...",
    "star import": "from elsewhere import *",
}


@pytest.mark.parametrize("source", UNKNOWABLE.values(), ids=UNKNOWABLE)
def test_what_the_source_does_not_tell_is_accepted(write: Write, source: str) -> None:
    check(f"{write(source)}.C", anything=1)


@pytest.mark.parametrize(
    ("annotation", "good", "bad", "expected"),
    [
        ("int", [1], ["x", 1.5, True, None, [1]], "an integer"),
        ("float", [1, 1.5], ["x", True, None], "a number"),
        ("str", ["x"], [1, None], "text"),
        ("bool", [True], [1, "x"], "true or false"),
        ("int | None", [1, None], ["x"], "an integer or null"),
        ("Optional[int]", [1, None], ["x"], "an integer or null"),
        ("'int | None'", [1, None], ["x"], "an integer or null"),
        ("float | Sequence[float]", [1, [1.0]], ["x", {}], "a number or a list"),
        ("dict[str, str] | None", [{"a": "b"}, None], [["a"]], "a section or null"),
        ("Literal['crop', 'pad']", ["crop", "pad"], ["crob", 1], "'crop' or 'pad'"),
        ("Literal['crop'] | None", ["crop", None], ["x"], "'crop' or null"),
        ("Anything", [1, "x", None], [], ""),
        ("int | Anything", [1, "x"], [], ""),
    ],
)
def test_types(write: Write, annotation: str, good: list[Any], bad: list[Any], expected: str) -> None:
    target = f"{write('class C:' + chr(10) + f'    def __init__(self, a: {annotation} = None): ...')}.C"
    for value in good:
        check(target, a=value)
    for value in bad:
        with pytest.raises(ConfigError) as error:
            check(target, a=value)
        assert str(error.value).startswith("data.calibration.a: ")
        assert f"expected {expected}" in str(error.value)


def test_nearest_literal_is_suggested(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'crop'\?$"):
        check(f"{write('def C(a: Literal[chr]): ...'.replace('chr', repr('crop')))}.C", a="crob")


def test_paths_must_exist(write: Write, tmp_path: Path) -> None:
    target = f"{write('def C(path: str, other: Path | None = None): ...')}.C"
    (tmp_path / "there").write_text("")
    check(target, path="there", other="there")
    for arguments in ({"path": "nowhere"}, {"path": "there", "other": "nowhere"}):
        with pytest.raises(ConfigError, match=r"'nowhere' is not allowed; expected an existing file or folder"):
            check(target, **arguments)


def test_nested_targets_are_checked(write: Write) -> None:
    module = write("class Outer:\n    def __init__(self, parts): ...\nclass Inner:\n    def __init__(self, size: int): ...")
    check(f"{module}.Outer", parts=[{"_target_": f"{module}.Inner", "size": 1}])
    with pytest.raises(ConfigError, match=r"^data.calibration.parts\[0\].size: 'x' is not allowed"):
        check(f"{module}.Outer", parts=[{"_target_": f"{module}.Inner", "size": "x"}])
    with pytest.raises(ConfigError, match=r"^data.calibration.parts.a.site: unknown key"):
        check(f"{module}.Outer", parts={"a": {"_target_": f"{module}.Inner", "site": 1}})


def test_re_exported_class_is_followed(write: Write) -> None:
    inner = write("class C:\n    def __init__(self, a): ...")
    outer = write(f"from {inner} import C as D")
    check(f"{outer}.D", a=1)
    with pytest.raises(ConfigError, match=r"unknown key"):
        check(f"{outer}.D", a=1, b=2)


def test_choices_that_have_a_name(write: Write) -> None:
    """In the same module, in one that it is imported from, and with null."""
    inner = write('from typing import Literal\nMode = Literal["a", "b"]\nclass C:\n    def __init__(self, mode: Mode): ...')
    outer = write(f"from {inner} import Mode as M\nclass C:\n    def __init__(self, mode: M | None = None): ...")
    for target in (f"{inner}.C", f"{outer}.C"):
        check(target, mode="b")
        with pytest.raises(ConfigError, match=r"^data\.calibration\.mode: 'c' is not allowed; expected 'a'.* 'b'"):
            check(target, mode="c")
    check(f"{outer}.C", mode=None)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("MODULE.Dataset", ("cannot be found", "did you mean 'DataSet'? MODULE has DataSet")),
        ("MODULE", ("dotted name",)),
        ("nowhere_at_all.C", ("no module 'nowhere_at_all'",)),
        ("stages.runtime", ("is a module",)),
        ("stages.runtime.nowhere.C", ("stages.runtime has", "datasets")),
    ],
)
def test_what_cannot_be_found(write: Write, target: str, words: tuple[str, ...]) -> None:
    module = write("class DataSet: ...\nclass _Hidden: ...")
    with pytest.raises(ConfigError) as error:
        check(target.replace("MODULE", module))
    assert [word for word in words if word.replace("MODULE", module) not in str(error.value)] == [], str(error.value)


def test_source_that_does_not_parse_is_one_line(write: Write) -> None:
    module = write("class C(:")
    with pytest.raises(ConfigError, match=rf"{module}.py, line 2: "):
        check(f"{module}.C")


def test_extension_modules_and_builtins_are_accepted() -> None:
    check("math.sqrt")
    check("builtins.dict", a=1)


def test_folders_without_init_are_looked_into(write: Write, tmp_path: Path) -> None:
    write("")
    (tmp_path / "outer_folder" / "inner").mkdir(parents=True)
    (tmp_path / "outer_folder" / "inner" / "mine.py").write_text("class C:\n    def __init__(self, a): ...")
    check("outer_folder.inner.mine.C", a=1)
    with pytest.raises(ConfigError, match=r"calibration.b: unknown key"):
        check("outer_folder.inner.mine.C", a=1, b=2)
    with pytest.raises(ConfigError, match=r"outer_folder.inner has mine"):
        check("outer_folder.inner.yours.C")
    assert list(user_classes.source_files({"_target_": "outer_folder.inner.mine.C"})) == [tmp_path / "outer_folder/inner/mine.py"]


def test_source_files(write: Write, tmp_path: Path) -> None:
    first, second = write("class C: ..."), write("class C: ...")
    section = {"_target_": f"{first}.C", "parts": [{"_target_": f"{second}.C"}, {"a": 1}]}
    assert list(user_classes.source_files(section)) == [tmp_path / f"{first}.py", tmp_path / f"{second}.py"]
    assert list(user_classes.source_files(None)) == []


def test_signatures_agree_with_python_for_what_the_project_ships() -> None:
    """The classes that conf/ names: what their source is read as is what Python itself says."""
    import importlib
    import inspect

    data = ("datasets.Arrays", "datasets.CocoImages", "datasets.ImageFolder", "datasets.ImageMasks", "datasets.TextLines")
    for name in (*data, "metrics.Accuracy", "metrics.CharacterAccuracy"):
        module, attribute = f"stages.runtime.{name}".rsplit(".", 1)
        parameters = inspect.signature(getattr(importlib.import_module(module), attribute)).parameters.values()
        read = user_classes.find(f"{module}.{attribute}", "key")
        assert [(argument.name, argument.required) for argument in read.arguments] == [
            (parameter.name, parameter.default is parameter.empty) for parameter in parameters
        ]
        assert not read.more
