"""What a model expects of its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov

from stages.common.errors import UserError

# OpenVINO's element types that NumPy has, too.
TYPES: dict[str, np.dtype] = {
    "f16": np.dtype(np.float16),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "i8": np.dtype(np.int8),
    "i16": np.dtype(np.int16),
    "i32": np.dtype(np.int32),
    "i64": np.dtype(np.int64),
    "u8": np.dtype(np.uint8),
    "u16": np.dtype(np.uint16),
    "u32": np.dtype(np.uint32),
    "u64": np.dtype(np.uint64),
    "boolean": np.dtype(np.bool_),
}


@dataclass(frozen=True)
class ModelInput:
    """What a model expects of one input; a size of -1 is dynamic."""

    name: str
    aliases: tuple[str, ...]  # all its names, sorted
    shape: tuple[int, ...] | None  # None: not even the rank is known
    dtype: np.dtype

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "aliases": self.aliases, "shape": self.shape, "type": self.dtype.name}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ModelInput:
        shape = None if value["shape"] is None else tuple(value["shape"])
        return cls(value["name"], tuple(value["aliases"]), shape, np.dtype(value["type"]))


def model_inputs(model: ov.Model) -> list[ModelInput]:
    """The inputs of a model in its own order, named by their operations; tensor names are accepted as aliases."""
    inputs = []
    for port in model.inputs:
        shape = port.get_partial_shape()
        sizes = None if shape.rank.is_dynamic else tuple(size.get_length() if size.is_static else -1 for size in shape)
        name = port.get_node().get_friendly_name()
        kind = port.get_element_type().get_type_name()
        if kind not in TYPES:
            raise UserError(f"the model's input {name} is of type {kind}; known are {', '.join(TYPES)}")
        inputs.append(ModelInput(name, tuple(sorted({*port.get_names(), name})), sizes, TYPES[kind]))
    return inputs
