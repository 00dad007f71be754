"""The house keeps its floors: imports only run down, heavy ones late, tools in their rooms, and DVC knows every file that a stage uses."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from stages.configuration.schema import Config

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(path.relative_to(ROOT) for path in (ROOT / "stages").rglob("*.py"))
STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]

# From the ground up. A room may import from the floors below it, and from no other room on its own floor.
FLOORS: list[set[str]] = [
    {"stages.common"},
    {"stages.configuration"},
    {"stages.runtime", "stages.report", "stages.pot", "stages.stage"},
    {"stages.measurement", "stages.quantization.model"},
    {"stages.quantization.placement"},
    {"stages.quantization.statistics"},
    {"stages.quantization.solution"},
    {"stages.quantization"},
    {"stages.quantization.effect", "stages.quantization.refinement", "stages.tracking"},
    {"stages.search"},
    {"stages.search.planning"},
    {"stages.search.reversion", "stages.search.tuning"},
    {"stages.sweeps", "stages.deployment"},
    {"stages"},
]
MOST_DOORS = 16  # files directly in stages/
MOST_LINES = 420
HEAVY = {"matplotlib", "mlflow", "numpy", "openvino", "PIL"}
# Where a tool may be imported. Sweeps start their jobs with Hydra's launchers and copy DVC's settings.
TOOLS = {
    "configobj": {"stages.sweeps"},
    "dask": {"stages.search"},
    "dvc": {"stages.sweeps"},
    "hydra": {"stages.configuration", "stages.sweeps"},
    "jinja2": {"stages.report"},
    "matplotlib": {"stages.tracking"},
    "mlflow": {"stages.tracking"},
    "omegaconf": {"stages.configuration"},
    "optuna": {"stages.search.tuning"},
    "ruamel": {"stages.configuration"},
    "scipy": {"stages.search.planning"},
    "sqlalchemy": {"stages.tracking"},
}
# What enters a stage's result through build/config.json alone, or not at all: no dependency of a stage but its own.
PLUMBING = {"stages.common", "stages.configuration", "stages.stage"}
# But for the arithmetic of schemes, and for what is known of a user's files.
BEYOND_PLUMBING = {"stages.configuration.target_device", "stages.common.model_files", "stages.common.reads"}


class Import(NamedTuple):
    """An import of a module, and whether it happens when the importing module is loaded."""

    module: str
    early: bool


def imports(path: Path) -> Iterator[Import]:
    """Every import in a file, but those for type checkers only."""

    def walk(node: ast.AST, early: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, early) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield Import(inner if source(inner) else node.module, early)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, early and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))

    yield from walk(parsed(path), early=True)


@cache
def parsed(path: Path) -> ast.Module:
    """A file's syntax."""
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def source(module: str) -> Path | None:
    """The file of one of the project's modules."""
    base = Path(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path in MODULES), None)


def file(module: str) -> Path:
    """The file of a module that must be one of the project's."""
    path = source(module)
    assert path, f"there is no {module}"
    return path


def name(path: Path) -> str:
    """The module that a file is."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def within(module: str, rooms: set[str]) -> str | None:
    """The innermost of some rooms that a module is in."""
    return max((room for room in rooms if f"{module}.".startswith(f"{room}.")), key=len, default=None)


def place(module: str) -> tuple[int, str]:
    """A module's floor and room."""
    room = within(module, set().union(*FLOORS))
    assert room, f"{module} is in no room"
    return next(level for level, rooms in enumerate(FLOORS) if room in rooms), room


def used_by(stage: str) -> set[str]:
    """The modules that a stage's result depends on, its own among them."""
    used: set[str] = set()
    waiting = [f"stages.{stage}"]
    while waiting:
        module = waiting.pop()
        if module not in used and (module in BEYOND_PLUMBING or not within(module, PLUMBING)):
            used.add(module)
            waiting += [found.module for found in imports(file(module)) if source(found.module)]
    return used


# ------------------------------------------------------------------------------------------------ floors


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_only_run_down(path: Path) -> None:
    level, room = place(name(path))
    for found in imports(path):
        if found.module.startswith("stages."):
            other_level, other = place(found.module)
            assert other_level < level or other == room, f"{path} imports {found.module}"


def test_no_two_modules_need_each_other() -> None:
    graph = {name(path): {found.module for found in imports(path) if source(found.module)} - {name(path)} for path in MODULES}
    TopologicalSorter(graph).prepare()  # raises where there is a circle, and names it


def test_doors_are_few_and_import_no_other_door() -> None:
    doors = [path for path in MODULES if path.parent == Path("stages")]
    assert len(doors) <= MOST_DOORS
    names = {name(path) for path in doors} - {"stages", "stages.stage"}
    assert {str(path): shared for path in MODULES if (shared := names & {found.module for found in imports(path)})} == {}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_tools_stay_in_their_rooms(path: Path) -> None:
    tops = {found.module.split(".")[0] for found in imports(path)}
    assert [tool for tool in tops & TOOLS.keys() if not within(name(path), TOOLS[tool])] == []


def test_a_file_has_one_subject() -> None:
    files = [path for folder in ("stages", "tests", "conf") for path in (ROOT / folder).rglob("*.py")]
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {path: length for path, length in lengths.items() if length > MOST_LINES} == {}


def test_tests_mirror_the_rooms() -> None:
    folders = {path.parent.relative_to("stages") for path in MODULES}
    tested = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    assert tested <= folders
    assert {folder.parts[0] for folder in folders if folder.parts} <= {folder.parts[0] for folder in tested if folder.parts}


@pytest.mark.parametrize("stage", STAGES)
def test_stages_import_nothing_heavy_before_the_configuration_is_checked(stage: str) -> None:
    seen: set[str] = set()

    def reachable(module: str) -> Iterator[str]:
        if module in seen:
            return
        seen.add(module)
        for found in imports(file(module)):
            if found.early and found.module.split(".")[0] in HEAVY:
                yield f"{module} imports {found.module}"
            if found.early and source(found.module):
                yield from reachable(found.module)

    assert list(reachable(f"stages.{stage}")) == []


# ------------------------------------------------------------------------------------------------ what DVC knows


@pytest.mark.parametrize("stage", [stage for stage, description in STAGES.items() if not description.get("always_changed")])
def test_dvc_knows_every_file_that_a_stage_uses(stage: str) -> None:
    """Otherwise an edit would not re-run what it changes."""
    dependencies = [Path(dependency) for dependency in STAGES[stage]["deps"]]
    files = sorted(file(module) for module in used_by(stage))
    assert [path for path in files if not any(path.is_relative_to(folder) for folder in dependencies)] == []


def test_dvc_knows_every_key_that_a_stage_reads() -> None:
    """Otherwise a change of it would not re-run the stage. `track` always runs; samples are known by prepare's hashes."""
    missing = []
    for stage in set(STAGES) - {"config", "track"}:
        keys = [key for entry in STAGES[stage]["params"] for key in entry["build/config.json"]]
        keys += ["target_device"] if "target_device_sha256" in keys else []
        for module in used_by(stage):
            for key in sorted(read_keys(file(module))):
                by_hash = module == "stages.runtime.samples" and key.split(".")[0] in ("data", "seed")
                by_others = (
                    key == "quantization.stat_subset_size" and "calibration_samples" not in (ROOT / file(f"stages.{stage}")).read_text()
                )
                anywhere = key.split(".")[0] == "cluster"  # where a search evaluates does not change what it finds
                if not by_hash and not by_others and not anywhere and not any(f"{key}.".startswith(f"{known}.") for known in keys):
                    missing.append(f"{stage}: {key} in {module}")
    assert missing == []


def read_keys(path: Path) -> set[str]:
    """What the functions of a file read of a parameter `config` that is the whole configuration, as dotted keys."""
    keys: set[str] = set()
    sections = {field.name for field in dataclasses.fields(Config)}
    for function in ast.walk(parsed(path)):
        if isinstance(function, ast.FunctionDef) and any(
            argument.arg == "config" and argument.annotation and ast.unparse(argument.annotation) in ("Config", "schema.Config")
            for argument in [*function.args.args, *function.args.kwonlyargs]
        ):
            inner = {id(node.value) for node in ast.walk(function) if isinstance(node, ast.Attribute)}
            for node in ast.walk(function):
                if isinstance(node, ast.Attribute) and id(node) not in inner:
                    names = ast.unparse(node).split(".")
                    if names[0] == "config" and names[1] in sections:
                        keys.add(".".join(name for name in names[1:] if name not in ("items", "values", "keys")))
    return keys


def test_dvc_pipeline_is_the_documented_one() -> None:
    work = ["prepare", "collect_statistics", "quantize", "correct_bias", "evaluate", "accuracy_aware", "tune"]
    assert list(STAGES) == ["config", *work, "track"]
    for stage, description in STAGES.items():
        assert description["cmd"] == f"python -m stages.{stage}"
        outs = [*description.get("outs", []), *description.get("metrics", [])]
        # The run cache restores a stage only when all of its outputs are cached.
        assert all(isinstance(out, str) and out.startswith("build/") for out in outs)
        assert f"build/records/{stage}.json" in outs or stage == "track"
    assert [stage for stage, description in STAGES.items() if description.get("always_changed")] == ["config", "track"]


def test_each_stage_depends_on_the_one_before_it_alone() -> None:
    """Which holds the hashes of what came before (inputs.json), so that `dvc dag` fits on a screen."""
    work = list(STAGES)[1:]
    built = {stage: [path for path in STAGES[stage]["deps"] if path.startswith("build/")] for stage in work}
    assert built == {"prepare": []} | {after: [f"build/{before}"] for before, after in itertools.pairwise(work)}


def test_what_one_deploys_is_named() -> None:
    entries = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["artifacts"]
    assert {entry["path"] for entry in entries.values()} == {"build/correct_bias", "build/accuracy_aware", "build/tune"}
    assert all(entry["type"] == "model" and entry["desc"] for entry in entries.values())
    outs = {out for description in STAGES.values() for out in description.get("outs", [])}
    assert {entry["path"] for entry in entries.values()} <= outs


# What is imported under another name than it is installed by.
PACKAGES = {"PIL": "pillow", "dask": "distributed", "hydra": "hydra-core", "ruamel": "ruamel.yaml", "yaml": "pyyaml"}


def test_only_declared_dependencies_are_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    entries = [*project["dependencies"], *project["optional-dependencies"]["cluster"]]
    declared = {re.split(r"[<>=!~\[; ]", entry)[0] for entry in entries}
    own = {"stages", *sys.stdlib_module_names}
    tops = {found.module.split(".")[0]: path for path in MODULES for found in imports(path)}
    assert {top: path for top, path in tops.items() if top not in own and PACKAGES.get(top, top) not in declared} == {}
