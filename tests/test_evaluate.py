"""`evaluate` in a real pipeline, its numbers worked out once more with plain OpenVINO and numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as operations

from stages.measurement.written_out import written_out
from tests.project import Project, copy_project

COUNT, CALIBRATION = 120, 20
KEYS = """\
model: {{name: tiny, path: tiny.xml}}
data: {{calibration: {{path: tiny.npz}}, calibration_size: {calibration}}}
quantization: {{preset: {preset}}}
evaluate: {{noise_samples: 5, effect_samples: 7, benchmark: {{seconds: 0.5}}}}
"""
METRICS = """\
metric:
  error: {_target_: stages.runtime.metrics.ReferenceError}
"""
OPTIONS = ("model: local", "data: arrays", "metric: accuracy", "tracking: disabled")


def tiny_model() -> ov.Model:
    """A convolutional classifier of four classes with weights that quantize badly; its last layer has no bias."""
    generator = np.random.default_rng(0)

    def constant(*shape: int, spread: float = 0.0) -> ov.Node:
        values = generator.normal(size=shape) * np.exp(generator.normal(size=shape) * spread)
        return operations.constant((values / np.sqrt(np.prod(shape[1:]))).astype(np.float32))

    image = operations.parameter([1, 3, 12, 12], np.float32, name="image")
    node: ov.Node = image
    for index, (inputs, outputs) in enumerate(((3, 8), (8, 8))):
        node = operations.convolution(node, constant(outputs, inputs, 3, 3, spread=1.5), [1, 1], [1, 1], [1, 1], [1, 1])
        node.set_friendly_name(f"conv{index}")
        node = operations.add(node, operations.constant(generator.normal(size=(1, outputs, 1, 1)).astype(np.float32)))
        node.set_friendly_name(f"bias{index}")
        node = operations.relu(node)
        node.set_friendly_name(f"relu{index}")
    node = operations.reshape(operations.reduce_mean(node, [2, 3], True), [1, 8], False)
    node = operations.matmul(node, constant(4, 8), False, True)
    node.set_friendly_name("scores")
    return ov.Model([node], [image], "tiny")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that has quantized a tiny classifier, labelled by what FP32 answers most of the time."""
    project = copy_project(tmp_path_factory.mktemp("evaluate") / "project")
    model = tiny_model()
    ov.save_model(model, project.root / "tiny.xml", compress_to_fp16=False)
    generator = np.random.default_rng(1)
    images = generator.normal(size=(COUNT, 3, 12, 12)).astype(np.float32)
    labels = answers(model, images)
    wrong = generator.random(COUNT) < 0.1
    np.savez(project.root / "tiny.npz", x=images, y=np.where(wrong, (labels + 1) % 4, labels))
    project.params(KEYS.format(calibration=CALIBRATION, preset="performance") + METRICS, *OPTIONS)
    outcome = project.repro()
    assert outcome.code == 0, outcome.output
    return project


def outputs(model: ov.Model | Path, images: np.ndarray, precision: str = "f32") -> np.ndarray:
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision} if precision != "default" else {})
    return np.concatenate([np.array(compiled(image[None])[0]) for image in images])


def answers(model: ov.Model | Path, images: np.ndarray, precision: str = "f32") -> np.ndarray:
    return outputs(model, images, precision).argmax(axis=1)


def read(project: Project, path: str) -> Any:
    return json.loads((project.root / "build" / path).read_text())


def validation(project: Project) -> tuple[np.ndarray, np.ndarray]:
    with np.load(project.root / "tiny.npz") as file:
        return file["x"][CALIBRATION:], file["y"][CALIBRATION:]


def test_metrics_equal_plain_inference(project: Project) -> None:
    images, labels = validation(project)
    models = {"fp32": ("prepare", "f32"), "default": ("prepare", "default"), "int8": ("correct_bias", "default")}
    found = read(project, "evaluate/evaluation.json")["metrics"]
    for name, (stage, precision) in models.items():
        path = project.root / "build" / stage / "model.xml"
        assert found["accuracy"][name] == pytest.approx(np.mean(answers(path, images, precision) == labels))
    assert found["accuracy"]["drop"] == pytest.approx(found["accuracy"]["fp32"] - found["accuracy"]["int8"])
    fp32, int8 = (
        outputs(project.root / "build" / stage / "model.xml", images, precision) for stage, precision in (models["fp32"], models["int8"])
    )
    error = np.mean(np.linalg.norm(int8 - fp32, axis=1) / np.linalg.norm(fp32, axis=1))
    assert found["error"]["int8"] == pytest.approx(error, rel=1e-5)
    assert (found["error"]["fp32"], found["error"]["drop"]) == (0.0, found["error"]["int8"])
    assert 0.001 < error < 0.5  # quantized, and still itself


def test_per_sample_values_are_stored(project: Project) -> None:
    images, labels = validation(project)
    with np.load(project.root / "build/evaluate/samples.npz") as file:
        expected = answers(project.root / "build/prepare/model.xml", images) == labels
        np.testing.assert_array_equal(file["fp32/accuracy"], expected[:, None])
        assert set(file.files) == {f"{model}/{metric}" for model in ("fp32", "default", "int8") for metric in ("accuracy", "error")}


def test_the_interval_contains_the_drop(project: Project) -> None:
    for metric in read(project, "evaluate/evaluation.json")["metrics"].values():
        assert metric["drop_low"] <= metric["drop"] <= metric["drop_high"]
        assert metric["drop_low"] < metric["drop_high"] or metric["drop"] == 0


def test_sizes_are_those_on_disk(project: Project) -> None:
    size = read(project, "evaluate/evaluation.json")["size_bytes"]
    for name, stage in (("fp32", "prepare"), ("int8", "correct_bias")):
        assert size[name] == sum((project.root / "build" / stage / f"model.{suffix}").stat().st_size for suffix in ("xml", "bin"))


def test_every_port_of_every_quantized_layer_has_a_row(project: Project) -> None:
    rows = {row["layer"]: row for row in read(project, "evaluate/layers.json")}
    assert {"conv0:0", "conv0:1", "conv1:0", "conv1:1", "scores:0", "scores:1"} <= set(rows)
    assert list(rows).index("conv0:0") < list(rows).index("conv1:1") < list(rows).index("scores:0")
    assert rows["conv0:1"]["kind"] == "weights" and rows["conv0:1"]["bits"] == 8
    assert "bias" in rows["bias0"]["float_reason"]
    costs = [row["run_time_share"] for row in rows.values() if row["run_time_share"] is not None]
    assert rows["conv1:0"]["run_time_share"] > 0 and 0.2 < sum(costs) <= 1.0
    assert "8" in rows["conv1:0"]["runs_as"]  # an INT8 kernel
    for name in ("conv0:1", "conv1:1", "scores:1"):
        assert rows[name]["bias"] == "corrected" or rows[name]["bias"].startswith("left: ")


def test_noise_of_an_activation_equals_numpy(project: Project) -> None:
    images = validation(project)[0][:5]
    (quantizer,) = [entry for entry in read(project, "quantize/quantizers.json")["quantizers"] if entry["source"]["name"] == "relu0"]
    model = ov.Core().read_model(project.root / "build/prepare/model.xml")
    relu = next(node for node in model.get_ops() if node.get_friendly_name() == "relu0")
    tensor = outputs(ov.Model([relu.output(0)], model.get_parameters()), images).astype(np.float64)
    low, high, levels = quantizer["input_low"][0], quantizer["input_high"][0], quantizer["levels"]
    step = (high - low) / (levels - 1)
    error = np.rint((np.clip(tensor, low, high) - low) / step) * step + low - tensor
    expected = 10 * np.log10((tensor**2).sum() / (error**2).sum())
    (row,) = [row for row in read(project, "evaluate/layers.json") if row["layer"] == "conv1:0"]
    assert row["sqnr_db"] == pytest.approx(expected, abs=0.02)
    assert {"layer": "conv1:0", "kind": "activations", "sqnr_db": row["sqnr_db"]} in read(project, "reports/noise.json")


def test_speed_is_measured_for_all_three(project: Project) -> None:
    speed = read(project, "evaluate/latency.json")
    for name in ("fp32", "default", "int8"):
        assert 0 < speed["latency_ms"][name]["low"] <= speed["latency_ms"][name]["median"] <= speed["latency_ms"][name]["high"]
        assert speed["throughput"][name] > 0
    assert [row["model"] for row in read(project, "evaluate/accuracy_speed.json")][-1] == "INT8"


def test_the_compiled_model_was_compared_with_what_it_says(project: Project) -> None:
    found = read(project, "evaluate/evaluation.json")
    fidelity = found["fidelity"]
    assert fidelity["samples"] == 4 and len(fidelity["compilations"]) == 4
    # On CPUs without VNNI sums saturate, and that is said.
    assert (fidelity["ratio"] > fidelity["limit"]) == (fidelity["warning"] is not None) == (fidelity["warning"] in found["warnings"])


BOTH = (("prepare", "f32"), ("correct_bias", "default"))


def test_the_effect_of_blocks_is_measured_against_what_fp32_answers(project: Project) -> None:
    found = read(project, "evaluate/evaluation.json")["effect"]
    assert {key: found[key] for key in ("samples", "blocks", "alone", "left_out", "missing")} == {
        "samples": 7,
        "blocks": 4,  # of two convolutions, the mean and the MatMul
        "alone": 4,
        "left_out": 4,
        "missing": None,
    }
    images, labels = validation(project)
    right = [answers(project.root / "build" / stage / "model.xml", images, precision) == labels for stage, precision in BOTH]
    lost = np.flatnonzero(right[0] & ~right[1])[:3]  # three of seven, where there are as many
    images = images[[*lost, *np.setdiff1d(np.arange(7), lost)][:7]]
    fp32 = outputs(project.root / "build/prepare/model.xml", images)
    written = outputs(written_out(ov.Core().read_model(project.root / "build/correct_bias/model.xml")), images)
    error = np.mean(np.linalg.norm(written - fp32, axis=1) / np.linalg.norm(fp32, axis=1))
    assert found["quantized"]["error"] == pytest.approx(error, rel=0.02)  # three digits, and sums in another order
    assert found["quantized"]["agreement"] == pytest.approx(np.mean(written.argmax(1) == fp32.argmax(1)), abs=1e-4)
    rows = {row["layer"]: row for row in read(project, "evaluate/layers.json")}
    (worst, *_) = read(project, "reports/effect.json")
    assert rows[f"{worst['layer']}:0"]["effect_on"] == rows[f"{worst['layer']}:1"]["effect_on"] == worst["effect_on"] > 0
    assert worst["effect_on"] == max(row["effect_on"] or 0.0 for row in rows.values())


def test_the_summary_ends_the_run(project: Project) -> None:
    outcome = project.repro()
    assert outcome.stages == ["config", "track"]
    accuracy = read(project, "evaluate/evaluation.json")["metrics"]["accuracy"]
    assert f"{100 * accuracy['int8']:.2f} %" in outcome.output
    assert "left float: " in outcome.output


def test_what_the_next_stage_makes_nothing_of_reaches_those_after_it(project: Project, tmp_path: Path) -> None:
    """Evaluate reads quantizers.json, but depends on what correct_bias wrote: the hash of it stands there."""
    other = project.copy(tmp_path / "project")
    assert other.repro().stages == ["config", "track"]
    file = other.root / "stages/quantize.py"
    file.write_text(file.read_text().replace(" = quantizers_json(", ' = {"edited": 1} | quantizers_json('))
    assert other.repro().stages == ["config", "quantize", "correct_bias", "evaluate", "accuracy_aware", "tune", "track"]
    assert "edited" in read(other, "quantize/quantizers.json")
    for name in ("model.xml", "model.bin", "corrections.json"):
        assert (other.root / "build/correct_bias" / name).read_bytes() == (project.root / "build/correct_bias" / name).read_bytes()


def test_reports_are_reproducible_and_another_preset_infers_fp32_no_more(project: Project, tmp_path: Path) -> None:
    """A clone gives the same reports; then another preset in it, whose FP32 values come from the first evaluation."""
    other = copy_project(tmp_path / "project")
    for name in ("tiny.xml", "tiny.bin", "tiny.npz"):
        (other.root / name).write_bytes((project.root / name).read_bytes())
    keys = KEYS.format(calibration=CALIBRATION, preset="performance")
    other.params(keys + METRICS, *OPTIONS)
    assert other.repro().code == 0
    models = ("correct_bias/model.bin", "correct_bias/model.xml")
    for path in ("reports/effect.json", "reports/metrics.json", "reports/noise.json", "evaluate/samples.npz", *models):
        assert (other.root / "build" / path).read_bytes() == (project.root / "build" / path).read_bytes(), path

    known = sorted((other.root / "build/.baseline").rglob("*.npz"))
    stamps = [path.stat().st_mtime_ns for path in known]
    few = keys.replace("performance", "mixed").replace("effect_samples: 7", "effect_samples: 7, effect_inferences: 8")
    other.params(few + METRICS, *OPTIONS)
    outcome = other.repro()
    assert outcome.stages == ["config", "quantize", "correct_bias", "evaluate", "accuracy_aware", "tune", "track"]
    assert sorted((other.root / "build/.baseline").rglob("*.npz")) == known
    assert [path.stat().st_mtime_ns for path in known] == stamps
    before, after = (read(each, "evaluate/evaluation.json")["metrics"]["accuracy"] for each in (project, other))
    assert (before["fp32"], before["default"]) == (after["fp32"], after["default"])
    effect = read(other, "evaluate/evaluation.json")["effect"]
    assert (effect["samples"], effect["alone"], effect["missing"]) == (4, 2, "8 inferences (evaluate.effect_inferences) are used up")


def test_labels_that_do_not_fit_are_said_loudly(project: Project, tmp_path: Path) -> None:
    """Class numbers from 1 where the model counts from 0: a drop of 0.00 points would look like a success."""
    assert not [warning for warning in read(project, "evaluate/evaluation.json")["warnings"] if "finds nothing" in warning]
    shifted = project.copy(tmp_path / "shifted")
    with np.load(project.root / "tiny.npz") as file:
        labels = answers(tiny_model(), file["x"])
        np.savez(shifted.root / "tiny.npz", x=file["x"], y=(labels + 1) % 4)
    outcome = shifted.repro()
    assert outcome.code == 0, outcome.output
    (warning,) = [warning for warning in read(shifted, "evaluate/evaluation.json")["warnings"] if "FP32" in warning]
    assert warning.startswith("accuracy of FP32 is 0.00 %, that of a model that finds nothing: ")
    assert f"WARNING: {warning}" in outcome.output
    assert "accuracy of FP32 is 0.00 %" in (shifted.root / "build/report.html").read_text()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return float('nan')", "evaluate: error: metric strange is not a finite number (nan) for validation sample 20"),
        (
            "return np.ones(1 + self.calls.__next__() % 2)",
            "evaluate: error: metric strange gives arrays of different shapes from sample to sample",
        ),
    ],
)
def test_a_metric_that_gives_nonsense_is_one_line(project: Project, tmp_path: Path, body: str, message: str) -> None:
    broken = copy_project(tmp_path / "project")
    for name in ("tiny.xml", "tiny.bin", "tiny.npz"):
        (broken.root / name).write_bytes((project.root / name).read_bytes())
    broken.write(
        "conf/strange.py",
        "import itertools\nimport numpy as np\nfrom stages.runtime.metrics import Metric\n\n\n"
        "class Strange(Metric):\n    calls = itertools.count()\n\n"
        f"    def per_sample(self, outputs, target):\n        {body}\n",
    )
    keys = KEYS.format(calibration=CALIBRATION, preset="performance") + "metric: {strange: {_target_: conf.strange.Strange}}\n"
    broken.params(keys, *OPTIONS)
    outcome = broken.repro()
    assert outcome.code != 0
    assert len(outcome.errors) == 1 and outcome.errors[0].startswith(message)
    assert "Traceback" not in outcome.output
    assert not (broken.root / "build/evaluate").exists()
