"""What a user sees in the MLflow UI: real server, real browser, a store that `track` wrote."""

from __future__ import annotations

import html
import re
import subprocess
from collections.abc import Callable, Iterator

import pytest

from stages import track
from stages.tracking import links
from tests import built
from tests.browser import FLAGS, needs_chromium
from tests.mlflow_server import mlflow_ui

pytestmark = needs_chromium
PAGE = ("--window-size=1900,1500", "--virtual-time-budget=200000")  # the charts are drawn late

Browser = Callable[[str, str], str]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an `mlflow ui` on a store with the results of two presets."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
            patch.delenv(name, raising=False)
        patch.chdir(folder)
        for preset, drop, milliseconds in (("performance", 0.08, 4.0), ("mixed", 0.012, 4.4)):
            built.write_build(folder, built.config(preset), drop, milliseconds)
            track.main(built.config(preset))
    with mlflow_ui(folder) as address:
        yield address


@pytest.fixture(scope="module")
def text_of(tmp_path_factory: pytest.TempPathFactory, server: str) -> Browser:
    """Opens a page of the UI, keeps a screenshot under a name, and gives the text that the page shows."""
    folder = tmp_path_factory.mktemp("screenshots")

    def open_page(page: str, name: str) -> str:
        picture = folder / f"{name}.png"
        own = (f"--user-data-dir={tmp_path_factory.mktemp('profile')}", f"--screenshot={picture}", "--dump-dom")
        command = ["chromium", *FLAGS, *PAGE, *own, f"{server}/{page}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
        print(f"screenshot: {picture}")
        assert picture.stat().st_size > 20_000  # an empty page has less
        body = re.sub(r"<(script|style)\b.*?</\1>", " ", done.stdout, flags=re.DOTALL)
        return html.unescape(re.sub(r"<[^>]+>", " ", body))

    return open_page


def test_the_comparison_opens_with_runs_and_metrics(server: str, text_of: Browser) -> None:
    link = links.comparison(server, "1")
    text = text_of(link.removeprefix(f"{server}/"), "comparison")
    names = set(re.findall(r"(?:performance|mixed)·[0-9a-f]{6}", text))
    assert {name.split("·")[0] for name in names} == {"performance", "mixed"}
    for metric in ("int8/drop_points.exact_match", "int8/value_percent.exact_match", "int8/latency_ms", "int8/speed_up.default"):
        assert metric in text
    # The headline comes before its details.
    first = text.index("int8/drop_points.exact_match")
    assert first < text.index("int8/value_percent.exact_match") and ("more/" not in text or first < text.index("more/"))


def test_layers_are_compared_side_by_side(server: str, text_of: Browser) -> None:
    text = text_of("#/experiments/1/runs?workflowType=machine_learning&compareRunsMode=ARTIFACT", "layers")
    assert "layers.json" in text
    assert text.index("/backbone/conv_11/Conv:1") < text.index("/backbone/conv_10/Conv:1")  # the largest effect on the outputs is on top
    assert "effect_on" in text
    assert "0.0025" in text  # the second layer's: 0.01 / 4


def test_a_run_shows_the_summary(server: str, text_of: Browser) -> None:
    from mlflow.tracking import MlflowClient

    (newest, *_) = MlflowClient(server).search_runs(["1"])
    text = text_of(f"#/experiments/1/runs/{newest.info.run_id}", "run")
    assert newest.info.run_name in text
    assert "drop 1.20 points, 95 % interval [0.20, 2.20]" in text
    assert "quantization.preset" in text
