"""An OpenVINO model as MLflow loads it: arrays by input name in, arrays by output name out. Needs openvino and numpy alone.

MLflow gets a copy of this file with each model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov


class OpenvinoModel:
    """Runs a model with the settings that its accuracy was measured with."""

    def __init__(self, folder: Path) -> None:
        self._settings = json.loads((folder / "inference.json").read_text(encoding="utf-8"))
        self._model = ov.Core().compile_model(folder / "model.xml", self._settings["device"], self._settings["properties"])

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> dict[str, np.ndarray]:
        """The outputs by name, each request with the initial state; a model for one sample at a time gets them one after the other."""
        names = self._settings["inputs"]
        arrays = [np.asarray(data[name]) for name in names] if hasattr(data, "keys") else [np.asarray(data)]
        parts = [[array] for array in arrays]
        if self._settings["one_by_one"]:
            parts = [[array[place : place + 1] for place in range(len(array))] for array in arrays]
        results = [self._infer(inputs) for inputs in zip(*parts, strict=True)]
        return {name: np.concatenate(outputs) for name, outputs in zip(self._settings["outputs"], zip(*results, strict=True), strict=True)}

    def _infer(self, inputs: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        request = self._model.create_infer_request()  # of its own: servers call from several threads
        request.infer(dict(enumerate(inputs)))
        return [np.atleast_1d(tensor.data.copy()) for tensor in request.output_tensors]


def _load_pyfunc(path: str) -> OpenvinoModel:
    """What MLflow calls."""
    return OpenvinoModel(Path(path))
