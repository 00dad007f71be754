"""The model card says what the artifacts say."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.configuration.schema import Shipment
from stages.deployment.card import card
from stages.deployment.deployable import deployable
from stages.deployment.samples import Packed
from tests import built
from tests.deployment.test_deployable import with_judged

INFERENCE: dict[str, Any] = {
    "model": "reader-int8/1/model.xml",
    "device": "CPU",
    "properties": {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "bf16"},
    "for_latency": {"PERFORMANCE_HINT": "LATENCY"},
    "measured_on": {"device": "Test(R) Processor", "cores": 2, "openvino": "2026.4.1-1", "numpy": "2", "python": "3", "streams": 4},
}


@pytest.fixture
def prepared(workspace: Path) -> Path:
    """The made-up build with what `prepare` says of the model."""
    port = {"name": "x", "aliases": ["x"], "shape": [1, 3, 48, -1], "type": "float32"}
    model = {"name": "reader", "source": "reader.onnx in readers==1.0.0", "sha256": "0" * 64, "inputs": [port], "outputs": [port]}
    (workspace / "build/prepare/model.json").write_text(json.dumps(model))
    return workspace


def made(name: str = "int8", packed: Packed | None = None, **keys: Any) -> str:
    config = dataclasses.replace(built.config(), package=Shipment(**keys))
    return card(config, deployable(config, name), f"reader-{name}", INFERENCE, packed or Packed(count=8), "abc")


def test_numbers_with_their_intervals(prepared: Path) -> None:
    text = made()
    for line in (
        "| exact_match | 90.20 % | 88.10 % | 2.10 points | 1.10 to 3.10 points |",
        "| error (lower is better) | 0 | 0.04 | 0.04 | 0.039 to 0.0412 |",
        "- latency 4.00 ms",
        "- 1.50 times as fast as FP32 in bf16 (1.35 to 1.65)",
        "- throughput 500 inferences per second",
        "- INFERENCE_PRECISION_HINT: bf16",
        "Speed on Test(R) Processor, 2 cores, 4 streams, OpenVINO 2026.4.1:",
        "| input | `x` | float32 | 1 × 3 × 48 × any |",
    ):
        assert line in text.splitlines(), line
    assert "`abc`" in text and "reader.onnx in readers==1.0.0" in text
    assert "300 samples calibrated, 1000 others validated" in text


def test_licence_and_description(prepared: Path) -> None:
    text = made(license="Apache-2.0", description="Reads lines of print.")
    assert yaml.safe_load(text.split("---")[1])["license"] == "Apache-2.0"
    assert "\nReads lines of print.\n" in text and text.endswith("## Licence\n\nApache-2.0\n")
    without = made()
    assert "license" not in yaml.safe_load(without.split("---")[1])
    assert "not stated (`package.license`)" in without and "not stated (`package.description`)" in without


def test_what_stays_float_and_why(prepared: Path) -> None:
    text = made().partition("## What is quantized")[2].partition("## Where")[0]
    assert "12 operations in INT8 by 12 weight and 12 activation quantizers, preset performance for ANY" in text
    assert text.rstrip().splitlines()[-2:] == [
        "- ignored block: squeeze and excitation: /se/fc",
        "- ANY has no quantized form of it: 7 ReLU, 3 SoftMax",
    ]
    assert "Nothing is quantized." in made("fp32")


def test_searches_say_what_they_did(prepared: Path) -> None:
    built.write_accuracy_aware(prepared, holds=False)
    with_judged(prepared)
    built.write_tune(prepared)
    assert "1 of 12 operations back in floating point: /backbone/conv_0/Conv" in made("accuracy_aware")
    assert "- the accuracy budget of accuracy_aware is not kept" in made("accuracy_aware")
    assert "1 of 12 layers stay in floating point" in made("tune") and "not kept" not in made("tune")


def test_what_predict_leaves_out_is_said(prepared: Path) -> None:
    packed = Packed(count=8, left={"map": "MeanAveragePrecision is not in score.py"})
    assert "predict.py does not compute every metric. map: MeanAveragePrecision is not in score.py." in made(packed=packed)
    assert "predict.py" not in made(packed=Packed())
