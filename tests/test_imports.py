"""What takes long to import is imported by what needs it, and when it needs it.

Every stage is a process of its own, and most of them have little to do most of the time.
"""

from __future__ import annotations

import re
import sys

import pytest

from tests.project import Outcome, Project
from tests.sweeping import latest

HEAVY = {
    "dask",
    "distributed",
    "dvc",
    "hydra",
    "jinja2",
    "matplotlib",
    "mlflow",
    "numpy",
    "omegaconf",
    "openvino",
    "optuna",
    "pandas",
}
COMPOSING = {"hydra", "omegaconf"}
COMPUTING = {"numpy", "openvino"}


def imported(outcome: Outcome) -> set[str]:
    """The packages of `HEAVY` among what `-X importtime` told."""
    assert outcome.code == 0, outcome.output
    lines = re.findall(r"^import time:.*\| +([\w.]+)$", outcome.output, re.MULTILINE)
    assert "argparse" in lines
    return {name.partition(".")[0] for name in lines} & HEAVY


@pytest.mark.parametrize(
    ("stage", "needed"),
    [
        ("track", set()),  # of what is logged already
        ("config", COMPOSING),
        ("quantize", COMPUTING),
        ("correct_bias", COMPUTING),
        ("accuracy_aware", set()),  # disabled
        ("tune", set()),
    ],
)
def test_stages_import_what_they_need(swept: tuple[Project, Outcome], stage: str, needed: set[str]) -> None:
    project, _ = swept
    job = Project(latest(project) / "0")
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{project.root / 'mlflow.db'}"}
    if stage == "track":
        assert job.run(sys.executable, "-m", "stages.track", env=store).code == 0
    outcome = job.run(sys.executable, "-X", "importtime", "-m", f"stages.{stage}", env=store)
    assert ("already logged as" in outcome.output) == (stage == "track")
    assert imported(outcome) == needed


@pytest.mark.parametrize("module", ["sweep", "promote", "evaluate", "collect_statistics", "prepare"])
def test_help_imports_nothing(swept: tuple[Project, Outcome], module: str) -> None:
    assert imported(swept[0].run(sys.executable, "-X", "importtime", "-m", f"stages.{module}", "--help")) == set()
