"""The report: it says what the artifacts say, to anyone, wherever it is opened, whatever is missing."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from stages.common import artifacts
from stages.configuration.schema import BiasCorrection, Evaluate, Model, Package, Quantization
from stages.report import page
from stages.report.contents import contents
from stages.report.tradeoff import HEIGHT, LABEL, Point, apart, picture, ticks
from tests import built
from tests.browser import FLAGS

VOID = {"meta", "link", "br", "img", "input", "hr"}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a finished build, outside any git repository; it is the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    built.write_build(tmp_path, built.config())
    return tmp_path


def edit(path: str, change: Callable[[Any], Any]) -> None:
    file = Path("build") / path
    content = json.loads(file.read_text())
    file.write_text(json.dumps(change(content) or content))


def primary(**changes: Any) -> Callable[[Any], None]:
    """An edit of the primary metric in evaluation.json."""
    return lambda evaluation: evaluation["metrics"]["exact_match"].update(changes)


def verdict() -> str:
    return contents(built.config(), "key").verdict


class Page(HTMLParser):
    """The text of a page, its links and ids; fails on tags that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.add(str(value))
            if name in ("href", "src", "srcset", "action", "data", "poster", "xlink:href"):
                self.links.append(str(value))
            assert not name.startswith("on"), f"{name} on {tag}"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def rendered(config: Any = None) -> Page:
    return Page(page.rendered(config or built.config(), "0123456789abcdef"))


# ------------------------------------------------------------------------------------------------ what it says


def test_the_verdict_is_one_sentence_with_everything_in_it(workspace: Path) -> None:
    assert verdict() == (
        "In INT8, reader is 3.00× faster than FP32 in f32, 1.50× faster than FP32 in bf16 (this device’s default) and 3.5× smaller; "
        "it loses 2.10 points of exact_match (95 % confidence interval 1.10 to 3.10 points)."
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"drop": -0.02, "drop_low": -0.03, "drop_high": -0.01},
            "it gains 2.00 points of exact_match (95 % confidence interval -3.00 to -1.00",
        ),
        (
            {"drop": 0.002, "drop_low": -0.004, "drop_high": 0.008},
            "it keeps its exact_match within what 1000 samples can tell (drop 0.20 points",
        ),
        ({"drop_low": None, "drop_high": None}, "it loses 2.10 points of exact_match."),
        (
            {"share": False, "higher_is_better": False, "fp32": 0.0, "int8": 0.04, "drop": 0.04, "drop_low": 0.03, "drop_high": 0.05},
            "it changes exact_match from 0 to 0.04, lower is better (drop 95 % confidence interval 0.03 to 0.05).",
        ),
    ],
)
def test_the_verdict_on_accuracy(workspace: Path, change: dict[str, Any], expected: str) -> None:
    edit("evaluate/evaluation.json", primary(**change))
    assert expected in verdict()


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        ({"median": 1.01, "low": 0.97, "high": 1.04}, "as fast as FP32 in bf16"),
        ({"median": 0.8, "low": 0.78, "high": 0.82}, "1.25× SLOWER than FP32 in bf16"),
    ],
)
def test_the_verdict_on_speed(workspace: Path, ratio: dict[str, float], expected: str) -> None:
    edit("evaluate/latency.json", lambda speed: speed["speed_up"].update(default=ratio))
    assert expected in verdict()


def test_numbers_are_those_of_the_artifacts(workspace: Path) -> None:
    text = rendered().text
    for expected in (
        "90.20 % 90.10 % 88.10 % drop 2.10 points, 95 % interval 1.10 to 3.10",
        "0 0.001 0.04 drop 0.04, 95 % interval 0.039 to 0.0412",
        "12.0 ms 6.00 ms 4.00 ms",
        "INT8 is 3.00× faster than f32 (2.70 to 3.30), 1.50× faster than bf16 (1.35 to 1.65)",
        "167 /s 333 /s 500 /s",
        "10.90 MB 10.90 MB 3.10 MB 3.5× smaller",
        "Share of text lines that a CTC recogniser reads without any error.",  # what the metric means
        "Lower is better.",
        "300 calibration samples",
        "1000 validation samples",
        "12 operations by 12 weight quantizers and 12 activation quantizers",
        "10 biases corrected by FastBiasCorrection, 2 left as they were",
        "One pass over 300 samples collected 64 tensors.",
        "the shift is … times the bias",
        "ANY has no quantized form of it",
        "ignored block: squeeze and excitation /se/fc 1",
        "OpenVINO 2026.4.1",
        "measured on Test(R) Processor",
        "18.0 seconds in all stages together",
        "evaluate measures accuracy, speed and noise 5.5 1.0 105",
    ):
        assert expected in text
    # Whose file it is that was measured, to compare elsewhere.
    assert artifacts.file_sha256(artifacts.folder("correct_bias") / "model.bin") in text


def test_a_search_has_its_own_column_section_and_points(workspace: Path) -> None:
    without = rendered()
    assert "The search" not in without.text and "tuned" not in contents(built.config(), "key").columns
    built.write_tune(workspace)
    text = rendered().text
    for expected in (
        "90.20 % 90.10 % 88.10 % 89.40 % drop 2.10 points",
        "12.0 ms 6.00 ms 4.00 ms 3.75 ms INT8 is",
        "167 /s 333 /s 500 /s –",
        "The best model: 0.87 % of exact_match lost, 1 % allowed. It is trial 3 of 4",
        "1.60x faster than FP32 in bf16 [1.52, 1.68], no different from fully quantized",
        "4 TPE 50.00 % (beyond) 50 90 % 76",
        "/backbone/conv_0/Conv.quantize best: float 40 %",
        "The model to deploy is build/tune/model.xml",
    ):
        assert expected in text, expected
    report = contents(built.config(), "key")
    assert report.picture is not None and report.tuning is not None and report.tuning.curve is not None
    assert [mark.point.name for mark in report.picture.marks[3:]] == ["preset mixed", "tuned"]
    assert report.picture.trials == ()  # the fully quantized one is INT8
    assert report.picture.marks[4].point.x == 6.0 / 1.6  # the ratio, of the default precision's time
    assert [mark.point.name for mark in report.picture.frontier] == ["tuned", "preset mixed", "FP32 (bf16, default)", "FP32 (f32)"]
    assert report.tuning.curve.corners == ((33.333, 80.0), (66.667, 80.0), (66.667, 0.0), (100.0, 0.0), (100.0, 0.0))
    assert artifacts.file_sha256(artifacts.folder("tune") / "model.bin") in text


def test_the_accuracy_budget_has_its_own_column_section_and_point(workspace: Path) -> None:
    without = rendered()
    assert "The accuracy budget" not in without.text and "budget kept" not in contents(built.config(), "key").columns
    built.write_accuracy_aware(workspace)
    text = rendered().text
    for expected in (
        "90.20 % 90.10 % 88.10 % 89.30 % drop 2.10 points",
        "12.0 ms 6.00 ms 4.00 ms 4.00 ms INT8 is",
        "167 /s 333 /s 500 /s –",
        "Accuracy budget: holds. 1 of 12 operations back in floating point: /backbone/conv_0/Conv.",
        "Latency 4.00 ms now, 3.84 ms before: 1.04x SLOWER than INT8 with no layer reverted [1.02, 1.05]",
        "exact_match 1.00 points 0.80 points [-0.10, 1.70] 1.20 points [-0.80, 3.20]",
        "drop on the search’s 800 samples on 200 that it did not see",
        "/backbone/conv_0/Conv Convolution 1 1",
        "0 base 0 3.00 points exceeds the budget",
        "2 revert /backbone/conv_1/Conv 2 – worse: undone, given up early",
        "The model to deploy is build/accuracy_aware/model.xml",
    ):
        assert expected in text, expected
    report = contents(built.config(), "key")
    assert report.picture is not None
    mark = report.picture.marks[3]
    assert (mark.point.name, mark.point.kind, mark.point.x) == ("budget kept, 1 layer back", "accuracy_aware", 6.0 / 1.5)
    assert artifacts.file_sha256(artifacts.folder("accuracy_aware") / "model.bin") in text
    # What is tuned later is what to deploy, and both have a column.
    built.write_tune(workspace)
    both = contents(built.config(), "key")
    assert both.columns[3:] == ("budget kept", "tuned") and both.deployable == "build/tune/model.xml"
    assert both.results[0].cells[3:] == ("89.30 %", "89.40 %")


def test_a_model_that_misses_the_budget_is_not_the_one_to_deploy(workspace: Path) -> None:
    built.write_accuracy_aware(workspace, holds=False)
    report = contents(built.config(), "key")
    assert report.deployable == "build/correct_bias/model.xml"
    assert report.columns[3] == "closest to the budget"
    assert report.budget is not None and report.budget.outcome.startswith("Accuracy budget: NOT MET: exact_match drops by 1.50 points")


def test_a_tuned_model_beyond_the_budget_is_not_the_one_to_deploy(workspace: Path) -> None:
    built.write_tune(workspace, within=False)
    report = contents(built.config(), "key")
    assert report.deployable == "build/correct_bias/model.xml"
    assert report.tuning is not None and report.tuning.outcome.startswith("BUDGET NOT KEPT on all 1000 samples")


def test_trials_that_lose_far_more_than_allowed_are_not_drawn(workspace: Path) -> None:
    built.write_tune(workspace)

    def more(rows: list[dict[str, Any]]) -> None:
        rows += [
            {"model": "TPE", "trial": 8 + index, "speed_up": 1.5, "accuracy": 0.902 - loss, "kind": "trial"}
            for index, loss in enumerate((0.02, 0.5))
        ]

    edit("tune/trade_off.json", more)
    picture = contents(built.config(), "key").picture
    assert picture is not None
    assert [mark.point.name for mark in picture.trials] == ["trial 8, TPE"]


def test_the_noisiest_layers_come_first_and_longest(workspace: Path) -> None:
    bars = contents(built.config(), "key").noise
    assert bars[0].name == "/backbone/conv_11/Conv:1"
    assert bars[0].value == "30 % · 10.5 dB"  # 10 ** (-10.5 / 20)
    assert bars[0].width == 100.0
    assert [bar.width for bar in bars] == sorted((bar.width for bar in bars), reverse=True)
    assert bars[0].note == "weights of Convolution, 8 bits, symmetric, per tensor, mean of abs_max"
    text = rendered().text  # the table of all layers uses the same words
    assert "activations, 8 bits, symmetric, per tensor" in text and "pertensor" not in text


def test_time_is_told_where_it_was_measured(workspace: Path) -> None:
    assert contents(built.config(), "key").costly == ()

    def timed(rows: list[dict[str, Any]]) -> None:
        rows[0].update(run_time_share=0.5, runs_as="int8_kernel")
        rows[-2].update(run_time_share=0.2, runs_as="f32_kernel")

    edit("evaluate/layers.json", timed)
    report = contents(built.config(), "key")
    assert [(bar.name, bar.kind, bar.value) for bar in report.costly] == [
        ("/backbone/conv_0/Conv", "int8", "50.0 %"),
        ("/se/fc", "float", "20.0 %"),
    ]
    assert [bar.value for bar in report.spent] == ["50.0 %", "20.0 %", "30.0 %"]
    assert report.kept_free == "10 of them take no time of their own, because the runtime fuses them into other layers."
    assert report.kept[0].which == "/se/fc" and report.kept[0].share == "20.0 %"


def test_settings_that_are_not_at_their_default(workspace: Path) -> None:
    settings = {entry.key: entry for entry in contents(built.config("mixed"), "key").settings}
    assert settings["quantization.preset"].value == "mixed"
    assert settings["quantization.preset"].default == "performance"
    assert settings["quantization.range_estimator.min.type"].meaning == "statistic of one sample"
    assert settings["model.name"].default == "required"
    assert "seed" not in settings and "evaluate.primary_metric" not in settings
    assert "quantization.preset" not in {entry.key for entry in contents(built.config(), "key").settings}


def test_samples_in_both_sets_are_a_warning(workspace: Path) -> None:
    edit("prepare/dataset.json", lambda samples: samples.update(shared=40))
    assert "40 of the 1000 validation samples are calibration samples too" in rendered().text


def test_where_results_are_tracked_stays_secret(workspace: Path) -> None:
    assert "hunter2" not in page.rendered(built.config(tracking_uri="https://me:hunter2@tracking.example"), "key")


# ------------------------------------------------------------------------------------------------ what may be missing


def test_without_a_benchmark(workspace: Path) -> None:
    (workspace / "build/evaluate/latency.json").write_text("{}")
    shown = rendered()
    assert "Speed was not measured: evaluate.benchmark.enabled is false." in shown.text
    assert "latency, ms" not in shown.text and "svg" not in shown.tags  # the configuration has keys of that name
    assert verdict().startswith("In INT8, reader is 3.5× smaller; it loses")


def test_without_noise(workspace: Path) -> None:
    edit("evaluate/layers.json", lambda rows: [row | {"sqnr_db": None} for row in rows])
    assert "Noise was not measured: evaluate.noise_samples is 0." in rendered().text


def test_without_bias_correction(workspace: Path) -> None:
    edit("correct_bias/corrections.json", lambda _: {"algorithm": None, "corrected": [], "left": []})
    off = dataclasses.replace(built.config(), bias_correction=BiasCorrection(enabled=False))
    assert "Biases were not corrected: bias_correction.enabled is false." in rendered(off).text


def test_without_anything_left_float(workspace: Path) -> None:
    edit("evaluate/layers.json", lambda rows: [row for row in rows if row["kind"] != "float"])
    assert "Nothing: every operation that could be quantized was." in rendered().text


def test_on_a_device_that_computes_in_f32(workspace: Path) -> None:
    edit("evaluate/evaluation.json", lambda evaluation: evaluation["precisions"].update(default="f32"))
    report = contents(built.config(), "key")
    assert report.columns == ("FP32 (f32)", "INT8")
    assert all(len(row.cells) == 2 for row in report.results)
    assert "3.00× faster than FP32 in f32 and 3.5× smaller" in report.verdict


def test_a_metric_without_labels_and_without_a_known_class(workspace: Path) -> None:
    config = dataclasses.replace(built.config(), metric={"error": {"_target_": "nowhere.Mine"}}, evaluate=Evaluate(primary_metric="error"))
    edit("evaluate/evaluation.json", lambda evaluation: evaluation["metrics"].pop("exact_match") and None)
    assert "it changes error from 0 to 0.04, lower is better (drop 95 % confidence interval 0.039 to 0.0412)" in rendered(config).text


# ------------------------------------------------------------------------------------------------ the page


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


# ------------------------------------------------------------------------------------------------ the picture


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.5), (85.6, 89.9), (0.0, 0.0), (-3e-4, 2e-3), (1e6, 1.0001e6), (5.0, 5.0)])
def test_ticks_are_few_round_and_enclose_the_values(low: float, high: float) -> None:
    values = ticks(low, high)
    assert 3 <= len(values) <= 13
    assert values[0] <= low and values[-1] >= high
    steps = {round(after - before, 9) for before, after in itertools.pairwise(values)}
    assert len(steps) == 1
    assert f"{steps.pop():e}"[0] in "125"


@pytest.mark.parametrize("heights", [[0.0, 0.0, 0.0], [300.0, 310.0, 320.0], [10.0, 200.0], [150.0, 150.0, 20.0, 151.0]])
def test_labels_do_not_cover_each_other(heights: list[float]) -> None:
    placed = sorted(apart(heights))
    assert placed[0] >= 0 and placed[-1] <= HEIGHT - LABEL
    assert all(after - before >= LABEL - 0.01 for before, after in itertools.pairwise(placed))


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_better_is_up_and_faster_is_left(higher_is_better: bool) -> None:
    better, worse = (0.9, 0.8) if higher_is_better else (0.8, 0.9)
    points = [Point("FP32", "fp32", 6.0, better, "", (5.5, 6.5)), Point("INT8", "int8", 3.0, worse, "", (2.9, 3.1), (0.75, 0.95))]
    drawn = picture(points, [Point("trial", "trial", 2.0, 0.7, "")], "score", "", higher_is_better=higher_is_better)
    fp32, int8 = drawn.marks
    assert fp32.y < int8.y and int8.x < fp32.x
    assert int8.left < int8.x < int8.right and int8.top < int8.y < int8.bottom
    assert drawn.reference == fp32.y
    places = [value for mark in (*drawn.marks, *drawn.trials) for value in (mark.left, mark.right)]
    assert min(places) >= 0 and max(places) <= 100
    heights = [value for mark in (*drawn.marks, *drawn.trials) for value in (mark.top, mark.bottom)]
    assert min(heights) >= 0 and max(heights) <= HEIGHT


# ------------------------------------------------------------------------------------------------ in a browser


@pytest.mark.browser
@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium: `apt-get install chromium` makes this test run")
@pytest.mark.parametrize(("width", "scheme", "background"), [(1200, 1, "rgb(255, 255, 255)"), (500, 0, "rgb(17, 22, 28)")])
def test_a_browser_shows_it(workspace: Path, width: int, scheme: int, background: str) -> None:
    """Light and wide, dark and narrow: nothing sticks out, and every point is inside the picture."""
    page.write(built.config(), "key")
    measure = """<script>
        const box = selector => [...document.querySelectorAll(selector)].map(item => item.getBoundingClientRect());
        const inside = (inner, outer) => inner.left >= outer.left - 7 && inner.right <= outer.right + 7;
        document.title = JSON.stringify({
            overflow: document.documentElement.scrollWidth - window.innerWidth,
            background: getComputedStyle(document.body).backgroundColor,
            points: box('.plot circle').filter(item => inside(item, box('.plot svg')[0])).length,
            labels: box('.plot text.halo').filter(item => item.left >= 0 && item.right <= window.innerWidth).length,
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
    assert seen["points"] == 3 and seen["labels"] == 6
    assert seen["bars"][0] == max(seen["bars"][:15]) > 50
    assert (workspace / "report.png").stat().st_size > 20_000
