"""The report: it says what the artifacts say, to anyone, wherever it is opened, whatever is missing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from stages.common import artifacts
from stages.configuration.schema import BiasCorrection, Evaluate
from stages.report import page
from stages.report.contents import contents
from tests import built
from tests.report.pages import edit, primary, rendered


def verdict() -> str:
    return contents(built.config(), "key").verdict


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
        "167 /s 333 /s 500 /s INT8 does 3.00× as many as f32, 1.50× as many as bf16",
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
        "12.0 ms 6.00 ms 4.00 ms 3.75 ms tuned is 3.20× faster than f32 (3.04 to 3.36), 1.60× faster than bf16 (1.52 to 1.68)",
        "167 /s 333 /s 500 /s – INT8 does 3.00× as many as f32, 1.50× as many as bf16",
        "In INT8 (tuned), reader is 3.20× faster than FP32 in f32, 1.60× faster than FP32 in bf16",
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
        "90.20 % 90.10 % 88.10 % 89.30 % drop 0.90 points, 95 % interval 0.10 to 1.70",  # of the model to deploy
        "12.0 ms 6.00 ms 4.00 ms 4.00 ms budget kept is 3.10× faster than f32 (2.94 to 3.26)",
        "167 /s 333 /s 500 /s –",
        "Accuracy budget: holds, judged in bf16. 1 of 12 operations back in floating point: /backbone/conv_0/Conv.",
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


def test_what_was_lost_is_coloured_where_that_is_clear(workspace: Path) -> None:
    def tones() -> tuple[str, str]:
        report = contents(built.config(), "key")
        return report.figures[0].tone, report.results[0].tone

    assert tones() == ("lost", "lost")
    edit("evaluate/evaluation.json", primary(drop=0.002, drop_low=-0.004, drop_high=0.008))
    assert tones() == ("", "")
    edit("evaluate/evaluation.json", primary(drop=-0.02, drop_low=-0.03, drop_high=-0.01))
    assert tones() == ("gained", "gained")


def test_a_model_that_has_grown_is_called_larger(workspace: Path) -> None:
    edit("evaluate/evaluation.json", lambda evaluation: evaluation["size_bytes"].update(fp32=2_000_000, int8=2_400_000))
    figure = contents(built.config(), "key").figures[-1]
    assert (figure.value, figure.label, figure.tone) == ("1.2×", "larger", "lost")


def test_a_model_that_is_not_to_be_deployed_is_not_called_so(workspace: Path) -> None:
    assert "The quantized model is build/correct_bias/model.xml" in rendered().text
    edit("evaluate/evaluation.json", primary(drop=0.002, drop_low=-0.004, drop_high=0.008))
    assert "The model to deploy is build/correct_bias/model.xml" in rendered().text


def test_it_says_what_to_do_next(workspace: Path) -> None:
    text = rendered().text
    assert "What to do next Do not deploy INT8 yet: exact_match drops by 2.10 points [1.10, 3.10], 1.00 allowed" in text
    assert "Try preset mixed : asymmetric" in text  # code, and no backticks
    assert "python -m stages.sweep -m quantization.preset=performance,mixed" in text


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
    assert contents(built.config(), "key").slowest_layers == ()

    def timed(rows: list[dict[str, Any]]) -> None:
        rows[0].update(run_time_share=0.5, runs_as="int8_kernel")
        rows[-2].update(run_time_share=0.2, runs_as="f32_kernel")

    edit("evaluate/layers.json", timed)
    report = contents(built.config(), "key")
    assert [(bar.name, bar.kind, bar.value) for bar in report.slowest_layers] == [
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
    assert (
        settings["quantization.range_estimator.min.type"].meaning
        == "statistic of a sample; histogram, percentile, entropy and sqnr: of all samples together"
    )
    assert settings["model.name"].default == "required"
    assert "seed" not in settings and "evaluate.primary_metric" not in settings
    assert "quantization.preset" not in {entry.key for entry in contents(built.config(), "key").settings}


def test_models_that_do_not_compute_what_they_say_are_warnings(workspace: Path) -> None:
    built.write_accuracy_aware(workspace)
    built.write_tune(workspace)
    for stage in ("accuracy_aware", "tune"):
        (workspace / f"build/{stage}/fidelity.json").write_text(json.dumps({"ratio": 9.0, "warning": f"no {stage}"}))
    assert contents(built.config(), "key").warnings == ("The model of accuracy_aware: no accuracy_aware", "The model of tune: no tune")
    built.write_tune(workspace, enabled=False)
    assert contents(built.config(), "key").warnings == ("The model of accuracy_aware: no accuracy_aware",)


def test_samples_in_both_sets_are_a_warning(workspace: Path) -> None:
    edit("prepare/dataset.json", lambda samples: samples.update(shared=40))
    assert "40 of the 1000 validation samples are calibration samples too" in rendered().text


def test_what_prepare_found_odd_is_a_warning(workspace: Path) -> None:
    edit("records/prepare.json", lambda record: record.update(notes=["data.calibration: left out"]))
    assert "data.calibration: left out" in rendered().text


def test_where_results_are_tracked_stays_secret(workspace: Path) -> None:
    assert "hunter2" not in page.rendered(built.config(tracking_uri="https://me:hunter2@tracking.example"), "key")


# ------------------------------------------------------------------------------------------------ what may be missing


def test_without_a_benchmark(workspace: Path) -> None:
    (workspace / "build/evaluate/latency.json").write_text("{}")
    shown = rendered()
    assert "Speed was not measured: evaluate.benchmark.enabled is false." in shown.text
    assert "latency, ms" not in shown.text and "svg" not in shown.tags  # the configuration has keys of that name
    assert verdict().startswith("In INT8, reader is 3.5× smaller; it loses")


def test_the_most_harmful_layers_come_first_with_their_noise_beside(workspace: Path) -> None:
    report = contents(built.config(), "key")
    assert [bar.name for bar in report.effects[:2]] == ["/backbone/conv_11/Conv", "/backbone/conv_10/Conv"]
    assert [bar.width for bar in report.effects[:2]] == [100.0, 50.0]
    assert report.effects[0].value == "0.5 %"
    without = "INT8's error without it: less by 0.5 points"
    assert report.effects[0].note == f"noise 10.5 dB, predictions as FP32's: 93.8 %, {without}"
    assert (report.effect_blocks, report.effect_samples, report.effect_missing) == (12, 16, "")
    assert "measured on 16 validation samples, of the 12 that do most of 12" in rendered().text


def test_why_no_effect_is_shown(workspace: Path) -> None:
    (workspace / "build/reports/effect.json").write_text("[]")
    edit("evaluate/evaluation.json", lambda evaluation: evaluation | {"effect": {}})
    assert "The effect on the outputs was not measured: evaluate.effect_samples is 0." in rendered().text
    some = {"samples": 4, "blocks": 12, "alone": 10, "left_out": 0, "missing": "40 inferences are used up", "quantized": None}
    edit("evaluate/evaluation.json", lambda evaluation: evaluation | {"effect": some})
    assert "2 blocks of 12 not measured: 40 inferences are used up." in rendered().text


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
