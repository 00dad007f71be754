"""The summary: short, aligned, in units one can compare, and it hides nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from stages.configuration.schema import BiasCorrection
from stages.report.summary import summary
from tests import built


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    built.write_build(tmp_path, built.config())
    return tmp_path


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def line(text: str, start: str) -> str:
    (found,) = [entry for entry in text.splitlines() if entry.strip().startswith(start)]
    return found


def test_it_fits_on_a_screen(workspace: Path) -> None:
    text = summary(built.config())
    assert len(text.partition("\nnext: ")[0].splitlines()) <= 20
    assert len(text.splitlines()) <= 25  # with what to do next
    assert max(map(len, text.splitlines())) <= 140
    assert text.splitlines()[0] == "reader on lines: preset performance for ANY, 300 calibration and 1000 validation samples"


def test_shares_are_in_percent_and_their_drop_in_points(workspace: Path) -> None:
    cells = line(summary(built.config()), "exact_match").split("  ")
    assert [cell.strip() for cell in cells if cell] == [
        "exact_match",
        "90.20 %",
        "90.10 %",
        "88.10 %",
        "drop 2.10 points, 95 % interval [1.10, 3.10]",
    ]


def test_what_the_default_precision_loses_alone(workspace: Path) -> None:
    path = workspace / "build/evaluate/evaluation.json"
    metrics = json.loads(path.read_text())["metrics"]
    metrics["exact_match"] |= {"precision_drop": 0.0146, "precision_drop_low": 0.01, "precision_drop_high": 0.02}
    edit(path, metrics=metrics)
    assert line(summary(built.config()), "exact_match").endswith("drop 2.10 points, 95 % interval [1.10, 3.10], bf16 alone 1.46")


def test_other_metrics_keep_their_unit_and_direction(workspace: Path) -> None:
    assert line(summary(built.config()), "error").endswith("drop 0.04 (lower is better), 95 % interval [0.039, 0.0412]")


def test_columns_are_aligned(workspace: Path) -> None:
    text = summary(built.config())
    ends = {
        name: line(text, name).index(cell) + len(cell)
        for name, cell in (("exact_match", "88.10 %"), ("latency", "4.00 ms"), ("size", "3.10 MB"))
    }
    assert len(set(ends.values())) == 1


def test_speed_is_compared_with_both_precisions(workspace: Path) -> None:
    assert "INT8 is 3.00x faster than f32 [2.70, 3.30], 1.50x faster than bf16 [1.35, 1.65]" in summary(built.config())
    assert "3.5x smaller" in summary(built.config())


def test_a_model_that_has_grown_is_not_called_smaller(workspace: Path) -> None:
    edit(workspace / "build/evaluate/evaluation.json", size_bytes={"fp32": 2_000_000, "int8": 2_400_000})
    assert line(summary(built.config()), "size").endswith("1.2x LARGER")


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        ({"median": 1.04, "low": 0.97, "high": 1.1}, "no different from bf16"),
        ({"median": 0.5, "low": 0.4, "high": 0.8}, "2.00x SLOWER than bf16 [1.25, 2.50]"),
    ],
)
def test_speed_is_not_prettied_up(workspace: Path, ratio: dict[str, float], expected: str) -> None:
    speed = built.latency(4.0)
    edit(workspace / "build/evaluate/latency.json", speed_up={**speed["speed_up"], "default": ratio})
    assert expected in summary(built.config())


def test_one_fp32_column_where_the_default_precision_is_f32(workspace: Path) -> None:
    edit(workspace / "build/evaluate/evaluation.json", precisions={"fp32": "f32", "default": "f32", "int8": "f32"})
    text = summary(built.config())
    assert text.count("f32") == 2  # the column, and what the speed-up is against
    assert "bf16" not in text


def test_without_a_benchmark_there_is_no_speed(workspace: Path) -> None:
    (workspace / "build/evaluate/latency.json").write_text("{}")
    text = summary(built.config())
    assert "latency" not in text
    assert "3.5x smaller" in text


def test_no_interval_where_there_is_none(workspace: Path) -> None:
    metrics = built.evaluation(0.021)["metrics"]
    metrics["exact_match"] |= {"drop_low": None, "drop_high": None}
    edit(workspace / "build/evaluate/evaluation.json", metrics=metrics)
    assert line(summary(built.config()), "exact_match").endswith("drop 2.10 points")


def test_what_stays_float_is_grouped_by_reason_weighted_layers_first(workspace: Path) -> None:
    lines = summary(built.config()).splitlines()
    place = lines.index("left float: 11 operations")
    assert lines[place + 1 : place + 3] == [
        "    1 ignored block: squeeze and excitation: /se/fc",
        "   10 ANY has no quantized form of it: 7 ReLU, 3 SoftMax",
    ]


def test_what_costs_most_comes_first_where_times_are_known(workspace: Path) -> None:
    rows = [
        built.left_float("/se/fc", "Convolution", "ignored block", 0.12),
        built.left_float("/softmax", "SoftMax", "ANY has no quantized SoftMax", 0.1),
        built.left_float("/softmax_2", "SoftMax", "ANY has no quantized SoftMax", 0.07),
        built.left_float("/bias", "Add", "bias"),
    ]
    (workspace / "build/evaluate/layers.json").write_text(json.dumps(rows))
    lines = summary(built.config()).splitlines()
    place = lines.index("left float: 4 operations, 29.0 % of INT8's run time")
    assert lines[place + 1 : place + 4] == [
        "  17.0 %    2 ANY has no quantized form of it: /softmax, /softmax_2",
        "  12.0 %    1 ignored block: /se/fc",
        "       -    1 that take no time of their own: /bias",
    ]


def test_many_reasons_are_cut_and_counted(workspace: Path) -> None:
    rows = [built.left_float(f"op{index}", "MatMul", f"reason {letter}") for index, letter in enumerate("abcdefgh")]
    (workspace / "build/evaluate/layers.json").write_text(json.dumps(rows))
    text = summary(built.config())
    assert "    3 for other reasons: see build/evaluate/layers.json" in text
    assert text.count("reason ") == 5


def test_alignment_is_told_where_there_were_candidates(workspace: Path) -> None:
    assert "channels:" not in summary(built.config())
    left = [{"first": "a", "second": str(index), "reason": "it is grouped" if index else "it is padded"} for index in range(3)]
    edit(workspace / "build/quantize/quantizers.json", aligned=[["a", "b"]], not_aligned=left)
    expected = "channels: 1 layer aligned with the one before, 3 left: 2 as it is grouped, 1 as it is padded"
    assert line(summary(built.config()), "channels") == expected


def test_biases_that_were_left_are_listed(workspace: Path) -> None:
    lines = summary(built.config()).splitlines()
    place = lines.index("biases: 10 corrected by FastBiasCorrection, 2 left")
    assert lines[place + 1] == "    2 the shift is … times the bias: /backbone/conv_10/Conv, /backbone/conv_11/Conv"
    off = dataclasses.replace(built.config(), bias_correction=BiasCorrection(enabled=False))
    assert "biases: not corrected (bias_correction.enabled is false)" in summary(off)
    edit(workspace / "build/correct_bias/corrections.json", algorithm="BiasCorrection", samples=60)
    why = "run layer by layer, as what a layer reads depends on those before it"
    assert f"biases: 10 corrected by BiasCorrection on 60 samples ({why}), 2 left" in summary(built.config()).splitlines()


def test_what_was_collected_and_why(workspace: Path) -> None:
    expected = "statistics: one pass over 300 samples collected 64 tensors"
    assert expected in summary(built.config()).splitlines()
    record = workspace / "build/records/collect_statistics.json"
    edit(record, passes=5)
    expected = (
        "statistics: 5 passes over 300 samples collected 64 tensors, few at a time to spare memory (collect_statistics.inplace_statistic)"
    )
    assert expected in summary(built.config()).splitlines()
    edit(record, passes=1, empty={"tensors": 3, "samples": 12})
    expected = "statistics: one pass over 300 samples collected 64 tensors, 3 of them empty for up to 12 samples, which are left out"
    assert expected in summary(built.config()).splitlines()
    record.unlink()
    assert "statistics:" not in summary(built.config())


def test_warnings_of_quantize_are_shown(workspace: Path) -> None:
    edit(workspace / "build/quantize/quantizers.json", warnings=["the model masks attention scores"])
    assert "WARNING: the model masks attention scores" in summary(built.config()).splitlines()


def test_layerwise_tuning_says_what_it_collected(workspace: Path) -> None:
    assert "layer-wise" not in summary(built.config())
    tuned = [{"name": "a", "type": "MatMul", "loss_before": 2.0, "loss_after": after} for after in (1.0, 1.5, 1.6)]
    left = [{"name": "b", "type": "MatMul", "reason": "it has no error"}]
    record = {"samples": 300, "passes": 1, "tuned": tuned, "left": left}
    edit(workspace / "build/correct_bias/corrections.json", layerwise_tuning=record)
    text = summary(built.config())
    assert (
        "layer-wise tuning: 3 layers, their squared error 25 % smaller (median), 1 left; one more pass over 300 samples collected" in text
    )
    assert "    1 it has no error: b" in text


def test_the_tuned_model(workspace: Path) -> None:
    assert "tuned" not in summary(built.config())
    built.write_tune(workspace)
    text = summary(built.config())
    shown = text.splitlines()[text.splitlines().index(line(text, "tuned:")) :][:5]
    assert shown == [
        "tuned: 0.87 % of exact_match lost, 1 % allowed; trial 3 of 4 (1 given up early): without /backbone/conv_0/Conv",
        "  exact_match: 89.40 %, drop 2.10 points [1.10, 3.10]",
        "  error: 0.053, drop 0.04 [0.039, 0.0412]",
        "  latency 3.75 ms: 1.60x faster than FP32 in bf16 [1.52, 1.68], no different from fully quantized",
        "  1 of 12 layers stay in floating point: /backbone/conv_0/Conv",
    ]


def test_a_budget_that_is_not_kept_is_said_loudly(workspace: Path) -> None:
    built.write_tune(workspace, within=False)
    assert line(summary(built.config()), "tuned:").startswith(
        "tuned: BUDGET NOT KEPT on all 1000 samples: 2.00 % of exact_match lost, 1 % allowed, on the search's 300 it was 0.87 %;"
    )
    edit(workspace / "build/tune/result.json", best=read(workspace)["best"] | {"accuracy_loss_in_search": 0.03})
    assert line(summary(built.config()), "tuned:").startswith("tuned: BUDGET NOT KEPT: 2.00 % of exact_match lost, 1 % allowed;")


def read(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "build/tune/result.json").read_text()))


def test_shared_samples_are_a_warning(workspace: Path) -> None:
    edit(workspace / "build/prepare/dataset.json", shared=12)
    assert "WARNING: 12 of the validation samples are calibration samples too, so the drop looks smaller than it is" in summary(
        built.config()
    )


def test_what_prepare_found_odd_is_a_warning(workspace: Path) -> None:
    edit(workspace / "build/records/prepare.json", notes=["data.calibration: left out"])
    assert "\nWARNING: data.calibration: left out\n" in summary(built.config())


@pytest.mark.parametrize("stage", ["accuracy_aware", "tune"])
def test_a_model_that_does_not_compute_what_it_says_is_a_warning(workspace: Path, stage: str) -> None:
    assert "WARNING" not in summary(built.config())
    edit(workspace / "build/evaluate/evaluation.json", warnings=["CPU does not compute"])
    assert line(summary(built.config()), "WARNING") == "WARNING: CPU does not compute"
    if stage == "accuracy_aware":
        built.write_accuracy_aware(workspace)
    else:
        built.write_tune(workspace)
    (workspace / f"build/{stage}/fidelity.json").write_text(json.dumps({"ratio": 9.0, "warning": "nor does this one"}))
    assert "  WARNING: nor does this one" in summary(built.config()).splitlines()


def test_what_is_quantized_otherwise_than_the_preset_asks_for(workspace: Path) -> None:
    assert "not as the preset has it" not in summary(built.config())
    entries = built.quantizers()["quantizers"]
    entries = [entry | {"restriction": "symmetric: a fault" if index < 2 else None} for index, entry in enumerate(entries)]
    edit(workspace / "build/quantize/quantizers.json", quantizers=entries)
    lines = summary(built.config()).splitlines()
    place = lines.index("not as the preset has it: 2 quantizers")
    assert lines[place + 1] == "    2 symmetric: a fault"


def test_it_ends_with_what_to_do_next(workspace: Path) -> None:
    assert summary(built.config()).splitlines()[-5:] == [
        "next: do not deploy INT8 yet: exact_match drops by 2.10 points [1.10, 3.10], 1.00 allowed (accuracy_aware.maximal_drop)",
        "next: try preset `mixed`: asymmetric activations lose less, often at the same speed",
        "      python -m stages.sweep -m quantization.preset=performance,mixed",
        "next: give the layers that hurt back to floating point until the budget holds",
        "      python -m stages.sweep -m accuracy_aware.enabled=true",
    ]


def test_the_models_of_searches_have_columns_and_the_one_to_deploy_has_the_remarks(workspace: Path) -> None:
    built.write_accuracy_aware(workspace)
    text = summary(built.config())
    assert line(text, "FP32").split("  ")[-1].strip() == "budget kept"
    assert line(text, "exact_match ").split()[1:9] == ["90.20", "%", "90.10", "%", "88.10", "%", "89.30", "%"]
    assert line(text, "exact_match ").endswith("drop 0.90 points, 95 % interval [0.10, 1.70]")
    assert line(text, "latency  ").endswith("budget kept is 3.10x faster than f32 [2.94, 3.26], 1.50x faster than bf16 [1.42, 1.58]")
    assert "next: deploy build/accuracy_aware/model.xml: 1.50x faster than FP32 in bf16" in text
    built.write_accuracy_aware(workspace, holds=False)
    text = summary(built.config())
    assert "closest to the budget" in text.splitlines()[2]
    assert line(text, "exact_match ").endswith("drop 2.10 points, 95 % interval [1.10, 3.10]")  # INT8's, which would be deployed
    assert "next: allow more, or calibrate on more and other samples: no reversion" in text


def test_seconds_of_the_stages(workspace: Path) -> None:
    assert line(summary(built.config()), "seconds").startswith("seconds: config 0.5, prepare 1.5, collect_statistics 2.5")


def test_the_accuracy_budget_says_whether_it_holds_and_what_it_cost(workspace: Path) -> None:
    built.write_accuracy_aware(workspace)
    assert (
        """\
accuracy budget: holds, judged in bf16
  exact_match: drop 0.80 points [-0.10, 1.70] of 1.00 allowed on 800 samples, 1.20 points [-0.80, 3.20] on 200 held-out samples
  1 of 12 operations back in floating point: /backbone/conv_0/Conv
  latency 4.00 ms now, 3.84 ms before: 1.04x SLOWER than INT8 with no layer reverted [1.02, 1.05]
"""
        in summary(built.config()) + "\n"
    )


def test_an_accuracy_budget_that_is_not_met_or_not_confirmed_is_said_plainly(workspace: Path) -> None:
    built.write_accuracy_aware(workspace, holds=False)
    assert "accuracy budget: NOT MET: exact_match drops by 1.50 points where 1.00 is allowed; no further" in summary(built.config())
    built.write_accuracy_aware(workspace)
    edit(workspace / "build/accuracy_aware/result.json", confirmed=False)
    assert "  NOT CONFIRMED: on the held-out samples the drop is larger than allowed" in summary(built.config())


SURE = {"holds": True, "confidence": 0.95, "models": 17, "bounds": {"exact_match": 0.0095}, "samples": None}
UNSURE = SURE | {"holds": False, "bounds": {"exact_match": 0.021}, "samples": 5200}
UNCERTAINTY = (
    "others may lose more, exact_match by up to 2.10 points (95 % confidence, chosen among 17 models);"
    " about 5200 samples to search with would make sure of it"
)


def test_how_sure_an_accuracy_budget_is_is_said(workspace: Path) -> None:
    built.write_accuracy_aware(workspace)
    path = workspace / "build/accuracy_aware/result.json"
    edit(path, acceptance=SURE | {"fewer": {"layers": 3, "samples": 3400}})
    lines = summary(built.config()).splitlines()
    assert "accuracy budget: holds with 95 % confidence, judged in bf16" in lines
    assert (
        "  3 operations of those in floating point for that confidence alone: about 3400 samples to search with would spare them" in lines
    )
    edit(path, acceptance=UNSURE)
    lines = summary(built.config()).splitlines()
    assert "accuracy budget: holds on these samples, not for sure on others, judged in bf16" in lines
    assert f"  {UNCERTAINTY}" in lines


def test_how_sure_a_tuned_model_is_of_its_budget_is_said(workspace: Path) -> None:
    built.write_tune(workspace)
    for acceptance, expected in (
        (SURE, "  within the budget with 95 % confidence"),
        (UNSURE, f"  within the budget on these samples, not for sure on others; {UNCERTAINTY}"),
    ):
        edit(workspace / "build/tune/result.json", best=read(workspace)["best"] | {"acceptance": acceptance})
        assert expected in summary(built.config()).splitlines()
