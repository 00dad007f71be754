"""What a user sees who opens the links that a sweep prints: a real sweep, a real server, a real browser.

Pictures of the pages stay in pytest's folder for temporary files; `pytest -s` prints where.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.tracking.links import UI
from tests.browser import Browser, browsing, needs_chromium
from tests.mlflow_server import mlflow_ui
from tests.project import Outcome, Project

pytestmark = needs_chromium
JOBS = {"0": "performance", "2": "mixed"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as found:
        yield found


@pytest.fixture(scope="module")
def address(swept: tuple[Project, Outcome]) -> Iterator[str]:
    """Of the server that the printed command starts, on a port that is free."""
    project, outcome = swept
    assert "mlflow ui --backend-store-uri sqlite:///mlflow.db" in outcome.output
    with mlflow_ui(project.root) as found:
        yield found


def printed_link(outcome: Outcome, address: str, *, of: str) -> str:
    """The link that the sweep printed for `compare` or `charts`, on this server."""
    lines = outcome.output.splitlines()
    (place,) = [number for number, line in enumerate(lines) if line.startswith(f"{of}:")]
    link = next(word for line in lines[place:] for word in line.split() if word.startswith(UI))
    return link.replace(UI, address)


def test_one_link_shows_metrics_layers_and_speed(swept: tuple[Project, Outcome], address: str, browser: Browser, tmp_path: Path) -> None:
    project, outcome = swept
    browser.open(printed_link(outcome, address, of="compare"), "Results", "Accuracy against speed", "Layers side by side")
    browser.screenshot(tmp_path / "comparison.png")
    text = browser.text()
    evaluate = {preset: first_sweep(project) / number / "build" / "evaluate" for number, preset in JOBS.items()}
    # Metrics side by side: a line with the values of both jobs, under the metric's name.
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    table = {re.split(r"  |FP32:", before)[0].strip(): line.split("\t") for before, line in itertools.pairwise(lines)}
    values = [json.loads((folder / "evaluation.json").read_text())["metrics"]["accuracy"]["int8"] for folder in evaluate.values()]
    assert table["accuracy, INT8"] == [f"{100 * value:.2f} %" for value in values]
    speeds = [json.loads((folder / "latency.json").read_text())["speed_up"]["fp32"]["median"] for folder in evaluate.values()]
    assert [cell.partition(" [")[0] for cell in table["faster than FP32 in f32"]] == [f"{value:.2f}x" for value in speeds]
    # Layers side by side: what differs is told of both.
    assert "activations, 8 bits, per tensor" in text and "\nsymmetric" in text and "\tasymmetric" in text.replace("\n\t", "\t")
    layers = json.loads((evaluate["mixed"] / "layers.json").read_text())
    changed = next(row for row in layers if row["mode"] == "asymmetric")
    assert f"{changed['low']:.3g} to {changed['high']:.3g}" in text and changed["layer"] in text
    # Accuracy against speed: a drawn point with its label for each job.
    (drawn,) = browser.evaluate(
        "document.querySelector('svg g.mark-int8') && [...document.querySelectorAll('svg text')].map(e => e.textContent)"
    )
    assert {f"preset={preset}" for preset in JOBS.values()} <= set(drawn)
    # What to adopt, or why none; jobs were timed at different times.
    assert next(line for line in outcome.output.splitlines() if line.startswith("best: "))[7:].split(":")[0].split(";")[0] in text
    assert " ms" not in text
    # The job that failed is not passed over.
    assert "preset=fast failed: config: error: quantization.preset" in text


def test_the_other_link_charts_the_sweeps_runs_and_no_others(
    swept: tuple[Project, Outcome], address: str, browser: Browser, tmp_path: Path
) -> None:
    _, outcome = swept
    browser.open(printed_link(outcome, address, of="charts"), "int8/drop_points.accuracy", "2 matching runs")
    browser.screenshot(tmp_path / "charts.png")
    text = browser.text()
    assert "performance·" in text and "mixed·" in text and "speed_up.fp32" in text


def first_sweep(project: Project) -> Path:
    """Its folder: other tests start more of them."""
    return min(path for path in (project.root / "multirun").iterdir() if (path / "comparison.html").exists())
