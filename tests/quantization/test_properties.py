"""What holds for every model: small ones drawn at random, quantized in every way, compiled and run."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import openvino as ov
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.configuration import schema
from stages.configuration.target_device import ACTIVATIONS
from stages.quantization.build import build, save_model
from stages.quantization.model.graph import read_graph
from stages.quantization.placement.plan import plan_from_json
from tests.quantization.quantizing import Quantized, infer, plan_of, quantized, statistics_of
from tests.quantization.random_models import SHAPE, models
from tests.quantization.reference_runs import core
from tests.quantization.small import random
from tests.quantization.test_build import save

SLOW = [HealthCheck.too_slow]

ways = st.fixed_dictionaries(
    {
        "preset": st.sampled_from(schema.PRESETS),
        "device": st.sampled_from(["any", "cpu_spr", "gpu", "npu", "gna", "template"]),
        "model_type": st.sampled_from(["none", "transformer"]),
        "saturation_fix": st.sampled_from(["first_layer", "all", "no"]),
        "pot_compatible": st.booleans(),
    }
)


def samples_for(tested: ov.Model, count: int = 2) -> list[dict[str, np.ndarray]]:
    names = [value.get_any_name() for value in tested.inputs]
    return [{name: random(*SHAPE, seed=seed + 10 * place) for place, name in enumerate(names)} for seed in range(count)]


@given(models(), ways)
@settings(max_examples=20, deadline=None, suppress_health_check=SLOW)
def test_any_model_can_be_quantized_compiled_and_run(tested: ov.Model, way: dict[str, Any]) -> None:
    samples = samples_for(tested)
    result = quantized(tested, samples, correction=schema.BiasCorrection(), **way)
    assert all(entry.reason for entry in result.plan.floats)
    for outputs, expected in zip(infer(result.model, samples), infer(tested, samples), strict=True):
        assert [values.shape for values in outputs] == [values.shape for values in expected]
        assert all(np.isfinite(values).all() for values in outputs)


@given(models(), ways)
@settings(max_examples=20, deadline=None, suppress_health_check=SLOW)
def test_zero_is_a_level_of_every_range(tested: ov.Model, way: dict[str, Any]) -> None:
    """A symmetric range has it in the middle, or at its end; of what POT does, only symmetric ranges that nothing unifies do."""
    result = quantized(tested, samples_for(tested), **way)
    for quantizer in result.plan.quantizers:
        symmetric = quantizer.scheme.symmetric
        if way["pot_compatible"] and not (symmetric and quantizer.unified_group is None):
            continue
        levels = quantizer.scheme.levels(quantizer.kind)
        low, high = result.solved.ranges[quantizer.name]
        place = -low * (levels - 1) / (high - low)
        np.testing.assert_allclose(place, np.round(place), atol=1e-9 * levels)
        if symmetric:
            middle = levels // 2
            assert np.isin(np.round(place), [0, middle] if quantizer.kind == ACTIVATIONS else [middle]).all()


@given(models(), st.sampled_from(schema.PRESETS), st.booleans())
@settings(max_examples=20, deadline=None, suppress_health_check=SLOW)
def test_sixteen_bits_on_both_sides_match_floating_point_closely(tested: ov.Model, preset: str, perchannel: bool) -> None:
    wide: dict[str, Any] = {"weights": schema.Scheme(bits=16), "activations": schema.Scheme(bits=16), "allow_unsupported": True}
    if perchannel:
        wide["activations"].granularity = "perchannel"
    samples = samples_for(tested, 1)  # the ranges hold everything
    result = quantized(tested, samples, every_channel=True, preset=preset, saturation_fix="no", **wide)
    for quantizer in result.plan.quantizers:
        assert quantizer.scheme.levels(quantizer.kind) >= 2**16 - 1
    for outputs, expected in zip(infer(result.model, samples), infer(tested, samples), strict=True):
        for ours, theirs in zip(outputs, expected, strict=True):
            assert np.sqrt(np.mean((ours - theirs) ** 2)) <= 2e-3 * max(1e-2, float(np.abs(theirs).max()))


@given(models())
@settings(max_examples=12, deadline=None, suppress_health_check=SLOW)
def test_the_same_model_gives_the_same_bytes(tmp_path_factory: pytest.TempPathFactory, tested: ov.Model) -> None:
    folder = tmp_path_factory.mktemp("models")
    names = [value.get_any_name() for value in tested.inputs]
    samples = [{name: random(*SHAPE, seed=seed) for name in names} for seed in range(2)]
    statistics = statistics_of(tested, samples)
    plan = plan_of(tested, preset="mixed")
    saved = []
    for name in ("a", "b"):
        result, solved = build(tested, statistics, plan, schema.BiasCorrection())
        saved.append(save(folder / name, Quantized(read_graph(tested), plan, solved, result)))
    assert saved[0] == saved[1]
    assert plan_from_json(json.loads(saved[0]["quantizers.json"])) == plan
    read = core().read_model(folder / "a" / "model.xml")
    found = [node.get_friendly_name() for node in read.get_ops()]
    assert len(set(found)) == len(found)
    for version in (read, result):
        for outputs in infer(version, samples[:1]):
            assert all(np.isfinite(values).all() for values in outputs)


@given(models())
@settings(max_examples=10, deadline=None, suppress_health_check=SLOW)
def test_what_is_quantized_stays_as_it_is(tmp_path_factory: pytest.TempPathFactory, tested: ov.Model) -> None:
    """Quantizing the result again changes none of its values, and no byte of the weights."""
    folder, samples = tmp_path_factory.mktemp("once"), samples_for(tested)
    save_model(quantized(tested, samples).model, folder)
    stored = core().read_model(folder / "model.xml")
    plan = plan_of(stored)
    again = quantized(stored, samples)
    there = {node.get_friendly_name() for node in stored.get_ops() if node.get_type_name() == "FakeQuantize"}
    kept = {node.get_friendly_name(): node for node in again.model.get_ops() if node.get_friendly_name() in there}
    assert kept.keys() == there and not {quantizer.source.name for quantizer in plan.quantizers} & there
