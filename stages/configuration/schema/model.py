"""The floating-point model."""

from __future__ import annotations

from dataclasses import dataclass

from stages.configuration.schema.fields import MISSING, param


@dataclass
class Package:
    """A model file inside a Python package's wheel, fetched with pip."""

    requirement: str | None = param(None, "pip requirement with an exact version, e.g. rapidocr-onnxruntime==1.4.4")
    member: str | None = param(None, "path of the model file inside the wheel")


@dataclass
class Model:
    """Where the floating-point model comes from: a local file, or a file inside a wheel."""

    name: str = param(MISSING, "short name of the model, used for run names and reports")
    path: str | None = param(None, "local file: OpenVINO IR .xml, .onnx, .tflite, .pdmodel, .pb, or a saved-model folder")
    package: Package = param(Package, "a file inside a Python package's wheel, instead of path")
    sha256: str | None = param(None, "expected SHA-256 of the model file; checked when given, required with package")
    input_shape: dict[str, list[int]] = param(
        dict, "fixed shape per input name; -1 keeps a dimension dynamic; for a model with one input the name may be '*'"
    )
