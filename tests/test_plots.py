"""`dvc plots show`: what is drawn, in which order and around what; nothing of a stage that is off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc_render.vega import VegaRenderer

from tests.browser import browsing, needs_chromium
from tests.project import ROOT

TEMPLATES = ROOT / ".dvc" / "plots"
PLOTS: dict[str, dict[str, Any]] = {
    name: properties
    for entry in yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
    for name, properties in entry.items()  # one each
}


def drawn(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A plot's Vega-Lite specification, as DVC makes it."""
    properties = dict(PLOTS[name])
    for axis in ("x", "y"):
        if isinstance(properties[axis], dict):
            fields = next(iter(properties[axis].values()))
            properties[axis] = fields[0] if isinstance(fields, list) else fields
    rows = [row | {"rev": "workspace"} for row in rows]
    spec: dict[str, Any] = json.loads(VegaRenderer(rows, name, template_dir=str(TEMPLATES), **properties).partial_html())
    return spec


def test_every_plot_has_a_short_title_and_a_template_of_ours() -> None:
    assert len(PLOTS) == 8
    for name, properties in PLOTS.items():
        assert len(properties["title"]) <= 36, name
        assert len(properties["y_label"]) <= 30 and len(properties["x_label"]) <= 40, name
        assert (TEMPLATES / f"{properties['template']}.json").is_file(), name


@pytest.mark.parametrize("name", ["build/reports/effect.json", "build/reports/noise.json", "build/tune/importance.json"])
def test_the_twenty_worst_in_the_order_of_the_file(name: str) -> None:
    x, y = PLOTS[name]["x"], PLOTS[name]["y"]
    rows = [{y: f"layer {99 - place}", x: float(place)} for place in range(115)]  # names sort the other way round
    spec = drawn(name, rows)
    assert spec["encoding"]["y"]["field"] == y and spec["encoding"]["y"]["sort"] is None
    assert spec["transform"][-1] == {"filter": "datum.place <= 20"}
    assert spec["height"] == {"step": 16}  # so that names never overprint each other
    texts = [layer for layer in spec["layer"] if layer["mark"]["type"] == "text"]
    assert texts[0]["encoding"]["text"]["field"] == x


@pytest.mark.parametrize("name", ["build/evaluate/accuracy_speed.json", "build/tune/trade_off.json"])
def test_axes_lie_around_the_points_and_models_have_labels(name: str) -> None:
    x, y = PLOTS[name]["x"], PLOTS[name]["y"]
    spec = drawn(name, [{x: 6.0, y: 0.9, "model": "FP32 (f32)"}, {x: 3.0, y: 0.88, "model": "INT8"}])
    assert all(spec["encoding"][axis]["scale"]["zero"] is False for axis in ("x", "y"))
    assert any(layer["encoding"].get("text", {}).get("field") == "model" for layer in spec["layer"])


@pytest.mark.parametrize("name", PLOTS)
def test_a_stage_that_is_off_draws_nothing(name: str) -> None:
    assert drawn(name, []) == {}  # which page.html leaves out


class TestThePage:
    pytestmark = needs_chromium

    def test_an_empty_plot_leaves_no_trace(self, tmp_path: Path) -> None:
        # As DVC fills it in, with a stand-in for Vega, which it loads from a network.
        scripts = "<script>window.vegaEmbed = (place, plot) => { document.querySelector(place).innerText = plot.title; };</script>"
        plots = [
            f'<div id="{name}"><script>var spec = {spec}; vegaEmbed("#{name}", spec);</script></div>'
            for name, spec in (("noise", '{"title": "größte"}'), ("off", "{}"))
        ]
        text = (TEMPLATES / "page.html").read_text(encoding="utf-8")
        for place, content in (("{scripts}", scripts), ("{plot_divs}", "\n".join(plots)), ("{refresh_tag}", "")):
            assert place in text
            text = text.replace(place, content)
        (tmp_path / "page.html").write_text(text, encoding="utf-8")
        with browsing() as browser:
            browser.open((tmp_path / "page.html").as_uri(), "größte")
            assert browser.evaluate("[...document.querySelectorAll('body > div')].map(e => e.id)") == [["noise"]]

    def test_dvc_uses_it(self) -> None:
        assert "html_template = plots/page.html" in (ROOT / ".dvc" / "config").read_text()
