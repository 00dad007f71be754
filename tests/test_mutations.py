"""The changes that tests.benchmarks.mutations makes, and the tests that must notice them."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.benchmarks.mutations import ROOT, mutations, room_tests

SOURCE = '''\
"""Words."""


def area(width: float, height: float, *, closed: bool = True, name: str = "ä") -> float:
    """Of a box."""
    if width < 0 or not closed:
        raise ValueError(f"{width + 1}")
    sides = [width, height][:1]
    print(max(width, height), file=None)
    return -width * 2.5
'''


def test_changes_are_of_one_place_and_compile() -> None:
    found: dict[int, set[str]] = {}
    for mutation in mutations(Path("area.py"), SOURCE.encode()):
        changed = mutation.applied(SOURCE.encode()).decode()
        ast.parse(changed)
        before, after = SOURCE.splitlines(), changed.splitlines()
        (line,) = [number for number, pair in enumerate(zip(before, after, strict=True), start=1) if pair[0] != pair[1]]
        assert line == mutation.line
        found.setdefault(line, set()).add(after[line - 1].strip())
    header = 'def area(width: float, height: float, *, closed: bool = True, name: str = "ä") -> float:'
    assert found == {
        4: {header.replace("True", "False")},
        6: {
            "if (width <= 0) or not closed:",
            "if (width < 0 and (not closed)):",
            "if (not (width < 0 or not closed)):",
            "if width < 1 or not closed:",
            "if height < 0 or not closed:",
            "if width < 0 or (closed):",
        },
        8: {"sides = [height, height][:1]", "sides = [width, width][:1]", "sides = [width, height][1:]", "sides = [width, height][:2]"},
        9: {
            "pass",
            "print(min(width, height), file=None)",
            "print(max(height, width), file=None)",
            "print(max(height, height), file=None)",
            "print(max(width, width), file=None)",
            "print(max(width, height))",
        },
        10: {"return (-width / 2.5)", "return (width) * 2.5", "return -height * 2.5", "return -width * 5.0"},
    }


def test_a_module_has_its_own_tests_those_that_import_it_and_those_beside_it() -> None:
    own, importing, beside = room_tests(ROOT, Path("stages/quantization/solution/ranges.py"))
    assert own == ["tests/quantization/solution/test_ranges.py"]
    assert "tests/quantization/statistics/test_collection.py" in importing
    assert "tests/quantization/solution/test_biases.py" in beside
    assert len({*own, *importing, *beside}) == len([*own, *importing, *beside])
