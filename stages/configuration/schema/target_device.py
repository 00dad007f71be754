"""What the target device can run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stages.configuration.schema.fields import param
from stages.configuration.schema.quantization import Scheme

DEVICES = ("ANY", "CPU", "CPU_SPR", "GPU", "NPU", "GNA")


@dataclass
class TargetOperation:
    """What a device can run for one operation type: lists of schemes, fastest first. An absent list: not quantized there."""

    weights: list[Scheme] = param(list, "schemes for constant inputs")
    activations: list[Scheme] = param(list, "schemes for computed inputs")


@dataclass
class TargetDevice:
    """The device's quantization abilities, one file per device in conf/target_device/."""

    name: str = param("ANY", "name of the device")
    rules: str = param("ANY", "which device's rules for ignored blocks and saturation apply", choices=DEVICES)
    schemes: dict[str, Any] = param(dict, "named lists of schemes, fastest first, that `operations` refers to")
    operations: dict[str, Any] = param(dict, "per operation type: names of schemes for weights and activations")
    unified_scales: list[str] = param(list, "operation types whose inputs share one range")
    pass_through: list[str] = param(list, "operation types that work on quantized data unchanged")
