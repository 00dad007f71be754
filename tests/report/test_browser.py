"""The report in a browser: wide and narrow, light and dark, by keyboard, and for those who cannot see it well."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.report import page
from tests import built
from tests.browser import Browser, browsing, needs_chromium
from tests.report.pages import edit

pytestmark = needs_chromium
WIDTHS = (1400, 800, 420)
BOXES = "[...document.querySelectorAll('{}')].map(e => e.getBoundingClientRect()).filter(e => e.width > 0)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as found:
        yield found


@pytest.fixture
def address(workspace: Path) -> str:
    """Of a report with both searches on, and a warning with code in it."""
    built.write_accuracy_aware(workspace)
    built.write_tune(workspace)
    edit("evaluate/evaluation.json", lambda evaluation: evaluation["warnings"].append("set `quantization.saturation_fix` to `all`"))
    page.write(built.config(), "key")
    return (workspace / page.REPORT).as_uri()


def overlaps(browser: Browser, selector: str) -> int:
    """How many pairs of the shown elements cover each other by more than two pixels."""
    inside = f"""(boxes => boxes.flatMap((a, i) => boxes.slice(i + 1).filter(b =>
        Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2)).length
        )({BOXES.format(selector)})"""
    (count,) = browser.evaluate(inside)
    return int(count)


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_sticks_out_or_covers_something(browser: Browser, address: str, tmp_path: Path, width: int) -> None:
    browser.open(address, "What to do next", width=width)
    browser.screenshot(tmp_path / f"report_{width}.png", full=True)
    (overflow,) = browser.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert overflow <= 0
    assert overlaps(browser, ".plot text.axis, .axis-title") == 0
    assert overlaps(browser, ".plot g.label, .plot text.short") == 0
    # The model to deploy is seen without scrolling sideways: its column ends inside of the window.
    (column,) = browser.evaluate(f"{BOXES.format('#results td.chosen')}.map(e => e.right)")
    assert len(column) == 5 and max(column) <= width
    # Every model is named, in the picture or in the key below it.
    text = browser.text()
    assert all(name in text for name in ("preset mixed", "tuned", "budget kept, 1 layer back"))


@pytest.mark.parametrize("dark", [False, True])
def test_what_was_lost_is_not_green(browser: Browser, address: str, dark: bool) -> None:
    browser.open(address, "What to do next", width=1400, dark=dark)
    colour = "getComputedStyle(document.querySelector('{}')).color"
    lost = [browser.evaluate(colour.format(place))[0] for place in (".figures strong.lost", "#results .remark td.lost")]
    red, green, blue = (int(part) for part in lost[0].removeprefix("rgb(").removesuffix(")").split(","))
    assert red > green > 0 and red > blue and lost[0] == lost[1]
    (cells,) = browser.evaluate("[...document.querySelectorAll('#results td.chosen')].map(e => getComputedStyle(e).color)")
    (text,) = browser.evaluate("getComputedStyle(document.body).color")
    assert set(cells) == {text}  # no value is coloured as if it were good


def test_words_break_where_they_may(browser: Browser, address: str) -> None:
    """No line ends inside of a word: every word that could stand on a line of its own does, as wide as it needs."""
    browser.open(address, "What to do next", width=420)
    text = browser.text()
    assert "`" not in text
    (codes,) = browser.evaluate("[...document.querySelectorAll('.warning code')].map(e => e.textContent)")
    assert codes == ["quantization.saturation_fix", "all"]
    broken = """[...document.querySelectorAll('.bars .what, .figures .label, td.name, #results th')].filter(e => {
        const words = e.innerText.split(/[^A-Za-z0-9]+/).filter(word => word.length > 3 && word.length < 30);  // not hashes
        const walk = document.createTreeWalker(e, NodeFilter.SHOW_TEXT);
        for (let node; node = walk.nextNode();) {
            for (const word of words) {
                const place = node.data.indexOf(word);
                if (place < 0) continue;
                const range = document.createRange();
                range.setStart(node, place); range.setEnd(node, place + word.length);
                if (range.getClientRects().length > 1) return true;
            }
        }
        return false;
    }).map(e => e.innerText)"""
    assert browser.evaluate(broken) == [[]]


def test_every_table_is_reached_by_keyboard(browser: Browser, address: str) -> None:
    browser.open(address, "What to do next", width=420)
    (tables,) = browser.evaluate("[...document.querySelectorAll('table')].map(e => e.parentElement.tabIndex)")
    assert len(tables) > 5 and set(tables) == {0}
    reached = set()
    for _ in range(60):
        browser.press("Tab")
        reached |= set(browser.evaluate("document.activeElement.getAttribute('aria-label') || ''"))
    assert {"table: results", "table: budget", "table: stages and what they cost"} <= reached


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing(browser: Browser, address: str, dark: bool) -> None:
    browser.open(address, "What to do next", width=800, dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert browser.axe() == []
    browser.evaluate("document.documentElement.lang = ''")
    assert any(line.startswith("html-has-lang") for line in browser.axe())  # it does look
