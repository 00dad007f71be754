"""Every file in conf/target_device/ can be chosen, and quantizes a real model to what it offers."""

from __future__ import annotations

import openvino as ov
import pytest

from stages import schema
from stages.config import compose
from stages.quantization.build import build
from stages.quantization.planning import make_plan
from stages.quantization.schemes import Target, read_target
from stages.validation import checked
from tests.quantization import reference_runs
from tests.quantization.reference_runs import core

DEVICES = sorted(path.stem for path in (reference_runs.CONF / "target_device").glob("*.yaml"))


def chosen(device: str) -> Target:
    """The device's tables as `config` composes them."""
    return read_target(checked(compose([f"target_device={device}"])).target_device)


@pytest.mark.parametrize("device", DEVICES)
def test_a_model_is_quantized_to_what_the_device_offers(device: str) -> None:
    target = chosen(device)
    model, graph = reference_runs.model("smallcnn")
    plan = make_plan(graph, target, schema.Quantization())
    offered = {scheme for groups in target.operations.values() for alternatives in groups.values() for scheme in alternatives}
    weights = [quantizer for quantizer in plan.quantizers if quantizer.kind == "weights"]
    assert weights and {quantizer.scheme for quantizer in weights} <= offered
    assert len(weights) < len(plan.quantizers)
    quantized, _ = build(model, reference_runs.statistics("smallcnn", 4), plan)
    assert isinstance(core().compile_model(quantized, "CPU"), ov.CompiledModel)
    inserted = [node for node in quantized.get_ops() if node.get_type_name() == "FakeQuantize"]
    assert len(inserted) >= len(plan.quantizers)


@pytest.mark.parametrize(("device", "bits"), [("npu", 4), ("npu", 2), ("template", 4), ("template", 2), ("gna", 16)])
def test_bits_are_chosen_among_the_device_s(device: str, bits: int) -> None:
    _, graph = reference_runs.model("smallcnn")
    plan = make_plan(graph, chosen(device), schema.Quantization(weights=schema.Scheme(bits=bits)))
    found = {quantizer.scheme.bits for quantizer in plan.quantizers if quantizer.kind == "weights"}
    assert found == {bits}
