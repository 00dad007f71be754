"""The page: written when something changed, with nothing loaded from elsewhere, and right in a browser."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from stages.configuration.schema import Evaluate, Model, Package, Quantization
from stages.report import page
from tests import built
from tests.browser import FLAGS
from tests.report.pages import Page, edit, rendered


def test_nothing_is_loaded_and_every_link_leads_somewhere(workspace: Path) -> None:
    text = page.rendered(built.config(), "key")
    shown = Page(text)
    assert {"script", "link", "img", "iframe"} & shown.tags == set()
    assert all(link.startswith("#") and link[1:] in shown.ids for link in shown.links)
    assert len(shown.links) == 7
    assert "url(" not in text and "@import" not in text


def test_names_are_text_not_markup(workspace: Path) -> None:
    evil = "<img src=x onerror=alert(1)>&amp;\"'"
    model = Model(name=evil, package=Package(requirement="a==1", member="b"), sha256="0" * 64)
    edit("evaluate/layers.json", lambda rows: [row | {"layer": evil, "type": evil, "float_reason": evil} for row in rows])
    edit("evaluate/evaluation.json", lambda evaluation: evaluation | {"metrics": {evil: evaluation["metrics"]["exact_match"]}})
    edit("prepare/model.json", lambda model: model | {"source": evil})
    (workspace / "params.yaml").write_text(evil)
    config = dataclasses.replace(
        built.config(), model=model, metric={evil: {}}, evaluate=Evaluate(primary_metric=evil), quantization=Quantization(preset="mixed")
    )
    shown = rendered(config)  # fails on attributes like onerror
    assert "img" not in shown.tags
    assert shown.text.count(evil) > 50


def test_it_is_written_again_only_when_something_changed(workspace: Path) -> None:
    def write(key: str = "key") -> bool:
        return page.write(built.config(), key)

    assert write() and not write()
    edit("evaluate/latency.json", lambda speed: speed.update(rounds=41))
    assert write() and not write()
    assert "41 rounds" in Page(page.REPORT.read_text()).text
    (workspace / "build/records/track.json").write_text('{"seconds": 1}')
    assert not write()
    (workspace / "params.yaml").write_text("seed: 1")
    assert write() and not write()
    assert write("other key") and not write("other key")
    page.REPORT.unlink()
    assert write("other key")


def test_the_same_result_gives_the_same_page(
    workspace: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.write(built.config(), "key")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(workspace / "build", elsewhere / "build", ignore=shutil.ignore_patterns("report.html"))
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(elsewhere.parent))
    page.write(built.config(), "key")
    assert page.REPORT.read_bytes() == (workspace / page.REPORT).read_bytes()


def test_the_commit_and_what_differs_from_it(workspace: Path) -> None:
    assert "not under git" in rendered().text

    def git(*arguments: str) -> str:
        own = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        return subprocess.run(["git", *own, *arguments], cwd=workspace, capture_output=True, text=True, check=True).stdout.strip()

    (workspace / "params.yaml").write_text("seed: 0\n")
    git("init", "-q")
    git("add", "params.yaml")
    git("commit", "-qm", "first")
    page.write(built.config(), "key")
    text = Page(page.REPORT.read_text()).text
    assert f"git checkout {git('rev-parse', 'HEAD')}" in text
    assert "differs from this commit" not in text
    (workspace / "params.yaml").write_text("seed: 1\n")
    assert page.write(built.config(), "key")
    assert "1 file differs from this commit: params.yaml" in Page(page.REPORT.read_text()).text
    git("commit", "-qam", "second")
    assert page.write(built.config(), "key")  # another commit is another page
    assert f"git checkout {git('rev-parse', 'HEAD')}" in Page(page.REPORT.read_text()).text


@pytest.mark.browser
@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium: `apt-get install chromium` makes this test run")
@pytest.mark.parametrize(("width", "scheme", "background", "labels"), [(1200, 1, "rgb(255, 255, 255)", 6), (500, 0, "rgb(17, 22, 28)", 3)])
def test_a_browser_shows_it(workspace: Path, width: int, scheme: int, background: str, labels: int) -> None:
    """Light and wide, dark and narrow: nothing sticks out, and every point is inside the picture, with name and value or a letter."""
    page.write(built.config(), "key")
    measure = """<script>
        const box = selector => [...document.querySelectorAll(selector)].map(item => item.getBoundingClientRect());
        const inside = (inner, outer) => inner.left >= outer.left - 7 && inner.right <= outer.right + 7;
        document.title = JSON.stringify({
            overflow: document.documentElement.scrollWidth - window.innerWidth,
            background: getComputedStyle(document.body).backgroundColor,
            points: box('.plot circle').filter(item => inside(item, box('.plot svg')[0])).length,
            labels: box('.plot text.halo').filter(item => item.width && item.left >= 0 && item.right <= window.innerWidth).length,
            bars: box('.bars .fill').map(item => item.width),
        });
    </script>"""
    copy = workspace / "measured.html"
    copy.write_text(page.REPORT.read_text().replace("</body>", f"{measure}</body>"))
    own = [f"--user-data-dir={workspace / 'profile'}", f"--window-size={width},1400", f"--blink-settings=preferredColorScheme={scheme}"]
    command = ["chromium", *FLAGS, *own, f"--screenshot={workspace / 'report.png'}", "--dump-dom", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r"<title>(.*?)</title>", done.stdout)
    assert found
    seen = json.loads(found[1])
    print(f"screenshot: {workspace / 'report.png'}")
    assert seen["overflow"] <= 0
    assert seen["background"] == background
    assert seen["points"] == 3 and seen["labels"] == labels
    assert seen["bars"][0] == max(seen["bars"][:15]) > 50
    assert (workspace / "report.png").stat().st_size > 20_000
