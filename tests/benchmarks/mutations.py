"""Do the tests of the rooms notice when the code is wrong? Random lines are changed, one at a time, and the room's own tests run.

    python -m tests.benchmarks.mutations --count 100 --seed 0 --rooms quantization search runtime measurement

A change is one that compiles: another comparison or sign, a condition turned round, an argument left out or swapped, a number
that is larger, another parameter of the same type. Of a module stages/ROOM/.../NAME.py first tests/ROOM/.../test_NAME.py runs,
then what else in tests/ROOM imports the module, then what else is in its folder; never more than one process, and never in the
checkout but in a copy of it. A test that fails without any change, too, does not count.

Survivors are printed as diffs, to be read: some change nothing that anybody could see.
"""

from __future__ import annotations

import argparse
import ast
import copy
import difflib
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("quantization", "search", "runtime", "measurement")
LONGEST = 900.0  # seconds of one run of pytest, by default
TIMEOUT = "no end"

_BOTH_WAYS: list[tuple[type[ast.AST], type[ast.AST]]] = [
    (ast.Lt, ast.LtE),
    (ast.Gt, ast.GtE),
    (ast.Eq, ast.NotEq),
    (ast.Is, ast.IsNot),
    (ast.In, ast.NotIn),
    (ast.Add, ast.Sub),
    (ast.Mult, ast.Div),
    (ast.And, ast.Or),
    (ast.BitAnd, ast.BitOr),
]
OPERATORS = {one: other for pair in _BOTH_WAYS for one, other in (pair, pair[::-1])} | {ast.FloorDiv: ast.Mult}
FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any", "sum": "max", "sorted": "list", "reversed": "iter"}
NOT_MUTATED = (ast.JoinedStr, ast.Assert, ast.Raise, ast.Import, ast.ImportFrom)  # Python 3.11 does not know places in f-strings
NOT_MUTATED_FIELDS = {"annotation", "returns", "decorator_list", "bases", "type_comment"}


class Mutation(NamedTuple):
    """A piece of a file, and what takes its place."""

    path: Path  # relative to the checkout
    line: int
    start: int  # bytes
    end: int
    new: str

    def applied(self, source: bytes) -> bytes:
        """The file's content with the change."""
        return source[: self.start] + self.new.encode() + source[self.end :]

    @property
    def compiles(self) -> bool:
        """Whether Python would read it at all."""
        try:
            compile(self.applied((ROOT / self.path).read_bytes()), str(self.path), "exec")
        except SyntaxError:
            return False
        return True


def mutations(path: Path, source: bytes) -> Iterator[Mutation]:
    """All changes of a file; few of them do not compile."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for old, new in _replacements(ast.parse(source), {}):
        text = ast.unparse(new)
        if isinstance(old, ast.BinOp | ast.BoolOp | ast.Compare | ast.IfExp | ast.UnaryOp) or isinstance(new, ast.UnaryOp):
            text = f"({text})"
        start, end = starts[old.lineno - 1] + old.col_offset, starts[(old.end_lineno or 0) - 1] + (old.end_col_offset or 0)
        yield Mutation(path, old.lineno, start, end, text)


def _replacements(node: ast.AST, twins: dict[str, str]) -> Iterator[tuple[ast.expr | ast.stmt, ast.AST]]:
    """Pieces of syntax with what may take their places. twins: by parameter, another one of the same type."""
    if isinstance(node, NOT_MUTATED):
        return
    if isinstance(node, ast.FunctionDef):
        twins = twins | _twins(node)
    if isinstance(node, ast.expr | ast.stmt):
        yield from ((node, other) for other in _variants(node, twins))
    if isinstance(node, ast.If | ast.While | ast.IfExp | ast.comprehension):
        tests = node.ifs if isinstance(node, ast.comprehension) else [node.test]
        yield from ((test, ast.UnaryOp(ast.Not(), test)) for test in tests if "TYPE_CHECKING" not in ast.unparse(test))
    for field, value in ast.iter_fields(node):
        if field not in NOT_MUTATED_FIELDS:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _replacements(child, twins)


def _twins(function: ast.FunctionDef) -> dict[str, str]:
    arguments = [argument for argument in [*function.args.args, *function.args.kwonlyargs] if argument.annotation is not None]
    by_type: dict[str, list[str]] = {}
    for argument in arguments:
        by_type.setdefault(ast.unparse(argument.annotation), []).append(argument.arg)  # type: ignore[arg-type]
    return {name: names[place - 1] for names in by_type.values() if len(names) > 1 for place, name in enumerate(names)}


def _variants(node: ast.expr | ast.stmt, twins: dict[str, str]) -> Iterator[ast.AST]:
    def changed(**fields: object) -> ast.AST:
        other = copy.copy(node)
        for name, value in fields.items():
            setattr(other, name, value)
        return other

    match node:
        case ast.Compare(ops=[operator]) if type(operator) in OPERATORS:
            yield changed(ops=[OPERATORS[type(operator)]()])
        case ast.BinOp(op=operator) | ast.BoolOp(op=operator) | ast.AugAssign(op=operator) if type(operator) in OPERATORS:
            yield changed(op=OPERATORS[type(operator)]())
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node.operand
        case ast.IfExp():
            yield changed(body=node.orelse, orelse=node.body)
        case ast.Constant(value=bool(value)):
            yield changed(value=not value)
        case ast.Constant(value=int(value)):
            yield changed(value=value + 1)
        case ast.Constant(value=float(value)):
            yield changed(value=2 * value or 1.0)
        case ast.Slice(lower=None, upper=ast.expr()):
            yield changed(lower=node.upper, upper=None)
        case ast.Slice(lower=ast.expr(), upper=None):
            yield changed(lower=None, upper=node.lower)
        case ast.Name(id=name, ctx=ast.Load()) if name in twins:
            yield changed(id=twins[name])
        case ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case ast.Continue():
            yield ast.Break()
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS:
            yield changed(func=ast.Name(FUNCTIONS[node.func.id]))
        if len(node.args) == 2 and not any(isinstance(argument, ast.Starred) for argument in node.args):
            yield changed(args=node.args[::-1])
        for keyword in node.keywords:
            yield changed(keywords=[other for other in node.keywords if other is not keyword])


# ------------------------------------------------------------------------------------------------ tests


def room_tests(root: Path, path: Path) -> list[list[str]]:
    """The room's own tests of a module, in the order in which they run: its own, those that import it, those beside it."""
    folder = root / "tests" / path.parent.relative_to("stages")
    room = root / "tests" / path.parts[1]
    module, name = ".".join(path.with_suffix("").parts).removesuffix(".__init__"), path.stem
    named = re.compile(rf"{re.escape(module)}\b|from {re.escape(module.rpartition('.')[0])} import .*\b{name}\b")
    own = [folder / f"test_{name}.py"]
    importing = [file for file in sorted(room.rglob("test_*.py")) if named.search(file.read_text(encoding="utf-8"))]
    groups, seen = [], set[Path]()
    for files in (own, importing, sorted(folder.glob("test_*.py"))):
        if fresh := [file for file in files if file.exists() and file not in seen]:
            groups.append([file.relative_to(root).as_posix() for file in fresh])
            seen.update(fresh)
    return groups


class Checkout:
    """A copy of the checkout in which one line at a time is changed."""

    def __init__(self, folder: Path, limit: float) -> None:
        self.root, self.limit = folder, limit
        names = subprocess.check_output(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True)
        for name in filter(None, names.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)
        for command in (["init", "--quiet"], ["add", "--all"]):  # tests ask git for the project's files
            subprocess.run(["git", *command], cwd=folder, check=True)

    def first_failure(self, tests: Sequence[str]) -> str | None:
        """The first test that fails, `TIMEOUT` where they do not end, None where all pass."""
        command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist"]
        try:
            done = subprocess.run([*command, *tests], cwd=self.root, capture_output=True, text=True, timeout=self.limit)
        except subprocess.TimeoutExpired:
            return TIMEOUT
        if done.returncode in (0, 5):  # all passed, or there is none
            return None
        found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
        return found[1] if found else tests[0]

    def noticed_by(self, mutation: Mutation, without: Sequence[str] = ()) -> str | None:
        """The first test that fails with the change. without: those that are left out."""
        path = self.root / mutation.path
        source = path.read_bytes()
        path.write_bytes(mutation.applied(source))
        try:
            groups = room_tests(self.root, mutation.path)
            left_out = [f"--deselect={name}" for name in without]
            return next((failed for tests in groups if (failed := self.first_failure([*tests, *left_out]))), None)
        finally:
            path.write_bytes(source)


def main(arguments: Sequence[str] | None = None) -> None:
    """Change random lines and print which changes no test noticed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.mutations", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--count", type=int, default=100, help="lines to change")
    parser.add_argument("--seed", type=int, default=0, help="of the lines that are drawn, and of what becomes of them")
    parser.add_argument("--rooms", nargs="+", default=ROOMS, metavar="ROOM", help=f"folders of stages/ (default: {' '.join(ROOMS)})")
    parser.add_argument("--seconds", type=float, default=LONGEST, help="longest run of pytest")
    parser.add_argument("--part", default="1/1", metavar="K/N", help="every Nth of these lines, from the Kth on, to divide the work")
    options = parser.parse_args(arguments)
    by_line: dict[tuple[Path, int], list[Mutation]] = {}
    for path in sorted(file for room in options.rooms for file in (ROOT / "stages" / room).rglob("*.py")):
        for mutation in mutations(path.relative_to(ROOT), path.read_bytes()):
            by_line.setdefault((mutation.path, mutation.line), []).append(mutation)
    generator = random.Random(options.seed)
    lines = generator.sample(sorted(by_line), min(options.count, len(by_line)))
    shuffled = (generator.sample(by_line[line], len(by_line[line])) for line in lines)
    drawn = [next(mutation for mutation in several if mutation.compiles) for several in shuffled]
    first, step = map(int, options.part.split("/"))
    chosen = drawn[first - 1 :: step]
    print(f"{len(chosen)} of {len(by_line)} lines", flush=True)
    noticed: dict[Mutation, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkout = Checkout(Path(folder), options.seconds)

        def attempt(number: int, mutation: Mutation, without: Sequence[str] = ()) -> None:
            if failed := checkout.noticed_by(mutation, without):
                noticed[mutation] = failed
            word = f"noticed by {failed}" if failed else f"UNNOTICED\n{_diff(checkout.root, mutation)}"
            print(f"{number:4} {mutation.path}:{mutation.line} {word}", flush=True)

        for number, mutation in enumerate(chosen, start=1):
            attempt(number, mutation)
        # What fails without any change has noticed nothing.
        flaky: list[str] = []
        while (tests := set(noticed.values()) - {TIMEOUT, *flaky}) and (failed := checkout.first_failure(sorted(tests))):
            flaky.append(failed)
        for number, mutation in enumerate(chosen, start=1):
            if noticed.get(mutation) in flaky:
                print(f"again, without {noticed.pop(mutation)}, which fails without a change, too")
                attempt(number, mutation, flaky)
    print(f"noticed: {len(noticed)} of {len(chosen)} ({100 * len(noticed) / max(len(chosen), 1):.0f} %), seed {options.seed}")


def _diff(root: Path, mutation: Mutation) -> str:
    source = (root / mutation.path).read_bytes()
    before, after = (text.decode().splitlines() for text in (source, mutation.applied(source)))
    return "\n".join(f"     {line}" for line in list(difflib.unified_diff(before, after, lineterm="", n=2))[2:])


if __name__ == "__main__":
    main()
