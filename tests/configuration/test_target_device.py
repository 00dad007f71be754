"""What devices offer, what of it suits several operations, and what a preset takes."""

from __future__ import annotations

from typing import Any

import pytest

from stages.common.errors import ConfigError
from stages.configuration import schema
from stages.configuration.target_device import (
    ACTIVATIONS,
    WEIGHTS,
    Scheme,
    choose,
    common,
    describe,
    extend,
    intersect,
    read_target,
    restrict,
)
from tests.quantization.reference_runs import target

PERTENSOR = (Scheme(8, "symmetric", "pertensor"), Scheme(8, "asymmetric", "pertensor"))
PERCHANNEL = (Scheme(8, "symmetric", "perchannel"), Scheme(8, "asymmetric", "perchannel"))
LEVELS = Scheme(8, "symmetric", "perchannel", -127, 127)


@pytest.mark.parametrize(
    ("scheme", "kind", "levels"),
    [
        (Scheme(8, "symmetric"), WEIGHTS, 255),
        (Scheme(8, "asymmetric"), WEIGHTS, 256),
        (Scheme(8, "symmetric"), ACTIVATIONS, 256),
        (Scheme(8, "asymmetric"), ACTIVATIONS, 256),
        (Scheme(4, "symmetric"), WEIGHTS, 15),
        (Scheme(4, "asymmetric"), WEIGHTS, 16),
        (LEVELS, WEIGHTS, 255),
        (Scheme(8, "symmetric", "pertensor", 0, 255), ACTIVATIONS, 256),
        (Scheme(8, "symmetric", "pertensor", -100, 100), ACTIVATIONS, 201),
    ],
)
def test_levels(scheme: Scheme, kind: str, levels: int) -> None:
    assert scheme.levels(kind) == levels


def test_only_levels_below_zero_ask_for_a_sign() -> None:
    assert LEVELS.signed and not Scheme().signed and not Scheme(8, "symmetric", "pertensor", 0, 255).signed


def test_presets_choose_as_in_pot() -> None:
    any_device = target("any")
    weights = any_device.alternatives("Convolution", WEIGHTS)
    activations = any_device.alternatives("Convolution", ACTIVATIONS)
    chosen = {preset: (choose(weights, preset, WEIGHTS).mode, choose(activations, preset, ACTIVATIONS).mode) for preset in schema.PRESETS}
    assert chosen == {
        "performance": ("symmetric", "symmetric"),
        "mixed": ("symmetric", "asymmetric"),
        "accuracy": ("asymmetric", "asymmetric"),
        "auto": ("symmetric", "symmetric"),  # what it begins with
    }


def test_the_tables_of_the_devices() -> None:
    any_device = target("any")
    assert any_device.alternatives("DepthWiseConvolution", ACTIVATIONS) == PERCHANNEL
    assert any_device.alternatives("Add", ACTIVATIONS) == PERTENSOR
    assert any_device.alternatives("Convolution", WEIGHTS)[0] == LEVELS
    assert any_device.alternatives("Power", WEIGHTS) == ()
    assert any_device.quantizable("MatMul") and not any_device.quantizable("Relu")
    assert not any_device.quantizable("Maximum")  # listed, but data passes through it
    assert target("gpu").alternatives("LSTMSequence", ACTIVATIONS) == () != any_device.alternatives("LSTMSequence", ACTIVATIONS)
    assert target("cpu_spr").rules == "CPU_SPR"


def test_intersection_goes_by_mode_and_granularity_and_takes_the_fewer_bits() -> None:
    four = Scheme(4, "symmetric", "pertensor")
    assert intersect(PERTENSOR, PERTENSOR) == PERTENSOR
    assert intersect(PERTENSOR, PERCHANNEL) == ()
    assert intersect(PERTENSOR, (four,)) == (four,) == intersect((four,), PERTENSOR)
    # Both lists are read in one direction: what comes before the last match is not looked at again.
    assert intersect(PERTENSOR[::-1], PERTENSOR) == (PERTENSOR[1],)


def test_extension_offers_what_a_scheme_can_stand_in_for() -> None:
    assert extend(PERTENSOR[1:]) == PERTENSOR
    assert extend(PERCHANNEL[1:]) == (*PERTENSOR, *PERCHANNEL)
    assert extend(PERTENSOR[:1]) == PERTENSOR[:1]


def test_a_depthwise_convolution_and_an_add_share_a_range_per_tensor() -> None:
    assert common([PERCHANNEL, PERTENSOR]) == PERTENSOR
    assert common([PERTENSOR]) == PERTENSOR
    assert common([PERTENSOR[:1], (Scheme(8, "asymmetric", "pertensor"),)]) == PERTENSOR[:1]


def test_restriction() -> None:
    weights = target("any").alternatives("Convolution", WEIGHTS)
    assert restrict(weights, schema.Scheme(), "w", False) == weights
    assert restrict(weights, schema.Scheme(mode="asymmetric"), "w", False) == (Scheme(8, "asymmetric", "perchannel"),)
    assert restrict((), schema.Scheme(bits=4), "w", False) == ()
    # One range per tensor is a special case of one per channel.
    assert restrict(PERCHANNEL, schema.Scheme(granularity="pertensor"), "a", False) == PERTENSOR


def test_a_refused_restriction_says_what_the_target_offers() -> None:
    wanted = schema.Scheme(bits=4, mode="asymmetric")
    with pytest.raises(ConfigError) as raised:
        restrict(PERTENSOR, wanted, "quantization.activations for Add add1", False)
    message = str(raised.value)
    assert message.startswith("quantization.activations for Add add1: bits=4, mode=asymmetric cannot run on the target, which offers: ")
    assert "8-bit symmetric pertensor; 8-bit asymmetric pertensor" in message and "allow_unsupported" in message
    assert "\n" not in message


def test_forcing_what_the_target_does_not_offer() -> None:
    weights = target("any").alternatives("Convolution", WEIGHTS)
    assert restrict(weights, schema.Scheme(bits=4), "w", True) == (
        Scheme(4, "symmetric", "perchannel"),
        Scheme(4, "asymmetric", "perchannel"),
    )
    assert restrict(PERTENSOR, schema.Scheme(granularity="perchannel"), "a", True) == PERCHANNEL


def test_describe() -> None:
    assert describe(LEVELS) == "8-bit symmetric perchannel [-127, 127]"
    assert describe(Scheme(4, "asymmetric")) == "4-bit asymmetric pertensor"


def test_lists_in_a_target_file_stand_for_their_values_the_first_key_varying_slowest() -> None:
    device = schema.TargetDevice(
        schemes={"all": [{"bits": [8, 4], "mode": ["symmetric", "asymmetric"]}]}, operations={"Add": {"weights": "all"}}
    )
    found = read_target(device).alternatives("Add", WEIGHTS)
    assert [(scheme.bits, scheme.mode) for scheme in found] == [(8, "symmetric"), (8, "asymmetric"), (4, "symmetric"), (4, "asymmetric")]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"schemes": {"all": [{"bit": 8}]}}, "target_device.schemes.all: .*keys are bits, mode, granularity, level_low, level_high"),
        ({"operations": {"Add": {"weight": "all"}}}, "target_device.operations.Add.weight: must be weights or activations"),
        ({"operations": {"Add": {"weights": "most"}}}, "target_device.operations.Add.weights=most: must be one of all"),
    ],
)
def test_errors_in_a_target_file_name_the_key(wrong: dict[str, Any], message: str) -> None:
    right: dict[str, Any] = {"schemes": {"all": [{"bits": 8}]}, "operations": {"Add": {"weights": "all"}}}
    with pytest.raises(ConfigError, match=message):
        read_target(schema.TargetDevice(**right | wrong))
