"""What an edit of a file re-runs, room by room, as DVC says; and that a stage's folder stands for all that came before it."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

from stages.configuration.schema import Config
from tests.project import Project, copy_project

WORK = ("prepare", "collect_statistics", "quantize", "correct_bias", "evaluate", "accuracy_aware", "tune")
SEARCHES = {"accuracy_aware", "tune"}
MEASURING = {"evaluate", *SEARCHES}  # what runs models with their metrics
QUANTIZED = {"quantize", "correct_bias", *MEASURING}  # what makes a quantized model, or takes it apart
INFERRING = {"collect_statistics", *QUANTIZED}

# One file of every room, and the stages whose results its edit may change. config and track run each time anyway.
EXPECTED: dict[str, set[str]] = {
    "stages/common/units.py": set(),
    "stages/common/reads.py": {"prepare"},
    "stages/configuration/validation.py": set(),
    "stages/configuration/target_device.py": INFERRING,
    "stages/runtime/engine.py": {"prepare", *INFERRING},
    "stages/measurement/latency.py": MEASURING,
    "stages/quantization/model/graph.py": INFERRING,
    "stages/quantization/placement/placing.py": INFERRING,
    "stages/quantization/statistics/collection.py": INFERRING,
    "stages/quantization/solution/ranges.py": QUANTIZED,
    "stages/quantization/planning.py": {"quantize", *SEARCHES},
    "stages/quantization/build.py": QUANTIZED,
    "stages/quantization/noise.py": {"correct_bias", *MEASURING},
    "stages/quantization/layer_table.py": {"evaluate", "tune"},  # plans go by the time of each layer
    "stages/quantization/effect/measure.py": {"evaluate", "accuracy_aware"},
    "stages/quantization/refinement/accurate_bias.py": {"correct_bias", *SEARCHES},
    "stages/quantization/refinement/layerwise.py": {"correct_bias"},
    "stages/search/evaluator.py": SEARCHES,
    "stages/search/reversion/ranking.py": {"accuracy_aware"},
    "stages/search/tuning/space.py": {"tune"},
    "stages/search/planning/knapsack.py": {"tune"},
    "stages/deployment/deployable.py": set(),
    "stages/report/layers.py": set(),
    "stages/tracking/runs.py": set(),
    "stages/sweeps/copies.py": set(),
    "stages/pot/engine.py": set(),
    "stages/stage.py": set(),
    "stages/sweep.py": set(),
    **{f"stages/{stage}.py": {stage} for stage in WORK},
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project of which DVC believes that it has been built, its outputs being stand-ins; it is the current folder."""
    project = copy_project(tmp_path_factory.mktemp("built") / "project")
    stages = yaml.safe_load((project.root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for description in stages.values():
        for out in (*description.get("outs", []), *description.get("metrics", [])):
            project.write(out if out.endswith(".json") else f"{out}/stand-in", "{}")
    project.write("build/config.json", json.dumps(dataclasses.asdict(Config())))
    with chdir(project.root):
        with Repo() as repo:
            repo.commit(force=True)
        yield project


def changed() -> set[str]:
    """The stages that `dvc repro` would run because of their own dependencies, but for those that run each time."""
    with Repo() as repo:
        status: dict[str, list[Any]] = repo.status()
    return {stage for stage, reasons in status.items() if reasons != ["always changed"]}


@contextmanager
def edited(file: Path) -> Iterator[None]:
    """Another content, for as long as it lasts."""
    content = file.read_bytes()
    file.write_bytes(content + b"\n# edited\n")
    try:
        yield
    finally:
        file.write_bytes(content)


@pytest.mark.parametrize("path", EXPECTED)
def test_an_edit_reruns_only_what_comes_from_it(built: Project, path: str) -> None:
    with edited(built.root / path):
        assert changed() == EXPECTED[path]


@pytest.mark.parametrize(("stage", "following"), [*itertools.pairwise((*WORK, "track"))])
def test_a_result_reruns_the_stage_after_it(built: Project, stage: str, following: str) -> None:
    """And that one's result holds the hash of this one's, so that the stages after it follow."""
    with edited(built.root / "build" / stage / "stand-in"):
        assert changed() == {stage, following}


def test_nothing_reruns_where_nothing_was_edited(built: Project) -> None:
    assert changed() == set()
    rooms = {path.parent.relative_to(built.root).as_posix() for path in (built.root / "stages").rglob("*.py")}
    rooms -= {"stages/configuration/schema", "stages/runtime/datasets"}  # parts of a room
    assert rooms <= {Path(path).parent.as_posix() for path in EXPECTED}
