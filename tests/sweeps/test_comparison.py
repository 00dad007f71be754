"""The comparison of a sweep as a page: what is told, and how it is in a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.sweeps import comparison
from stages.sweeps.adoption import adoption
from tests.browser import Browser, browsing, needs_chromium
from tests.report.pages import Page
from tests.report.test_browser import overlaps
from tests.sweeps.made import PLACE, all_variants, make_job

FINALS = "0, 1 and FP32 in bf16 were timed once more"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def compared(count: int) -> comparison.Comparison:
    models = all_variants(count)
    return comparison.compared(["quantization.preset=performance,mixed"], models, adoption(PLACE, models), FINALS, parallel=False)


def rendered(count: int) -> str:
    models = all_variants(count)
    return comparison.page(["quantization.preset=performance,mixed"], models, adoption(PLACE, models), FINALS, parallel=False)


def three() -> None:
    make_job(0, "performance", 0.031, 4.0)
    make_job(1, "mixed", 0.0, 4.4)
    make_job(2, "accuracy", 0.001, 5.0)


def rows(found: comparison.Comparison) -> dict[str, comparison.Row]:
    return {row.name: row for row in found.results}


def test_it_begins_with_what_to_adopt() -> None:
    three()
    text = Page(rendered(3)).text
    start = text.index("Adopt job 1 (preset=mixed): 1.36x faster than FP32 in bf16")
    command, other = text.index("python -m stages.promote multirun/now/1"), text.index("job 0 (preset=performance) is 1.50x faster")
    assert start < command < other < text.index("Results")
    assert "`" not in text and " ms" not in text  # jobs were timed minutes apart
    assert "0, 1 and FP32 in bf16 were timed once more." in text


def test_a_winner_is_coloured_only_where_no_interval_reaches_it() -> None:
    three()
    found = rows(compared(3))
    # 3.1 points lost against about none: but two of the three do not differ.
    assert found["exact_match, INT8"].best == frozenset()
    assert found["exact_match, INT8"].note == "FP32: 90.20 %"  # the same in all jobs: said once
    assert found["faster than FP32 in bf16"].best == {0}
    assert found["faster than FP32 in bf16"].cells[0] == "1.50x [1.48, 1.52]"
    assert found["throughput, times FP32’s"].cells[0] == "1.50x"
    make_job(0, "performance", 0.031, 4.0, spread=0.1)
    assert rows(compared(3))["faster than FP32 in bf16"].best == frozenset()
    assert rows(compared(2))["exact_match, INT8"].best == {1}  # 2.1 to 4.1 against -1 to 1


def test_cells_of_layers_say_only_what_differs() -> None:
    three()
    layer = next(layer for layer in compared(3).layers if layer.name == "/backbone/conv_0/Conv:0")
    assert layer.note == "Convolution, activations, 8 bits, per tensor"
    assert [cell for cell, _ in layer.cells] == ["symmetric", "asymmetric", "asymmetric"]
    assert layer.cells[1][1] == "-0.5 to 1.5 · 46.0 dB" and layer.differs
    weights = next(layer for layer in compared(3).layers if layer.name == "/backbone/conv_0/Conv:1")
    assert not weights.differs and [cell for cell, _ in weights.cells] == ["", "", ""]


def test_the_noisiest_layers_of_the_job_to_adopt() -> None:
    def unknown(rows: Any) -> None:
        for row in rows:
            row |= {"effect_on": None}

    for number, preset, drop in ((0, "performance", 0.031), (1, "mixed", 0.0)):
        make_job(number, preset, drop, 4.0, edits={"evaluate/layers.json": unknown})
    found = compared(2)
    assert found.hurting_of == "job 1 (preset=mixed)" and not found.by_effect
    assert [layer.name for layer in found.hurting] == ["/backbone/conv_11/Conv:1", "/backbone/conv_10/Conv:1", "/backbone/conv_9/Conv:1"]
    assert found.hurting[0].cells[0] == "30 % (10.5 dB)"  # 10 ** (-10.5 / 20)


def test_layers_that_hurt_are_known_by_their_effect_where_that_was_measured() -> None:
    def effects(rows: Any) -> None:
        for row in rows:
            row |= {"effect_on": None, "block": None}
        for number, row in enumerate(rows[:6]):  # two inputs of each layer, which are one block
            row |= {"effect_on": (0.02, 0.05, 0.01)[number // 2], "block": number // 2}

    for number, preset in enumerate(("performance", "mixed")):
        make_job(number, preset, 0.0, 4.0, edits={"evaluate/layers.json": effects})
    found = compared(2)
    assert found.by_effect and found.hurting[0].name.startswith("/backbone/conv_1/Conv:")
    assert [layer.cells for layer in found.hurting] == [("5 %", "5 %"), ("2 %", "2 %"), ("1 %", "1 %")]
    assert "when it alone is quantized" in Page(rendered(2)).text


# ------------------------------------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as found:
        yield found


def opened(browser: Browser, count: int, width: int, *, dark: bool = False) -> None:
    Path("comparison.html").write_text(rendered(count))
    browser.open(Path("comparison.html").resolve().as_uri(), "Layers side by side", width=width, dark=dark)


def value(browser: Browser, expression: str) -> Any:
    return browser.evaluate(expression)[0]


SHOWN = "[...document.querySelectorAll('#rows tbody')].filter(e => !e.hidden).map(e => e.dataset.name)"


class TestInABrowser:
    pytestmark = needs_chromium

    @pytest.mark.parametrize("width", [1400, 800, 420])
    def test_nothing_sticks_out_or_covers_something(self, browser: Browser, tmp_path: Path, width: int) -> None:
        three()
        opened(browser, 3, width)
        browser.screenshot(tmp_path / f"comparison_{width}.png", full=True)
        assert value(browser, "document.documentElement.scrollWidth - window.innerWidth") <= 0
        assert overlaps(browser, ".plot g.label, .plot text.short") == 0
        assert overlaps(browser, ".plot text.axis, .axis-title") == 0
        right = value(browser, "Math.max(...[...document.querySelectorAll('#results td')].map(e => e.getBoundingClientRect().right))")
        assert right <= width  # all three jobs

    def test_many_jobs_have_numbers_in_the_picture_and_a_key(self, browser: Browser) -> None:
        for number in range(12):
            make_job(number, "mixed", 0.001 * number, 4.0 + 0.01 * number)
        opened(browser, 12, 1400)
        assert overlaps(browser, ".plot g.label, .plot text.short") == 0
        key = value(browser, "document.querySelector('.plot .key').innerText")
        assert all(re.search(rf"^{number}\s+preset=mixed", key, re.M) for number in range(12))

    def test_layers_are_sorted_filtered_and_only_what_differs(self, browser: Browser) -> None:
        three()
        opened(browser, 3, 1400)
        names = value(browser, SHOWN)
        assert len(names) == 12 and names[0] == "/backbone/conv_11/Conv:0" and all(name.endswith(":0") for name in names)
        assert value(browser, "document.getElementById('count').innerText") == "12 of 24 layer inputs"
        change = "(e => {{ e.{} = {}; e.dispatchEvent(new Event('input')); }})(document.getElementById('{}')); " + SHOWN
        everything = value(browser, change.format("checked", "false", "differing"))
        assert len(everything) == 24 and everything[0] == "/backbone/conv_11/Conv:1"
        assert value(browser, change.format("value", "'place'", "order"))[:2] == ["/backbone/conv_0/Conv:0", "/backbone/conv_0/Conv:1"]
        assert value(browser, change.format("value", "'conv_3 weights'", "find")) == ["/backbone/conv_3/Conv:1"]

    def test_controls_and_tables_are_reached_by_keyboard(self, browser: Browser) -> None:
        three()
        opened(browser, 3, 420)
        reached = []
        for _ in range(14):
            browser.press("Tab")
            reached.append(value(browser, "document.activeElement.id || document.activeElement.getAttribute('aria-label') || ''"))
        assert {"find", "differing", "order", "table: results", "table: layers that hurt", "table: layers"} <= set(reached)
        browser.evaluate("document.getElementById('differing').focus()")
        browser.press(" ")
        assert value(browser, "document.getElementById('differing').checked") is False

    @pytest.mark.parametrize("dark", [False, True])
    def test_axe_finds_nothing(self, browser: Browser, dark: bool) -> None:
        three()
        opened(browser, 3, 800, dark=dark)
        assert value(browser, "getComputedStyle(document.body).backgroundColor") == ("rgb(17, 22, 28)" if dark else "rgb(255, 255, 255)")
        assert browser.axe() == []
