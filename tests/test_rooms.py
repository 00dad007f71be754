"""The house keeps its floors: imports only run down, heavy ones late, and DVC knows every file that a stage uses."""

from __future__ import annotations

import ast
import dataclasses
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from stages.configuration.schema import Config

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(path.relative_to(ROOT) for path in (ROOT / "stages").rglob("*.py"))
STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
HEAVY = {"matplotlib", "mlflow", "numpy", "openvino", "PIL"}
# From the ground up. What stands directly under stages/ is the roof, but for these that everything may use.
GROUND = {"stages", "stages.common.artifacts", "stages.common.errors", "stages.configuration.schema"}
FLOORS = ["stages.runtime", "stages.quantization", "stages.search"]
# What configures, reports and names things: it does not enter a stage's result but through the configuration itself.
ROOF = {f"stages.{path.stem}" for path in MODULES if path.parent == Path("stages")}
PLUMBING = GROUND | {f"stages.{name}" for name in ("config", "passwords", "progress", "stage", "targets", "validation", "wording")}


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

    yield from walk(ast.parse((ROOT / path).read_text(encoding="utf-8")), early=True)


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


def floor(module: str) -> int:
    """0 for the ground, then the floors, and the roof."""
    if module in GROUND:
        return 0
    return next((level for level, room in enumerate(FLOORS, start=1) if f"{module}.".startswith(f"{room}.")), len(FLOORS) + 1)


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_only_run_down(path: Path) -> None:
    own = floor(name(path))
    up = [found.module for found in imports(path) if found.module.startswith("stages.") and floor(found.module) > own]
    assert up == []


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_tools_stay_in_their_rooms(path: Path) -> None:
    tops = {found.module.split(".")[0] for found in imports(path)}
    if floor(name(path)) <= len(FLOORS):
        assert tops & {"dvc", "hydra", "omegaconf", "mlflow"} == set()
    if "mlflow" in tops:
        assert path == Path("stages/track.py")


STARTS = {"AsyncInferQueue", "create_infer_request", "infer_new_request", "start_async"}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_inferences_are_started_in_one_place(path: Path) -> None:
    """Shared and copied inputs on one compiled model corrupt memory."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & STARTS
    allowed = {"create_infer_request"} if path == Path("stages/runtime/latency.py") else set()  # and `infer_once` in it
    assert path == Path("stages/runtime/requests.py") or used <= allowed


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


def test_dvc_knows_every_file_that_a_stage_uses() -> None:
    """Otherwise an edit would not re-run what it changes."""
    missing = []
    for stage, description in STAGES.items():
        dependencies = [Path(dependency) for dependency in description["deps"]]
        used: set[str] = set()
        waiting = [f"stages.{stage}"]
        while waiting:
            module = waiting.pop()
            if module in used or (module in PLUMBING and module != f"stages.{stage}"):
                continue
            used.add(module)
            waiting += [found.module for found in imports(file(module)) if source(found.module)]
        files = sorted(file(module) for module in used)
        missing += [f"{stage}: {path}" for path in files if not any(path.is_relative_to(folder) for folder in dependencies)]
    assert missing == []


def test_dvc_knows_every_key_that_a_stage_reads() -> None:
    """Otherwise a change of it would not re-run the stage. `track` always runs; samples are known by prepare's hashes."""
    missing = []
    for stage in set(STAGES) - {"config", "track"}:
        keys = [key for entry in STAGES[stage]["params"] for key in entry["build/config.json"]]
        keys += ["target_device"] if "target_device_sha256" in keys else []
        helpers = {found.module for found in imports(file(f"stages.{stage}"))} & (ROOF - PLUMBING)
        for module in {f"stages.{stage}", *helpers}:
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
    """What a file reads of a variable `config` that is the whole configuration, as dotted keys."""
    keys: set[str] = set()
    sections = {field.name for field in dataclasses.fields(Config)}
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
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


# What is imported under another name than it is installed by.
PACKAGES = {"PIL": "pillow", "dask": "distributed", "hydra": "hydra-core", "ruamel": "ruamel.yaml", "yaml": "pyyaml"}


def test_only_declared_dependencies_are_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    entries = [*project["dependencies"], *project["optional-dependencies"]["cluster"]]
    declared = {re.split(r"[<>=!~\[; ]", entry)[0] for entry in entries}
    own = {"stages", *sys.stdlib_module_names}
    tops = {found.module.split(".")[0]: path for path in MODULES for found in imports(path)}
    assert {top: path for top, path in tops.items() if top not in own and PACKAGES.get(top, top) not in declared} == {}
